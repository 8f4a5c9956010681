"""Two tiny nets for the contract checks: one residual, one plain with flatten -> linear."""

from __future__ import annotations

import torch
from torch import nn

from baselines.models.resnet_cifar import ResNetCifar


def tiny_resnet(num_classes: int = 4) -> ResNetCifar:
    """ResNet-8 with widths 8, 12, 16 on (N, 3, 16, 16)."""
    return ResNetCifar(8, num_classes, widths=(8, 12, 16))


class TinyPlain(nn.Module):
    """Two convolutions with BN, ReLU and max-pool, then flatten -> linear -> linear, on (N, 3, 16, 16)."""

    def __init__(self, num_classes: int = 4, channels: tuple[int, int] = (8, 12), hidden: int = 24) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(second * 16, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, 3, 16, 16)."""
        return self.classifier(self.features(x))
