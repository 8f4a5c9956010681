"""Channel Pruning for Accelerating Very Deep Neural Networks.

Y. He, X. Zhang, J. Sun. ICCV 2017, https://arxiv.org/abs/1707.06168.

Idea: let LASSO choose the input channels from which a layer's output can be rebuilt, rebuild it by least squares on
those, and go through the net layer by layer, with inputs from the pruned net and targets from the dense one, so that
each layer makes up for the errors of those before it.

The penalty rises until few enough channels are left, and the weights are solved for once, at the end, as the paper says
it does in practice. Outputs are meant behind their batch normalisation, which the authors' code merges likewise.

In residual nets only convolutions inside of blocks lose filters, and their channels are really gone. What an addition
couples (a stage's shared channels: in ResNet-56 the stem and each block's second convolution, in ResNet-50 each block's
third one and the projections) stays whole; a rate above 0 there is an error.

- The last convolution of a branch (ResNet-56's second ones, ResNet-50's third ones) has the paper's target Y1 - Y1' +
  Y2, so that the sum of shortcut and branch is rebuilt.
- The first convolution of a branch reads the whole stream. The paper puts a sampler before it, which hands on some of
  the shared channels only.
- ResNet-50's stem is not coupled: ``ratio`` and ``macs_reduction`` prune it and refit both layers that read it.

Deviations
- No sampler before a branch (see above), so that a residual net saves fewer MACs at the paper's widths: 22.8 % of
  ResNet-50's at those that the authors released (``released``). The recipes for 2x save half of them, at one rate.
- The count of channels is met exactly, where the authors' code stops within 10 % above it.
- LASSO sees all samples, through their sums of products; the authors' code draws at most 400 for it.
- Each output has an intercept, which goes into the bias or the running mean of the batch normalisation; Eq. 1 has none.
- Where least squares has many solutions, the one nearest to the present weights is taken.
- Schedule, batch size, momentum and weight decay are the baseline's, from the paper's learning rate down (cosine); the
  authors' code keeps it constant, without weight decay.
- Images are drawn at random, 1,000 of them unless a recipe says otherwise; the paper takes 5,000 of ImageNet.
- CIFAR's VGG-16 gets the widths of the authors' 5x net for ImageNet; rates for CIFAR nets are not published.
- Spatial and channel decomposition, which the paper combines with this ("3C"), are other methods.
- ``ratio``, and ``macs_reduction`` other than 0.5, are not in the paper.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.task import seed_of
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import reconstruct, surgery
from methods.kit.reconstruct import Moments, Output

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Layer

STEPS, ROUNDS, TOLERANCE = 50, 10_000, 1e-7  # bisections of the penalty; sweeps and relative accuracy of each


def rates(kept: Iterable[int], widths: Iterable[int]) -> tuple[float, ...]:
    """The pruning ratios that leave ``kept`` of ``widths`` filters."""
    return tuple(1 - left / width for left, width in zip(kept, widths, strict=True))


def resnet50_rates(*stages: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Rates of ResNet-50's 53 convolutions from the filters that stay in the first two of each block of each stage."""
    found = [0.0]  # the stem
    for width, blocks in zip((64, 128, 256, 512), stages, strict=True):
        found += [0.0, *(rate for kept in blocks for rate in (*rates(kept, (width, width)), 0.0))]  # projection first
    return tuple(found)


VGG16_5X = rates(
    (24, 22, 41, 51, 108, 89, 111, 184, 276, 228, 512, 512, 512),
    (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
)
RESNET50_2X = resnet50_rates(
    ((64, 55), (51, 39), (50, 37)),
    ((128, 106), (105, 72), (105, 72), (128, 110)),
    ((256, 225), (209, 147), (204, 158), (212, 155), (211, 148), (256, 213)),
    ((512, 433), (512, 437), (512, 440)),
)
FIELDS = {
    "vgg16_mnist5k": {},
    "vgg16_cifar10": {},
    "resnet56_cifar10": {},
    "resnet56_cifar100": {},
    "resnet50_imagenette": {},
    "resnet50_imagenet": {"images": 5000},
}


@dataclass
class ChannelPruning(Method):
    """Chooses input channels by LASSO, layer by layer, refits what reads them by least squares, then fine-tunes.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one ratio), ``ratio`` (one for all) and
    ``ratios`` (one per convolution) counts; with none of them the ratio is 0.5. ``images`` with ``locations`` samples
    each judge and refit a layer. Nothing is trained between layers.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    images: int = 1000
    locations: int = 10
    epochs: float = 10.0
    lr: float = 1e-5

    paper: ClassVar[Paper] = Paper(
        title="Channel Pruning for Accelerating Very Deep Neural Networks",
        authors="Y. He, X. Zhang, J. Sun",
        venue="ICCV 2017",
        url="https://arxiv.org/abs/1707.06168",
        code="https://github.com/ethanhe42/channel-pruning",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k": {"ratios": VGG16_5X},
        "vgg16_cifar10": {"ratios": VGG16_5X},
        "resnet56_cifar10": {"macs_reduction": 0.5},
        "resnet56_cifar100": {"macs_reduction": 0.5},
        "resnet50_imagenette": {"macs_reduction": 0.5},
        "resnet50_imagenette/released": {"ratios": RESNET50_2X},
        "resnet50_imagenet": {"macs_reduction": 0.5, "images": 5000},
        "resnet50_imagenet/released": {"ratios": RESNET50_2X, "images": 5000},
        **{
            f"{baseline}/macs{share}": {**fields, "macs_reduction": share / 100}
            for baseline, fields in FIELDS.items()
            for share in (30, 50, 70)
        },
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10", label="2x, enhanced", source="Table 7", top1=91.8,
            base_top1=92.8, macs_reduction=50.0, verified="quoted by SWP and in another project's README",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="2x, enhanced, fine-tuned",
            source="Table 5", top5=90.8, base_top5=92.2, macs_reduction=50.0, verified="README of the authors' code",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="2x as HRank quotes it",
            source="Table 6 of HRank (CVPR 2020)", top1=72.30, top5=90.80, macs=2.73e9,
            verified="README of MFMI repeats the row",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (Claim(
        "At equal rates and without retraining, choice and reconstruction by the output lose less than weight sums.",
        "Sec. 4.1, Fig. 4 (layer by layer)", Select("channel_pruning"), (Select("l1_filter"),),
        ("ratio", "ratios", "macs_reduction"), "after_compression", verified="recalled, not read again",
    ),)  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Sec. 3.2: layer by layer, choose inputs and refit against the dense net's outputs; then fine-tune."""
        reconstruct.check_samples(self.images, self.locations)
        dense = copy.deepcopy(model)
        layers = surgery.layers(model, task.example)
        widths, clamped = reconstruct.widths(model, task.example, layers, self.ratio, self.ratios, self.macs_reduction)
        task.report(clamped=clamped, kept=widths)
        keep = {}
        for name, width in widths.items():
            if width < layers[name].width:
                keep[name] = self._prune(model, dense, task, layers, name, width)
                surgery.mask(model, {name: keep[name]}, layers)
        model = surgery.remove(model, task.example, keep)
        task.train(model, self.epochs, lr=self.lr)
        return model

    def _prune(
        self, model: nn.Module, dense: nn.Module, task: Task, layers: Mapping[str, Layer], name: str, width: int
    ) -> torch.Tensor:
        """The mask of the ``width`` channels of a layer that stay; the kernels that read them are refitted."""
        fits = []
        for reader in reconstruct.readers(layers[name]):
            output, moments = Output(model, layers, reader), Moments()
            generator = torch.Generator().manual_seed(seed_of(task.seed, f"channel_pruning {name} {reader.name}"))
            batches = task.batches(self.images)
            for read, gap in output.gaps(dense, task.example, batches, self.locations, generator):
                moments.add(read.flatten(1), gap)
            fits.append((moments, output))
        gram, products, squares = (sum(parts) for parts in zip(*(by_channel(*fit) for fit in fits), strict=True))
        norm = torch.where(squares > 0, squares.sqrt(), 1)
        gram, products = gram / torch.outer(norm, norm), products / norm  # Eq. 2: ||W_i||_F = 1
        coefficients, _ = lasso(gram, products, moments.samples, width)
        keep = strongest(coefficients, gram, products, width)
        for moments, output in fits:
            output.add(*refit(moments, output.weight, keep.to(output.weight.device), output.intercept))
        return keep


def by_channel(moments: Moments, output: Output) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With Z_i = X_i W_i^T and the target Y: Z^T Z (C, C), Z^T Y (C,), and ||W_i||^2 (C,)."""
    xx, xy = moments.products(output.intercept)
    outputs, count, size = output.weight.shape
    flat = output.weight.flatten(1)
    gram = (xx * (flat.T @ flat)).view(count, size, count, size).sum((1, 3))
    target = xx @ flat.T + xy  # X^T Y: what the layer gives, and what it lacks
    return gram, (target * flat.T).view(count, size * outputs).sum(1), output.weight.square().sum((0, 2))


def refit(
    moments: Moments, weight: torch.Tensor, keep: torch.Tensor, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4: what to add to ``weight`` (outputs, C, K) on the channels in ``keep``, and to the outputs (outputs,).

    ``moments`` has what is read of all channels and what the outputs lack with ``weight`` on all of them.
    """
    outputs, _, size = weight.shape
    kept = keep.repeat_interleave(size)
    xx, xy = moments.products(intercept)
    lost = weight[:, ~keep].flatten(1).T
    found = reconstruct.solve(xx[kept][:, kept], xx[kept][:, ~kept] @ lost + xy[kept])
    change = torch.zeros_like(weight)
    change[:, keep] = found.T.reshape(outputs, -1, size)
    shift = (moments.y + moments.x[~kept] @ lost - moments.x[kept] @ found) / moments.samples
    return change, shift * intercept


def lasso(gram: torch.Tensor, products: torch.Tensor, samples: int, count: int) -> tuple[np.ndarray, float]:
    """Eq. 3: the coefficients (C,) under the lowest penalty found that leaves at most ``count`` of them, and it.

    They minimise 1/(2 ``samples``) ||Y - Z b||^2 + penalty ||b||_1, with ``gram`` = Z^T Z and ``products`` = Z^T Y.
    """
    from sklearn.linear_model import Lasso

    values, vectors = np.linalg.eigh(gram.cpu().numpy())
    real = values > reconstruct.ROUNDING * max(values[-1], 0)
    root, vectors, products = np.sqrt(values[real]), vectors[:, real], products.cpu().numpy()
    # At most C rows that have the same products as all samples, weighted for the solver's 1/(2 rows)
    unit = np.sqrt(len(root) / samples)
    rows, target = unit * root[:, None] * vectors.T, unit * (vectors.T @ products) / root
    solver = Lasso(fit_intercept=False, warm_start=True, tol=TOLERANCE, max_iter=ROUNDS)
    low, high, best = 0.0, np.abs(products).max() / samples, np.zeros(len(products))
    for _ in range(STEPS if high > 0 else 0):
        middle = (low + high) / 2
        found = solver.set_params(alpha=middle).fit(rows, target).coef_
        if np.count_nonzero(found) > count:
            low = middle
            continue
        high, best = middle, found.copy()
        if np.count_nonzero(found) == count:
            break
    return best, high


def strongest(coefficients: np.ndarray, gram: torch.Tensor, products: torch.Tensor, count: int) -> torch.Tensor:
    """The mask of ``count`` channels: all with a coefficient, then those that a lower penalty would let in next."""
    wanted = np.abs(products.cpu().numpy() - gram.cpu().numpy() @ coefficients)
    order = np.argsort(np.where(coefficients != 0, -np.inf, -wanted), kind="stable")
    keep = torch.zeros(len(order), dtype=torch.bool)
    keep[order[:count]] = True
    return keep
