"""ConvNets of the binarization papers for 32x32 images: convolution, max-pool where there is one, BN, ReLU.

Pooling stands before BN, as in the code of BinaryConnect, BNN and LQ-Nets: of signs behind a BN a maximum is +1 nearly
everywhere. Convolutions and hidden layers have no bias; the classifier has one and no BN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from baselines.models.vgg import initialise

CONFIG = (128, 128, "M", 256, 256, "M", 512, 512, "M")


class ConvNet(nn.Module):
    """``features``: 3x3 convolutions, "M" pools what the one before gives; ``classifier``: ``hidden`` layers, logits.

    Input (N, 3, side, side), output (N, num_classes). ``width`` scales every channel and unit count.
    """

    def __init__(
        self,
        config: Sequence[int | str] = CONFIG,
        num_classes: int = 10,
        width: float = 1.0,
        hidden: Sequence[int] = (),
        side: int = 32,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item, following in zip(config, (*config[1:], None), strict=True):
            if item == "M":
                continue
            out = max(1, int(item * width))
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=False))
            if following == "M":
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        layers, inputs = [], channels * side**2
        for item in hidden:
            units = max(1, int(item * width))
            layers += [nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
            inputs = units
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, num_classes))
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        return self.classifier(self.features(x).flatten(1))


def bnn_convnet(num_classes: int = 10, width: float = 1.0) -> ConvNet:
    """The ConvNet of BinaryConnect and BNN: 14,029,706 params and 616,966,144 MACs for 10 classes."""
    return ConvNet(CONFIG, num_classes, width, hidden=(1024, 1024))


def vgg_small(num_classes: int = 10, width: float = 1.0) -> ConvNet:
    """VGG-small of LQ-Nets, one linear layer behind the last map: 4,660,106 params and 607,600,640 MACs."""
    return ConvNet(CONFIG, num_classes, width)
