"""An Entropy-based Pruning Method for CNN Compression.

J.-H. Luo, J. Wu. arXiv 2017, https://arxiv.org/abs/1706.05791.

Idea: average each feature map over its pixels; a filter whose averages hardly vary from image to image carries little
information. The entropy of their histogram ranks the filters of a layer; drop the lowest, fine-tune briefly, go on to
the next layer, and train for long only after the last.

Of VGG-16 the paper, as recalled, halves the first ten convolutions and replaces the fully connected part by global
average pooling; recounted, such a net has 16.62 times fewer parameters and 3.31 times fewer MACs (printed: 16.64 and
3.3). The VGG-16 nets of this project have no such part to replace. Of a bottleneck the paper prunes the first two
convolutions and leaves the last, which an addition couples. So do ``ratio`` and ``macs_reduction`` unless ``stream`` is
set; then, or with rates of their own in ``ratios``, the coupled convolutions of ResNet-50 lose channels together by one
common score, the average of their entropies, and CIFAR ResNets have the filters of their stream zeroed.

Deviations
- Averages are taken behind the ReLU (behind the addition, where there is one), over training images.
- 100 bins span the range of each filter's averages; the number of bins is recalled from the paper, not read again.
- 1,000 images in all; the paper takes, as recalled, about 10 of each of ImageNet's classes.
- One epoch follows each layer, where the paper gives one or two, and 40 the last, where it says many; the schedule is
  the baseline's from 1e-3. A layer that loses nothing gets no epoch.
- The rates behind the paper's ResNet-50 are not known here: its recipe removes the printed share of MACs at one rate
  for all convolutions off the residual stream.
- The halving of VGG-16's first ten convolutions also serves the CIFAR and MNIST nets; ResNet-56 takes the same half.
- The rates behind the survey's row are not known here: its recipe removes the printed share of parameters at one rate.
- ``macs_reduction``, ``stream`` and the one-shot recipes are not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Method, Paper, Reported
from methods.kit import features, surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Layer

VGG16 = (0.5,) * 10 + (0.0,) * 3
OWN = {
    "vgg16_mnist5k": {"ratios": VGG16},
    "vgg16_cifar10": {"ratios": VGG16},
    "resnet56_cifar10": {"ratio": 0.5},
    "resnet56_cifar100": {"ratio": 0.5},
    "resnet50_imagenette": {"macs_reduction": 0.351},
}


@dataclass
class Entropy(Method):
    """Removes the filters whose average activations have the lowest entropy over ``images`` training images.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one rate), ``ratio`` (one for all) and
    ``ratios`` (one per convolution) counts; with none of them the rate is 0.5. One rate leaves convolutions that an
    addition couples whole unless ``stream`` is set. ``layerwise``: score and prune layer by layer with ``layer_epochs``
    of fine-tuning after each but the last, else score and prune all at once; ``epochs`` follow the end of pruning.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    stream: bool = False
    bins: int = 100
    images: int = 1000
    layerwise: bool = True
    layer_epochs: float = 1.0
    epochs: float = 40.0
    lr: float = 1e-3

    paper: ClassVar[Paper] = Paper(
        title="An Entropy-based Pruning Method for CNN Compression",
        authors="J.-H. Luo, J. Wu",
        venue="arXiv 2017",
        url="https://arxiv.org/abs/1706.05791",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **OWN,
        **{f"{baseline}/oneshot": {**rates, "layerwise": False} for baseline, rates in OWN.items()},
        **{f"{baseline}/macs{p}": {"macs_reduction": p / 100} for baseline in OWN for p in (30, 50, 70)},
        "vgg16_cifar10/survey": {"ratio": 0.247},
        "resnet50_imagenet": {"macs_reduction": 0.351},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="ResNet-50, 1.54x and 1.47x",
            source="abstract (speed-up and compression; about 1 % lower top-5)", params_reduction=32.0,
            macs_reduction=35.1, verified="read in the abstract; reductions computed from the two factors",
        ),
        Reported(
            baseline="vgg16_cifar10", recipe="vgg16_cifar10/survey", label="entropy-based",
            source="Table 4 of Xu, Li, Yuan, J. Zhejiang Univ. (Eng. Sci.) 57(3), 2023", delta=-2.06,
            params_reduction=43.0, verified="read in that paper, which does not say how many filters each layer loses",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Layer by layer: entropies of its filters in the net as it is now, the lowest go, fine-tune."""
        layers = surgery.layers(model, task.example)
        self._check()
        rates = (self.ratio, self.ratios, self.macs_reduction)
        left, clamped = surgery.widths(model, task.example, layers, *rates, stream=self.stream)
        task.report(clamped=clamped, kept=left)
        parts = self._parts([name for name in left if left[name] < layers[name].width], layers)
        total = self.layer_epochs * (len(parts) - 1) + self.epochs
        for number, part in enumerate(parts, 1):
            scores = entropies(model, task.example, part, task.batches(self.images), self.bins)
            scores = surgery.couple(scores, layers)
            shares = [1 - left[name] / layers[name].width for name in part]
            model = surgery.remove(model, task.example, surgery.select(scores, shares, "keep")[0])
            stream = any(layers[name].coupled for name in left)
            hold = surgery.hold(model, task.example) if stream else None  # zeroed filters stay zero after every step
            epochs = self.layer_epochs if number < len(parts) else self.epochs
            task.train(model, epochs, of=total, lr=self.lr, after_step=hold)
        return model

    def _check(self) -> None:
        """UserError for hyper-parameters that give no histogram."""
        if self.images < 1 or self.bins < 2:
            raise UserError(
                f"images={self.images} with bins={self.bins} gives no histogram: take an image and two bins at least."
            )

    def _parts(self, names: list[str], layers: Mapping[str, Layer]) -> list[list[str]]:
        """What is scored and pruned at once, in network order; layers that share their channels go with their first."""
        if not self.layerwise:
            return [names] if names else []
        parts: dict[str, list[str]] = {}
        for name in names:
            layer = layers[name]
            parts.setdefault(name if layer.shared else layer.group, []).append(name)
        return list(parts.values())


def entropies(
    model: nn.Module,
    example: torch.Tensor,
    names: Iterable[str],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    bins: int,
) -> dict[str, torch.Tensor]:
    """Entropy of every filter of the convolutions ``names`` over the images of ``batches``: name -> (C,) float64."""
    pooled: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def see(readers: list[str], maps: torch.Tensor) -> None:
        means = maps.double().mean((2, 3)).cpu()  # global average pooling: one row of M per image
        for name in readers:
            pooled[name].append(means)

    features.stream(model, example, pooled, batches, see)
    return {name: entropy(torch.cat(rows), bins) for name, rows in pooled.items()}


def entropy(scores: torch.Tensor, bins: int) -> torch.Tensor:
    """Entropy of the histogram of each column of (n, c) over its own range, in ``bins`` equal bins: (c,) float64.

    The last bin includes its end; a column of one value has entropy 0. UserError for values that are not finite.
    """
    if not scores.isfinite().all():
        raise UserError("An activation is not finite: the network has diverged; train it again before ranking filters.")
    low, high = scores.aminmax(dim=0)
    place = (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny) * bins
    counts = torch.zeros(bins, scores.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, place.long().clamp(max=bins - 1), torch.ones_like(scores))
    return torch.special.entr(counts / len(scores)).sum(0)  # Eq. 1: H_j = - sum_k p_k log p_k
