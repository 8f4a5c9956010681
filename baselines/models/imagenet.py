"""torchvision's ImageNet nets, imported only when they are built."""

from __future__ import annotations

from torch import nn

from baselines.errors import UserError


def resnet50(num_classes: int = 1000) -> nn.Module:
    """ResNet-50 with the stride in the 3x3: 25,557,032 params, 4,089,184,256 MACs."""
    from torchvision.models import resnet50

    return resnet50(num_classes=num_classes)


def resnet18(num_classes: int = 1000) -> nn.Module:
    """ResNet-18: 11,689,512 params, 1,814,073,344 MACs."""
    from torchvision.models import resnet18

    return resnet18(num_classes=num_classes)


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
