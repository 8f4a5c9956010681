"""ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression.

J.-H. Luo, J. Wu, W. Lin. ICCV 2017, https://arxiv.org/abs/1707.06342.

Idea: the next layer shows whether a filter can go. Remove the channels whose contributions to the next layer's output
add up to the least, found greedily, rescale the others by least squares, fine-tune, and go on to the next layer.

The squared error of removing a set is a sum over pairs of channels, so a greedy step costs one addition per remaining
channel, however many samples there are; it chooses what computing every error anew would choose.

In residual nets only convolutions inside of blocks lose filters, as in the paper, and their channels are really gone.
A stage's shared channels, which an addition couples (in ResNet-56 the stem and each block's second convolution, in
ResNet-50 each block's third one and the projections), stay whole; a rate above 0 there is an error. ResNet-50's stem is
not coupled: ``ratio`` and ``macs_reduction`` prune it, by samples of both layers that read it, where the paper and the
recipes leave it whole.

Deviations
- Schedule, batch size, momentum and weight decay are the baseline's, from the paper's learning rate down (cosine),
  between layers too; the paper keeps it constant there and divides it by 10 twice in the last fine-tuning.
- The authors' code fine-tunes for two epochs, not one, behind conv1_2, conv2_2 and conv3_3 of VGG-16.
- ResNet-50's epochs and learning rates are those of the authors' code for the journal version of the paper.
- Images are drawn from the whole training set, 1,000 of them unless a recipe says otherwise; the paper takes 10 of
  each class, which makes 10,000 on ImageNet.
- Where least squares has many solutions, the scales nearest to 1 are taken; the authors' code inverts X^T X.
- The paper prunes ImageNet nets only: CIFAR's VGG-16 gets the rates of ThiNet-Conv (ThiNet-Tiny) for its convolutions,
  and ResNet-56 loses half of the filters inside of each block.
- ``macs_reduction`` and the one-shot recipes are not in the paper.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.task import seed_of
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import reconstruct, surgery
from methods.kit.reconstruct import Moments

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.reconstruct import Reader
    from methods.kit.surgery import Layer

VGG16_CONV = (0.5,) * 10 + (0.0,) * 3  # ThiNet-Conv; ThiNet-GAP on the net without fully connected layers
VGG16_TINY = (0.75,) * 12 + (0.5,)  # ThiNet-Tiny: a quarter of each width, half of conv5_3's
README = "README of the authors' code"
RECOUNTED = "size recounted from the structure: exact with the stride in the first 1x1"


def resnet50_rates(rate: float) -> tuple[float, ...]:
    """``rate`` for the first two convolutions of ResNet-50's blocks, 0 for the other 21 of 53; projections go first."""
    return (0.0, *(r for blocks in (3, 4, 6, 3) for r in (0.0, *(rate, rate, 0.0) * blocks)))


BLOCKWISE = {"blockwise": True, "lr": 1e-4, "last_epochs": 9.0}  # ResNet-50: a block at a time
OPERATING_POINTS = {
    "vgg16_mnist5k": {},
    "vgg16_cifar10": {},
    "resnet56_cifar10": {},
    "resnet56_cifar100": {},
    "resnet50_imagenette": BLOCKWISE,
    "resnet50_imagenet": {"images": 10_000, **BLOCKWISE},
}


@dataclass
class ThiNet(Method):
    """Removes the channels that the next layer misses least, layer by layer, rescales the others and fine-tunes.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one rate), ``ratio`` (one for all) and
    ``ratios`` (one per convolution) counts; with none of them the rate is 0.5. ``images`` with ``locations`` samples
    each judge a layer. ``layerwise``: ``epochs`` of fine-tuning after each layer (``blockwise``: after each residual
    block) and ``last_epochs`` after the last, else prune everything at once and fine-tune for ``last_epochs``.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    images: int = 1000
    locations: int = 10
    layerwise: bool = True
    blockwise: bool = False
    epochs: float = 1.0
    last_epochs: float = 12.0
    lr: float = 1e-3
    last_lr: float = 1e-3

    paper: ClassVar[Paper] = Paper(
        title="ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression",
        authors="J.-H. Luo, J. Wu, W. Lin",
        venue="ICCV 2017",
        url="https://arxiv.org/abs/1707.06342",
        code="https://github.com/Roll920/ThiNet_Code",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k": {"ratios": VGG16_CONV},
        "vgg16_mnist5k/oneshot": {"ratios": VGG16_CONV, "layerwise": False},
        "vgg16_mnist5k/tiny": {"ratios": VGG16_TINY},
        "vgg16_cifar10": {"ratios": VGG16_CONV},
        "vgg16_cifar10/oneshot": {"ratios": VGG16_CONV, "layerwise": False},
        "vgg16_cifar10/tiny": {"ratios": VGG16_TINY},
        "resnet56_cifar10": {"ratio": 0.5},
        "resnet56_cifar10/oneshot": {"ratio": 0.5, "layerwise": False},
        "resnet56_cifar100": {"ratio": 0.5},
        "resnet56_cifar100/oneshot": {"ratio": 0.5, "layerwise": False},
        "resnet50_imagenette": {"ratios": resnet50_rates(0.5), **BLOCKWISE},
        "resnet50_imagenette/oneshot": {"ratios": resnet50_rates(0.5), "layerwise": False, "last_epochs": 9.0},
        "resnet50_imagenet": {"ratios": resnet50_rates(0.5), "images": 10_000, **BLOCKWISE},
        "resnet50_imagenet/70": {"ratios": resnet50_rates(0.3), "images": 10_000, **BLOCKWISE},
        "resnet50_imagenet/30": {"ratios": resnet50_rates(0.7), "images": 10_000, **BLOCKWISE},
        **{
            f"{baseline}/macs{share}": {**fields, "macs_reduction": share / 100}
            for baseline, fields in OPERATING_POINTS.items()
            for share in (30, 50, 70)
        },
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/70", label="ThiNet-70", source="Table 3",
            top1=72.04, top5=90.67, base_top1=72.88, base_top5=91.14, params=1.694e7, macs=4.88e9, rule="two_per_mac",
            verified=f"{README}, and quoted by two later papers; {RECOUNTED}",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="ThiNet-50", source="Table 3",
            top1=71.01, top5=90.02, base_top1=72.88, base_top5=91.14, params=1.238e7, macs=3.41e9, rule="two_per_mac",
            verified=f"quoted by two later papers; {RECOUNTED}",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/30", label="ThiNet-30", source="Table 3",
            top1=68.42, top5=88.30, base_top1=72.88, base_top5=91.14, params=8.66e6, macs=2.20e9, rule="two_per_mac",
            verified=f"quoted by two later papers; {RECOUNTED}",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "At equal rates, the next layer's output chooses better filters than weight sums, APoZ or the lot.",
            "Sec. 4.1, Fig. 4", Select("thinet"),
            (Select("l1_filter"), Select("apoz"), Select("random_filter", settings={"scope": "layer"})),
            ("ratio", "ratios", "macs_reduction"), verified="recalled, not read again",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Layer by layer: choose by what the next layer reads in the net as it is now, rescale, remove, fine-tune."""
        reconstruct.check_samples(self.images, self.locations)
        layers = surgery.layers(model, task.example)
        widths, clamped = reconstruct.widths(model, task.example, layers, self.ratio, self.ratios, self.macs_reduction)
        task.report(clamped=clamped, kept=widths)
        parts = self._parts([name for name, width in widths.items() if width < layers[name].width])
        total = self.epochs * (len(parts) - 1) + self.last_epochs
        for part in parts:
            layers, keep = surgery.layers(model, task.example), {}
            for name in part:
                keep[name] = self._prune(model, task, layers[name], widths[name])
                surgery.mask(model, {name: keep[name]}, layers)
            model = surgery.remove(model, task.example, keep)
            epochs, lr = (self.last_epochs, self.last_lr) if part is parts[-1] else (self.epochs, self.lr)
            task.train(model, epochs, of=total, lr=lr)
        return model

    def _parts(self, losing: list[str]) -> list[list[str]]:
        """The layers pruned before each fine-tuning, in network order; a block is the first two parts of a name."""
        if not self.layerwise or not losing:
            return [losing]
        groups = itertools.groupby(losing, lambda name: name.split(".")[:2] if self.blockwise else name)
        return [list(names) for _, names in groups]

    def _prune(self, model: nn.Module, task: Task, layer: Layer, width: int) -> torch.Tensor:
        """The mask of the ``width`` channels of ``layer`` that stay; the kernels that read them are rescaled."""
        found = {reader: self._contributions(model, task, reader, layer.name) for reader in reconstruct.readers(layer)}
        keep = torch.ones(layer.width, dtype=torch.bool)
        keep[greedy(sum(moments.xx for moments in found.values()), layer.width - width)] = False
        for reader, moments in found.items():
            weight = reader.part(reconstruct.kernels(model.get_submodule(reader.name)))
            reader.set(model, weight * scales(moments.xx, moments.xy, keep).to(weight)[:, None])
        return keep

    def _contributions(self, model: nn.Module, task: Task, reader: Reader, layer: str) -> Moments:
        """Of the channels' contributions to one random filter of ``reader`` at each random place, and of its output."""
        generator = torch.Generator().manual_seed(seed_of(task.seed, f"thinet {layer} {reader.name}"))
        filters, moments = reader.part(reconstruct.kernels(model.get_submodule(reader.name))), Moments()
        batches = task.batches(self.images)
        for ((patches, _),) in reconstruct.samples([model], reader.name, batches, self.locations, generator):
            chosen = torch.randint(len(filters), (len(patches),), generator=generator).to(filters.device)
            found = (reader.part(patches) * filters[chosen]).sum(2)  # Eq. 2
            moments.add(found, found.sum(1, keepdim=True))  # Eq. 3: the output, less the bias
        return moments


def greedy(gram: torch.Tensor, count: int) -> list[int]:
    """Algorithm 1: the ``count`` channels to remove, in the order in which they are found; of equals the lower index.

    Removing a set T leaves the error that is the sum of ``gram`` (C, C) over T x T (Eq. 6); a channel c adds
    gram[c, c] + 2 * sum of gram[t, c] over T to it. Each step looks at every remaining channel.
    """
    products = gram.cpu().numpy()
    added, removed = products.diagonal().copy(), []
    for _ in range(count):
        best = int(added.argmin())
        removed.append(best)
        added += 2 * products[:, best]
        added[best] = np.inf
    return removed


def scales(gram: torch.Tensor, output: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Eq. 7: the factors (C,) of the channels in ``keep`` that bring them nearest to the output; 1 elsewhere.

    ``output`` (C, 1) has each channel's product with the output, summed over the samples, as ``gram`` with each other.
    """
    keep = keep.to(gram.device)
    result = torch.ones(len(gram), dtype=gram.dtype, device=gram.device)
    present = gram[keep][:, keep]
    result[keep] += reconstruct.solve(present, output[keep] - present.sum(1, keepdim=True))[:, 0]
    return result
