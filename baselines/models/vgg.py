"""VGG-16 for 32x32 images, in the lineage of Li et al. (ICLR 2017), GAL and HRank.

13 convolutions with bias, each followed by BN and ReLU, four max-pools, an average-pool over the last 2x2 map, a
512-unit fully connected layer with BN, and the classifier: 14,991,946 params and 313,463,808 MACs for 10 classes.
With ``hidden=FC`` the two fully connected layers of the original VGG-16: 33,646,666 params and 332,111,872 MACs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
FC = (4096, 4096)


class VGG(nn.Module):
    """``features`` (convolution, BN, ReLU, max-pool in order), average-pool, then ``classifier``.

    Input (N, in_channels, 32, 32), output (N, num_classes). ``width`` scales every channel count. ``hidden``: the
    units of one fully connected layer with BN, or those of several with ReLU and dropout, as in VGG's own classifier.
    """

    def __init__(
        self,
        config: Sequence[int | str] = VGG16,
        num_classes: int = 10,
        width: float = 1.0,
        hidden: int | Sequence[int] = 512,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for item in config:
            if item == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            out = max(1, int(item * width))
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        behind: list[nn.Module] = []
        for units in (hidden,) if isinstance(hidden, int) else hidden:
            out = max(1, int(units * width))
            between = [nn.BatchNorm1d(out), nn.ReLU(inplace=True)]
            if not isinstance(hidden, int):
                between = [nn.ReLU(inplace=True), nn.Dropout()]
            behind += [nn.Linear(channels, out), *between]
            channels = out
        self.classifier = nn.Sequential(*behind, nn.Linear(channels, num_classes))
        initialise(self)
        if not isinstance(hidden, int):  # without BN: 0.01 is too little for narrow layers, He's too much for wide ones
            for layer in behind[::3]:
                nn.init.normal_(layer.weight, 0, (3 * layer.in_features) ** -0.5)  # torch's deviation, not uniform

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def initialise(model: nn.Module) -> None:
    """He initialisation (fan-out) of convolutions, N(0, 0.01) of linear layers, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
