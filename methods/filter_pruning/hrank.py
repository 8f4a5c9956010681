"""HRank: Filter Pruning using High-Rank Feature Map.

M. Lin, R. Ji, Y. Wang, Y. Zhang, B. Zhang, Y. Tian, L. Shao. CVPR 2020, https://arxiv.org/abs/2002.10179.

Idea: the rank of a filter's feature map hardly depends on the image, and maps of low rank carry little information; so
measure the mean rank over a few images on the trained net, once, and drop the filters with the lowest, layer by layer.

The rates are those of the authors' README, one per convolution; the last of VGG-16's 13 is 0, because their code leaves
that convolution whole. ResNet-50's are in the order stem, then per stage projection, conv1, conv2, conv3 of
each block. A layer of n filters loses int(rate * n). The authors count a filter's own weights only, not the channels
that the next layer no longer reads (rule ``hrank_out_only``); here both are gone.

Deviations
- The accuracy is the last epoch's; the authors' code goes on from each layer's epoch with the best test accuracy.
- Schedule, batch size, momentum and weight decay are the baseline's, from the paper's learning rate down (cosine); the
  paper divides it by 10 after 5 and 10 of 30 epochs, with a weight decay of 5e-4 (ImageNet 2e-4).
- Filters are removed before their layer's fine-tuning, where the authors zero them (BN included) after every step: the
  same function, trained faster. Only filters on a residual stream are zeroed so, and for good in CIFAR ResNets.
- ResNet-50's convolutions that add up share one score, their mean, so that their channels can really go; the authors
  rank each by itself (a block's projection like its last convolution).
- Maps are read behind the ReLU everywhere; the authors' code reads behind the max-pool where one follows.
- The 500 images are plain; the authors' code takes 5 batches of 128 augmented ones.
- A layer that loses no filter gets no fine-tuning of its own; ResNet-50 is fine-tuned once per block, as in the
  authors' code, where the paper says once per layer.
- The rates behind the printed rows HRank-1 and HRank-3 are not published: those recipes remove the printed share of
  MACs, counted physically, at one rate for all layers off the residual stream.
- ``ratio``, ``macs_reduction`` and the one-shot recipes are not in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import features, surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Keep, Layer, Selection

DEFAULT_RATIO = 0.5
CHUNK = 2**20  # map entries in one batched decomposition
VGG16 = (0.95,) + (0.5,) * 6 + (0.9,) * 4 + (0.8, 0.0)
RESNET56 = (0.1,) + (0.6,) * 35 + (0.0,) * 2 + (0.6,) * 6 + (0.4,) * 3 + (0.1, 0.4) * 4
RESNET50 = (0.2,) + (0.8,) * 23 + (0.55,) * 19 + (0.45,) * 10
READ = "a third party's copy of the table (README of CORING)"
README = f"{READ} and the authors' README"
RECOUNTED = f"{README}; params and MACs recounted from the rates: exact"


@dataclass
class HRank(Method):
    """Removes the filters whose feature maps have the lowest mean rank over ``images`` training images.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one rate), ``ratio`` (one for all) and
    ``ratios`` (one per convolution) counts; with none of them the rate is 0.5. One rate leaves convolutions that an
    addition couples whole unless ``stream`` is set. ``layerwise``: ``epochs`` of fine-tuning after each layer
    (``blockwise``: after each residual block), else prune everything at once and fine-tune for ``epochs``.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    stream: bool = False
    images: int = 500
    layerwise: bool = True
    blockwise: bool = False
    epochs: float = 30.0
    lr: float = 0.01

    paper: ClassVar[Paper] = Paper(
        title="HRank: Filter Pruning using High-Rank Feature Map",
        authors="M. Lin, R. Ji, Y. Wang, Y. Zhang, B. Zhang, Y. Tian, L. Shao",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/2002.10179",
        code="https://github.com/lmbxmu/HRank",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k": {"ratios": VGG16},
        "vgg16_mnist5k/oneshot": {"ratios": VGG16, "layerwise": False},
        "vgg16_cifar10": {"ratios": VGG16},
        "vgg16_cifar10/oneshot": {"ratios": VGG16, "layerwise": False},
        "vgg16_cifar10/HRank-1": {"macs_reduction": 0.535},
        "vgg16_cifar10/HRank-3": {"macs_reduction": 0.765},
        "resnet56_cifar10": {"ratios": RESNET56},
        "resnet56_cifar10/oneshot": {"ratios": RESNET56, "layerwise": False},
        "resnet56_cifar10/HRank-1": {"macs_reduction": 0.293},
        "resnet56_cifar10/HRank-3": {"macs_reduction": 0.741},
        "resnet56_cifar100": {"ratios": RESNET56},
        "resnet56_cifar100/oneshot": {"ratios": RESNET56, "layerwise": False},
        "resnet50_imagenette": {"ratios": RESNET50, "blockwise": True},
        "resnet50_imagenet": {"ratios": RESNET50, "blockwise": True},
        "resnet50_imagenet/HRank-1": {"macs_reduction": 0.438, "blockwise": True},
        "resnet50_imagenet/HRank-3": {"macs_reduction": 0.76, "blockwise": True},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="vgg16_cifar10", recipe="vgg16_cifar10/HRank-1", label="HRank-1", source="Table 1", top1=93.43,
            base_top1=93.96, params=2.51e6, macs=1.4561e8, params_reduction=82.9, macs_reduction=53.5,
            rule="hrank_out_only", verified=READ,
        ),
        Reported(
            baseline="vgg16_cifar10", recipe="vgg16_cifar10", label="HRank-2", source="Table 1", top1=92.34,
            base_top1=93.96, params=2.64e6, macs=1.0861e8, params_reduction=82.1, macs_reduction=65.3,
            rule="hrank_out_only", verified=f"{README}; its rates give 4.81M and 116.63M under this rule",
        ),
        Reported(
            baseline="vgg16_cifar10", recipe="vgg16_cifar10/HRank-3", label="HRank-3", source="Table 1", top1=91.23,
            base_top1=93.96, params=1.78e6, macs=7.37e7, params_reduction=92.0, macs_reduction=76.5,
            rule="hrank_out_only", verified=READ,
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10/HRank-1", label="HRank-1", source="Table 2",
            top1=93.52, base_top1=93.26, params=7.1e5, macs=8.872e7, params_reduction=16.8, macs_reduction=29.3,
            rule="hrank_out_only", verified=READ,
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10", label="HRank-2", source="Table 2", top1=93.17,
            base_top1=93.26, params=4.9e5, macs=6.272e7, params_reduction=42.4, macs_reduction=50.0,
            rule="hrank_out_only", verified=RECOUNTED,
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10/HRank-3", label="HRank-3", source="Table 2",
            top1=90.72, base_top1=93.26, params=2.7e5, macs=3.252e7, params_reduction=68.1, macs_reduction=74.1,
            rule="hrank_out_only", verified=READ,
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/HRank-1", label="HRank-1", source="Table 6",
            top1=74.98, top5=92.33, base_top1=76.15, base_top5=92.87, params=1.615e7, macs=2.30e9,
            rule="hrank_out_only", verified=f"{READ} and of MFMI",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="HRank-2", source="Table 6", top1=71.98,
            top5=91.01, base_top1=76.15, base_top5=92.87, params=1.377e7, macs=1.55e9,
            rule="hrank_out_only", verified=RECOUNTED,
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/HRank-3", label="HRank-3", source="Table 6",
            top1=69.10, top5=89.58, base_top1=76.15, base_top5=92.87, params=8.27e6, macs=9.8e8,
            rule="hrank_out_only", verified=f"{READ} and of MFMI",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "At equal rates, filters of high rank are worth more than filters drawn by lot.",
            "ablation on the variants of HRank (Sec. 4)", Select("hrank"),
            (Select("random_filter", settings={"scope": "layer"}),), ("ratio", "ratios", "macs_reduction"),
            verified="recalled, not read again",
        ),
        Claim(
            "At the same size, filters of high rank are worth more than those of large L1 norm.",
            "comparison with L1 in Tables 1 to 3", Select("hrank"), (Select("l1_filter"),), ("macs",),
            verified="recalled, not read again",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Rank all filters on the trained net, once; then, layer by layer, prune it and fine-tune the whole net."""
        layers = surgery.layers(model, task.example)
        keep, clamped = self._choose(model, task, layers)
        task.report(clamped=clamped, kept={name: int(kept.sum()) for name, kept in keep.items()})
        stream = {name: kept for name, kept in keep.items() if layers[name].coupled}
        parts = self._parts(keep)
        for part in parts:
            inner = {name: kept for name, kept in part.items() if name not in stream}
            if inner:
                model = surgery.remove(model, task.example, inner)
            surgery.mask(model, {name: kept for name, kept in part.items() if name in stream}, layers)
            hold = surgery.hold(model, task.example) if stream else None  # zeroed filters stay zero after every step
            task.train(model, self.epochs, of=self.epochs * len(parts), lr=self.lr, after_step=hold)
        return surgery.remove(model, task.example, stream) if stream else model

    def _choose(self, model: nn.Module, task: Task, layers: Mapping[str, Layer]) -> Selection:
        """The filters to keep, by whichever of the three ways of giving rates is set."""
        if self.images < 1:
            raise UserError(f"images={self.images} leaves nothing to rank on: give at least 1; the paper takes 500.")
        if self.macs_reduction is None and self.ratio is None and self.ratios:
            wanted = surgery.rates(self.ratios, layers)
        else:
            free = [name for name, layer in layers.items() if self.stream or not layer.coupled]
            wanted = surgery.rates(DEFAULT_RATIO if self.ratio is None else self.ratio, free)
        names = [name for name, rate in wanted.items() if rate > 0 or self.macs_reduction is not None]
        if not names:
            return {}, []
        # The mean over g images of the ranks of a filter's maps: its score, from the unpruned net
        scores = features.channel_means(model, task.example, names, task.batches(self.images), ranks)
        scores = surgery.couple(scores, layers)
        if self.macs_reduction is not None:
            return surgery.macs_budget(model, task.example, scores, self.macs_reduction)
        return surgery.select(scores, [wanted[name] for name in names])

    def _parts(self, keep: Keep) -> list[Keep]:
        """What is pruned before each fine-tuning, in network order; a block is the first two parts of a name."""
        losing = {name: kept for name, kept in keep.items() if not kept.all()}
        if not self.layerwise:
            return [losing]
        groups = itertools.groupby(losing, lambda name: name.split(".")[:2] if self.blockwise else name)
        return [{name: losing[name] for name in names} for _, names in groups]


@torch.no_grad()
def ranks(maps: torch.Tensor) -> torch.Tensor:
    """Rank of every H x W map of (N, C, H, W), as ``numpy.linalg.matrix_rank`` has it: (N, C) int64.

    A singular value counts above max(H, W) * eps of float32 * the largest one. UserError for maps that are not finite.
    """
    if not maps.isfinite().all():
        raise UserError("A feature map is not finite: the network has diverged; train it again before ranking filters.")
    flat = maps.float().flatten(0, 1)
    if flat.is_cuda and max(flat.shape[1:]) > 32:  # the GPU's batched decomposition ends at 32 x 32
        flat = flat.to("cpu")
    result = flat.flatten(1).any(1).long()  # a map of zeros has rank 0, one of a single row or column else 1
    if min(flat.shape[1:]) > 1:
        parts = result.nonzero().flatten().split(max(1, CHUNK // flat[0].numel()))
        with ThreadPoolExecutor(1 if flat.is_cuda else torch.get_num_threads()) as pool:
            found = pool.map(lambda part: torch.linalg.matrix_rank(flat[part]), parts)
            for part, values in zip(parts, found, strict=True):
                result[part] = values
    return result.view(maps.shape[:2]).to(maps.device)
