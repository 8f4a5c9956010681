"""Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation.

E. Denton, W. Zaremba, J. Bruna, Y. LeCun, R. Fergus. NIPS 2014, https://arxiv.org/abs/1404.0736.

Idea: the weights of a trained net are nearly of low rank, so replace each layer by small ones whose product is near to
it, from the bottom up, and let the layers above make up for the error.

A fully connected layer becomes two, by truncated SVD. In the first convolution every filter keeps one colour, shared by
a cluster of filters: 1x1 to the colours, then a grouped convolution. In the others input and output channels are
clustered, and each of the G x H cells, a group of grouped convolutions, becomes 1x1 - kernel - 1x1: by two nested SVDs
(``conv`` "svd"), or as a sum of outer products, found greedily ("outer", with a depthwise kernel).

Deviations
- The paper replaces two convolutions and the FC layers; here it is every layer that then has fewer MACs and weights.
- A 1x1 convolution, which the paper's net has not, counts as fully connected.
- The paper sets ranks by hand. Here they keep one share of the energy in all layers: of the squared singular values (of
  a cell, those of both unfoldings), or of the squared norm for outer products; without the metric, in which the mean of
  the inputs would count most. Most recipes save half of the MACs (its convolutions do), LeNet-300-100 80 % (its FCs).
- The last linear layer stays dense unless ``classifier`` is set: above it nothing makes up for classes that are mixed.
- The number of clusters is the largest divisor of the channels up to the published one (6 colours; G = 48, H = 2 for
  outer products, and G = H = 2 for SVDs in the authors' code).
- Clusters lie around lines (the paper does not say how large its subspaces are), all channels are assigned at once to
  clusters of equal size (the authors' code: greedily), and a colour is its cluster's line, not the mean.
- Alternating least squares starts from the longest fibre; the authors' code starts from means.
- The covariance of Eq. 3 is E[x x^T] of the channels, the mean included, the same at every entry of the kernel and none
  between two: the root of the full one would mix both, and the factors could not be run as layers.
- The approximate Mahalanobis distance (Eq. 2) is left out: its weights, one for every entry, leave nothing of low rank.
- The training is the baseline's: the paper gives no settings (the authors' code: rates of 1e-4 to 1e-6, no BN).
- For VGG-16 on MNIST the rate was chosen on images held out of training.
- ``blockwise`` (a residual block at a time) and ``layerwise=false`` (all at once, nothing fixed) are not in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from baselines.errors import UserError
from baselines.task import Task, seed_of
from methods.base import Claim, Method, Paper, Select
from methods.kit import factor
from methods.kit.factor import Approximation, Layer

CHOICES = {"conv": ("svd", "outer"), "metric": ("data", "frobenius")}
LEAST = {"input_clusters": 1, "output_clusters": 1, "colours": 0, "images": 1}
HALF = {"macs_reduction": 0.5}
NETS = {
    "vgg16_mnist5k": {**HALF, "lr": 0.03},
    **dict.fromkeys(("vgg16_cifar10", "resnet56_cifar10", "resnet56_cifar100"), HALF),
    "resnet50_imagenette": {**HALF, "classifier": True, "blockwise": True, "images": 100, "lr": 0.001},
}
VARIANTS = {"": {}, "/oneshot": {"layerwise": False}, "/outer": {"conv": "outer", "input_clusters": 48}}
VARIANTS |= {f"/macs{share}": {"macs_reduction": share / 100} for share in (30, 50, 70)}


@dataclass
class SVD(Method):
    """Replaces layers by factors, from the first to the last, and fine-tunes what is above after each.

    The ranks come from ``macs_reduction`` (share of the MACs to save) or, where that is None, from ``energy`` (share to
    keep, one for all layers). ``conv``: "svd" or "outer"; ``colours`` = 0: the first convolution is like the others;
    ``classifier``: the last linear layer too; ``metric``: "data" (of ``images`` training images) or "frobenius". With
    ``layerwise`` ``epochs`` follow each layer (``blockwise``: residual block), else they follow all, replaced at once.
    """

    energy: float = 0.9
    macs_reduction: float | None = None
    conv: str = "svd"
    input_clusters: int = 2
    output_clusters: int = 2
    colours: int = 6
    classifier: bool = False
    metric: str = "data"
    images: int = 500
    layerwise: bool = True
    blockwise: bool = False
    epochs: float = 1.0
    lr: float = 0.01

    paper: ClassVar[Paper] = Paper(
        title="Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation",
        authors="E. Denton, W. Zaremba, J. Bruna, Y. LeCun, R. Fergus",
        venue="NIPS 2014", url="https://arxiv.org/abs/1404.0736",
    )  # fmt: skip
    recipes: ClassVar[dict[str, dict]] = {
        **{f"{name}{variant}": net | fields for name, net in NETS.items() for variant, fields in VARIANTS.items()},
        **dict.fromkeys(("vgg16fc_cifar10", "vgg16fc_mnist5k", "lenet5_mnist", "lenet5_mnist5k"), HALF),
        **{f"lenet300_{digits}": {"macs_reduction": 0.8} for digits in ("mnist", "mnist5k")},
    }
    claims: ClassVar[tuple[Claim, ...]] = (Claim(
        "At half of the cost accuracy stays within 1 %.", "abstract", Select("svd", ("",)), (Select("dense"),),
        margin=1.0, verified="read in a parsed text of the paper",
    ),)  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Sec. 4.2: replace a layer, fix it and all below (BN with its statistics), fine-tune the rest; and so on."""
        self._check()
        runs = factor.places(model, task.example)
        order, whole = list(runs), task.cost(model).macs
        names = factor.candidates(model, order)
        last = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)][-1:]
        names = [name for name in names if self.classifier or name not in last]
        found = self._approximations(model, task, names, {})
        share, ranks = factor.plan(found, runs, whole, self.energy, self.macs_reduction)
        task.report(energy=share, ranks=ranks, dense=[name for name in names if name not in ranks])
        parts = self._parts(ranks)
        trainings = sum(not self.layerwise or part[-1] != order[-1] for part in parts)
        for part in parts:
            metric = factor.covariances(model, part, task.batches(self.images)) if self.metric == "data" else {}
            found = self._approximations(model, task, part, metric)  # of weights that result from the fine-tuning
            for name in part:
                model.set_submodule(name, found[name].build(*ranks[name]))
            below = order[: order.index(part[-1]) + 1] if self.layerwise else []
            if below != order:
                with factor.fixed(model, below):  # Sec. 3.5
                    task.train(model, self.epochs, of=self.epochs * trainings, lr=self.lr)
        return model

    def _check(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"There is no {name} '{getattr(self, name)}': choose one of {', '.join(choices)}.")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is too few: give at least {least}.")

    def _approximations(
        self, model: nn.Module, task: Task, names: list[str], metric: Mapping[str, Tensor]
    ) -> dict[str, Approximation]:
        """What each of the layers can be replaced by, as the net is now; without a metric, in the Frobenius norm."""
        result, first = {}, next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
        for name in names:
            layer = model.get_submodule(name)
            covariance = metric.get(name, torch.eye(layer.weight.shape[1]).to(layer.weight).double())
            random = np.random.default_rng(seed_of(task.seed, f"svd {name}"))
            result[name] = self._approximation(layer, covariance, name == first, random)
        return result

    def _approximation(self, layer: Layer, covariance: Tensor, first: bool, random: Generator) -> Approximation:
        outputs, inputs, *size = layer.weight.shape
        if max(size, default=1) == 1:
            return factor.Matrix(layer, covariance)  # Sec. 3.2.1
        if first and self.colours:
            return Colours(layer, covariance, factor.divisor(outputs, self.colours), random)
        clusters = factor.divisor(inputs, self.input_clusters), factor.divisor(outputs, self.output_clusters)
        return (Nested if self.conv == "svd" else Outer)(layer, covariance, clusters, random)

    def _parts(self, names: Iterable[str]) -> list[list[str]]:
        """What is replaced before each fine-tuning, in order; a block is the first two parts of a name."""
        depth = (2 if self.blockwise else None) if self.layerwise else 0  # no part of the name: one group
        return [list(group) for _, group in itertools.groupby(names, lambda name: name.split(".")[:depth])]


class Colours:
    """Sec. 3.3: the monochromatic approximation with ``count`` colours, whatever the share of the energy."""

    def __init__(self, layer: Layer, covariance: Tensor, count: int, random: Generator) -> None:
        self.layer, self.count, self.random = layer, count, random
        root, self.inverse = factor.roots(covariance)
        self.filters = torch.einsum("cd,dsf->fcs", root, factor.kernel(layer))  # W_f, in the metric

    def ranks(self, share: float) -> tuple[int, ...]:
        return (self.count,)

    def sizes(self, count: int) -> tuple[int, int]:
        filters, channels, entries = self.filters.shape
        return channels * count, filters * entries

    def build(self, count: int) -> nn.Sequential:
        left, values, right = factor.svd(self.filters, 1)
        own = left[..., 0]  # the colour of every filter
        clusters = factor.equal_clusters(own, count, self.random)
        shared = factor.svd(own[clusters].mT, 1)[0]  # (count, channels, 1)
        sign = torch.where(own[clusters] @ shared < 0, -1.0, 1.0)
        spatial = sign * values[clusters] * right[clusters, 0]  # (count, filters / count, entries)
        weights = (self.inverse @ shared)[..., None], spatial.reshape(-1, 1, *self.layer.kernel_size)
        return factor.chain(self.layer, weights, writes=clusters.flatten())


class Cells:
    """Sec. 3.4: input and output channels in G x H clusters of equal size, and a low-rank tensor for each cell."""

    def __init__(self, layer: Layer, covariance: Tensor, clusters: tuple[int, int], random: Generator) -> None:
        self.layer, (self.into, self.out) = layer, clusters
        kernel = factor.kernel(layer)
        self.inputs = factor.equal_clusters(kernel.flatten(1), self.into, random)  # rows of C x (XYF)
        self.outputs = factor.equal_clusters(kernel.flatten(0, 1).T, self.out, random)  # columns of (CXY) x F
        root, inverse = factor.roots(covariance[self.inputs[:, :, None], self.inputs[:, None]])
        parts = kernel[self.inputs][..., self.outputs]  # (G, channels, entries, H, filters)
        self.cells = torch.einsum("gcd,gdshf->hgcsf", root, parts).flatten(0, 1)  # Eq. 3
        self.inverse = inverse.repeat(self.out, 1, 1)

    def layers(self, entry: Tensor, core: Tensor, leave: Tensor) -> nn.Sequential:
        """From the factors (B, channels, K1), (B, K1 or 1, entries, K2) and (B, filters, K2) of the B = G H cells."""
        first = (self.inverse @ entry).mT.flatten(0, 1)
        second = core.permute(0, 3, 1, 2).flatten(0, 1).unflatten(2, self.layer.kernel_size)
        third = leave.unflatten(0, (self.out, self.into)).transpose(1, 2).flatten(2).flatten(0, 1)
        reads = self.inputs.flatten().repeat(self.out) if self.into > 1 else None
        writes = self.outputs.flatten() if self.out > 1 else None
        return factor.chain(self.layer, (first[..., None, None], second, third[..., None, None]), reads, writes)


class Nested(Cells):
    """Sec. 3.2.2, the SVD decomposition: of each cell by outputs, rank K2, then of the right vectors, rank K1."""

    @cached_property
    def energy(self) -> list[Tensor]:
        """The squared singular values of the unfoldings by inputs and by outputs, summed over the cells."""
        return [factor.energies(matrix).sum(0) for matrix in (self.cells.flatten(2), self.cells.flatten(1, 2))]

    def ranks(self, share: float) -> tuple[int, ...]:
        (first, second), entries = (factor.rank_for(e, share) for e in self.energy), self.cells.shape[2]
        return min(first, second * entries), min(second, first * entries)

    def sizes(self, first: int, second: int) -> tuple[int, int]:
        cells, channels, entries, filters = self.cells.shape
        return cells * channels * first, cells * second * (first * entries + filters)

    def build(self, first: int, second: int) -> nn.Sequential:
        return self.layers(*factor.nested_svd(self.cells, first, second))


class Outer(Cells):
    """Sec. 3.2.2, the outer product decomposition: K rank-one terms, each the best of what is left."""

    @cached_property
    def energy(self) -> Tensor:
        """What each term accounts for, of as many as make the layer no larger than it is."""
        cells, *sides = self.cells.shape
        most = max(1, self.layer.weight.numel() // (cells * sum(sides)))
        return factor.rank_one_terms(self.cells, most)[0].square().sum((0, 1))

    def ranks(self, share: float) -> tuple[int, ...]:
        return (factor.rank_for(self.energy, share, float(self.cells.square().sum())),)

    def sizes(self, rank: int) -> tuple[int, int]:
        cells, channels, entries, filters = self.cells.shape
        return cells * channels * rank, cells * rank * (entries + filters)

    def build(self, rank: int) -> nn.Sequential:
        entry, core, leave = factor.rank_one_terms(self.cells, rank)  # Eqs. 4 and 5
        return self.layers(entry, core[:, None], leave)
