"""MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications.

A. G. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam. 2017,
https://arxiv.org/abs/1704.04861.

Idea: a convolution that filters each channel by itself (depthwise), followed by one of 1 x 1 that combines the channels
(pointwise), costs 1/N + 1/D^2 of an ordinary one with N filters of D x D; a net of these can be made thinner (width
alpha) and its images smaller (resolution rho) at will.

The net is built for the task's images and classes and trained from new weights; the dense net is not used. A layer of n
channels has int(alpha * n) of them, but at least 8, as in the authors' code (TF-slim). The net halves its maps five
times. On small images it does so less often, by one rule: the first halvings are left out until the last map would have
2 x 2 pixels. On 32 x 32 that takes the stride from the first convolution alone, as the usual port for CIFAR does
(pytorch-cifar by K. Liu); on 224 to 128 pixels all five stay. The halvings follow the task's images, rho scales what is
left of them: the net shrinks its input bilinearly, and every map with it (Eq. 7).

Deviations
- Training is by SGD with momentum 0.9 (Nesterov's, which that port has not), from its rate and weight decay down a
  cosine; the paper has RMSprop. On ImageNet the rate is the usual 0.1 for batches of 256, scaled to the baseline's
  batch, and the weight decay TF-slim's. Depthwise filters get none, where the paper says little or none.
- The epochs are not published: 200 on CIFAR, as in that port, and 90 on ImageNet. On MNIST the rate is the dense net's.
- ReLU is as in the paper; TF-slim has ReLU6.
- The images of ImageNet are shrunk from the task's 224 pixels; the paper crops them at the smaller size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select

if TYPE_CHECKING:
    from baselines.task import Task

# Table 1: outputs and strides of the first convolution and of the 13 separable ones
WIDTHS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
STRIDES = (2, 1, 2, 1, 2, 1, 2, *(1,) * 5, 2, 1)
LEAST = 8  # channels of a layer at any width
LAST_MAP = 2  # pixels of its side on small images
CIFAR = {"epochs": 200.0, "lr": 0.1, "weight_decay": 5e-4}
MNIST = {"epochs": 12.0, "lr": 0.05, "weight_decay": 5e-4}
GROUNDS = {
    "vgg16_mnist5k": {**MNIST, "width": 0.5},  # the baseline's net has a quarter of VGG-16's width
    "vgg16_cifar10": CIFAR,
    "resnet56_cifar10": CIFAR,
    "resnet56_cifar100": CIFAR,
    "resnet50_imagenette": {"lr": 0.0125},  # batches of 32
    "resnet50_imagenet": {"lr": 0.025},  # batches of 64
}
THINNER = {"w075": 0.75, "w050": 0.5, "w025": 0.25}
SMALLER = {"r192": 192 / 224, "r160": 160 / 224, "r128": 128 / 224}
READ = "read in a full text of the paper; sizes recounted"


@dataclass
class MobileNetV1(Method):
    """Trains MobileNet from new weights, its layers ``width`` and its images ``resolution`` times as large.

    ``weight_decay`` is for all parameters but the depthwise filters.
    """

    width: float = 1.0
    resolution: float = 1.0
    epochs: float = 90.0
    lr: float = 0.1
    weight_decay: float = 4e-5

    paper: ClassVar[Paper] = Paper(
        title="MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        authors="A. G. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam",
        venue="arXiv 2017",
        url="https://arxiv.org/abs/1704.04861",
        code="https://github.com/tensorflow/models",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **GROUNDS,
        **{
            f"{ground}/{name}": {**fields, "width": width}
            for ground, fields in GROUNDS.items()
            for name, width in THINNER.items()
            if width < fields.get("width", 1)
        },
        **{
            f"{ground}/{name}": {**GROUNDS[ground], "resolution": resolution}
            for ground in ("resnet50_imagenette", "resnet50_imagenet")
            for name, resolution in SMALLER.items()
        },
        "resnet50_imagenet/w050_r160": {**GROUNDS["resnet50_imagenet"], "width": 0.5, "resolution": SMALLER["r160"]},
        # The tiny nets of the contract checks are smaller than MobileNet at any width of the paper
        "tiny_resnet_synthetic": {"width": 0.01},
        "tiny_plain_synthetic": {"width": 0.01},
    }
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            baseline="resnet50_imagenet", recipe=f"resnet50_imagenet{variant}", label=f"MobileNet {label}",
            source=f"Table {source}", top1=top1, params=params, macs=macs, verified=READ,
        )
        for variant, label, source, top1, params, macs in (
            ("", "1.0-224", "6", 70.6, 4.2e6, 5.69e8),
            ("/w075", "0.75-224", "6", 68.4, 2.6e6, 3.25e8),
            ("/w050", "0.5-224", "6", 63.7, 1.3e6, 1.49e8),
            ("/w025", "0.25-224", "6", 50.6, 5e5, 4.1e7),
            ("/r192", "1.0-192", "7", 69.1, 4.2e6, 4.18e8),
            ("/r160", "1.0-160", "7", 67.2, 4.2e6, 2.90e8),
            ("/r128", "1.0-128", "7", 64.4, 4.2e6, 1.86e8),
            ("/w050_r160", "0.5-160", "9", 60.2, 1.32e6, 7.6e7),
        )
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "A wider net is better than a thinner one.", "Table 6", Select("mobilenet_v1", ("",)),
            (Select("mobilenet_v1", ("w025",)),), verified=READ,
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Build the net for the task's images and classes, and train it; the dense net is left alone."""
        for name, value in (("width", self.width), ("resolution", self.resolution)):
            if not 0 < value <= 1:
                raise UserError(f"The {name} {value:g} lies outside (0, 1]: give a factor such as 0.5.")
        channels, side = task.example.shape[1], task.example.shape[-1]
        shrunk = None if self.resolution == 1 else max(1, round(self.resolution * side))
        net = MobileNet(task.num_classes, self.width, strides=strides(side), side=shrunk, in_channels=channels)
        task.from_scratch = True
        net = net.to(task.example.device)
        return task.train(net, self.epochs, optimizer=lambda params: self.optimizer(net, params))

    def optimizer(self, net: nn.Module, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD over ``params``, without weight decay on the depthwise filters of ``net`` (Sec. 3.2)."""
        depthwise = {id(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
        params = list(params)
        groups = [
            {"params": [p for p in params if id(p) not in depthwise], "weight_decay": self.weight_decay},
            {"params": [p for p in params if id(p) in depthwise], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, self.lr, momentum=0.9, nesterov=True)


class MobileNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes); first shrunk to ``side`` x ``side`` where that is set.

    ``widths`` and ``strides`` are those of the first convolution and of the separable ones behind it; ``width``: the
    factor alpha on all widths.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        widths: tuple[int, ...] = WIDTHS,
        strides: tuple[int, ...] = STRIDES,
        side: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes, self.width, self.widths, self.strides = num_classes, width, widths, strides
        self.side, self.in_channels = side, in_channels
        channels = [max(LEAST, int(n * width)) for n in widths]  # Eq. 6: alpha M, alpha N
        layers = convolution(in_channels, channels[0], 3, strides[0])
        for inputs, outputs, stride in zip(channels, channels[1:], strides[1:], strict=False):
            layers += convolution(inputs, inputs, 3, stride, groups=inputs)  # Eq. 3
            layers += convolution(inputs, outputs, 1)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        if self.side is not None:  # Eq. 7: rho
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        return self.classifier(self.pool(self.features(x)).flatten(1))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, its BN and a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def strides(side: int) -> tuple[int, ...]:
    """The strides for images of ``side`` pixels: of the paper's, the first are 1 until the last map has 2 pixels."""
    found = list(STRIDES)
    while 2 in found and math.ceil(side / math.prod(found)) < LAST_MAP:
        found[found.index(2)] = 1
    return tuple(found)
