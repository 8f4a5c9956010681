"""torchvision's ImageNet nets, imported only when they are built."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from baselines.errors import UserError


def resnet50(num_classes: int = 1000) -> nn.Module:
    """ResNet-50 with the stride in the 3x3: 25,557,032 params, 4,089,184,256 MACs."""
    from torchvision.models import resnet50

    return resnet50(num_classes=num_classes)


def resnet50_caffe(num_classes: int = 1000) -> nn.Module:
    """ResNet-50 with the stride in the first 1x1, as in Caffe's model: 25,557,032 params, 3,857,973,248 MACs."""
    return stride_first(resnet50(num_classes))


def stride_first(net: nn.Module) -> nn.Module:
    """``net`` with bottlenecks that stride in their first 1x1, not in their 3x3 (Caffe, MSRA)."""
    from torchvision.models.resnet import Bottleneck

    for block in net.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return net


def resnet18(num_classes: int = 1000) -> nn.Module:
    """ResNet-18: 11,689,512 params, 1,814,073,344 MACs."""
    from torchvision.models import resnet18

    return resnet18(num_classes=num_classes)


def vgg16(num_classes: int = 1000) -> nn.Module:
    """VGG-16 without BN, with three fully connected layers: 138,357,544 params, 15,470,264,320 MACs."""
    from torchvision.models import vgg16

    return vgg16(num_classes=num_classes)


def vgg16_gap(num_classes: int = 1000) -> nn.Module:
    """VGG-16 with the mean of its last map before one linear layer: 15,227,688 params, 15,347,142,656 MACs.

    The net behind ThiNet-GAP: no fully connected layers, and no max-pool behind the last convolution.
    """
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"])[:-1]
    return nn.Sequential(
        OrderedDict(
            features=features,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(512, num_classes),
        )
    )


def resnet50_pretrained() -> nn.Module:
    """ResNet-50 with torchvision's first ImageNet weights (76.13 / 92.86 %); UserError without a network."""
    from torchvision.models import ResNet50_Weights, resnet50

    try:
        return resnet50(weights=ResNet50_Weights.IMAGENET1K_V1)
    except Exception as error:
        raise UserError(
            f"ImageNet weights could not be downloaded ({type(error).__name__}: {error}). Pass a file of ResNet-50 "
            "weights with baseline.weights=FILE."
        ) from error
