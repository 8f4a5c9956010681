"""Low-rank factors: decompositions of matrices and tensors, the small layers that are run instead, ranks for a budget.

Everything is computed in float64. The steps of a method: ``places`` (where the layers run), ``kernel`` (a layer's
weights as a tensor), an ``Approximation`` of each, ``plan`` (the ranks that an energy or a budget leaves), ``replace``.

A *cell* is a 3-tensor (inputs, entries of the 2-d kernel, outputs): a whole kernel, or its part that leads from one
cluster of channels to another. Decompositions take B cells of one size at once: (B, c, s, f). The *energy* of a factor
is the squared norm that it accounts for: of a singular vector, the squared singular value.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError
from methods.kit import reconstruct
from methods.kit.features import Site
from methods.kit.reconstruct import double

VERSION = 1
STARTS = 4  # of the clustering, each from other rows
SWEEPS, TOLERANCE = 64, 1e-10  # of alternating least squares: at most, and the relative gain that ends them
FLOOR = 1e-6  # of a covariance's largest eigenvalue: smaller ones count as much
STEPS = 50  # bisections of a share
SLACK = 1e-12  # for rounding errors of float64
TINY = 1e-150

Layer = nn.Conv2d | nn.Linear


# -- decompositions --------------------------------------------------------------------------------------------------


def svd(matrix: torch.Tensor, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``rank`` first singular triples of (..., m, n): left (..., m, k), values (..., k), right (..., k, n).

    By default all min(m, n). The sign is fixed: the largest entry of each left vector is positive.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(left)
    return (left * sign)[..., :rank], values[..., :rank], (right * sign.mT)[..., :rank, :]


def energies(matrix: torch.Tensor) -> torch.Tensor:
    """The squared singular values of (..., m, n), the largest first: (..., min(m, n))."""
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    return torch.linalg.eigvalsh(wide @ wide.mT).flip(-1).clamp_min(0)


def rank_for(energy: torch.Tensor, share: float, total: float | None = None) -> int:
    """The lowest rank, at least 1, whose factors have ``share`` of the ``total`` energy (default: that of them all).

    ``energy`` (k,) is that of each factor in order. Where all of them have less, the rank is k.
    """
    kept = energy.cumsum(0)
    total = float(kept[-1]) if total is None else total
    return min(int((kept < share * total * (1 - SLACK)).sum()) + 1, len(energy))


def nested_svd(cells: torch.Tensor, first: int, second: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each cell by two SVDs: (B, c, first), (B, first, s, second) and (B, f, second), whose product is near to it.

    The unfolding by outputs keeps ``second`` singular triples; their right vectors, as a tensor (c, s, second), are
    unfolded by inputs and keep ``first`` ones. Fewer where a cell has not so many.
    """
    left, values, right = svd(cells.permute(0, 3, 1, 2).flatten(2), second)
    outputs = left * values[:, None]
    vectors = right.unflatten(2, cells.shape[1:3]).permute(0, 2, 3, 1)  # (B, c, s, second)
    left, values, right = svd(vectors.flatten(2), first)
    return left * values[:, None], right.unflatten(2, vectors.shape[2:]), outputs


def rank_one_terms(cells: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``count`` rank-one terms of each cell, found greedily: factors (B, c, K), (B, s, K) and (B, f, K).

    Each term is the best one of what the terms before it leave, by alternating least squares. The columns of the last
    two have norm 1; the squared norm of the first's is the energy of the term, by which it lowers the squared error.
    """
    rest, terms = cells.clone(), []
    for _ in range(count):
        terms.append(_rank_one(rest))
        rest -= torch.einsum("bc,bs,bf->bcsf", *terms[-1])
    inputs, entries, outputs = (torch.stack(parts, -1) for parts in zip(*terms, strict=True))
    return inputs, entries, outputs


def _rank_one(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One term, starting from the longest fibre along the outputs."""
    count, channels, size, _ = cells.shape
    fibres = cells.flatten(1, 2)
    longest = fibres.square().sum(2).argmax(1)
    outputs = fibres[torch.arange(count, device=cells.device), longest]
    inputs, gained = F.one_hot(longest // size, channels).to(cells), torch.zeros(count).to(cells)
    for _ in range(SWEEPS):
        planes = torch.einsum("bcsf,bc->bsf", cells, inputs)
        entries = _unit(torch.einsum("bsf,bf->bs", planes, outputs))
        outputs = _unit(torch.einsum("bsf,bs->bf", planes, entries))
        inputs = torch.einsum("bcsf,bs,bf->bc", cells, entries, outputs)
        before, gained = gained, inputs.square().sum(1)
        if bool((gained - before <= TOLERANCE * gained).all()):
            break
    return inputs, entries, outputs


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(TINY)


def equal_clusters(rows: torch.Tensor, count: int, random: np.random.Generator) -> torch.Tensor:
    """Which rows (n, d) form each of ``count`` clusters of equal size: indices (count, n / count), ascending in each.

    Lloyd's algorithm with the distance of a row to its cluster's line: the line through 0 that is nearest to its rows.
    In each round lines are fitted, then all rows are assigned at once, the sum of squared distances being the least
    that equal sizes allow. The best of ``STARTS`` starts from random rows. UserError where ``count`` does not divide n.
    """
    if count < 1 or len(rows) % count:
        raise UserError(f"{len(rows)} channels cannot form {count} clusters of equal size: give a divisor of them.")
    gram = (rows @ rows.T).cpu().numpy()
    tries = [_lloyd(gram, count, random) for _ in range(STARTS if count > 1 else 1)]
    labels = max(tries, key=lambda found: found[0])[1]
    return torch.from_numpy(labels).argsort(stable=True).view(count, -1)


def _lloyd(gram: np.ndarray, count: int, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """(what the lines explain of the rows' squared norms, the cluster of each row) from their products (n, n)."""
    from scipy.optimize import linear_sum_assignment

    size, every = len(gram) // count, np.arange(len(gram))
    chosen = random.choice(len(gram), count, replace=False)
    along = gram[:, chosen] / np.sqrt(gram[chosen, chosen]).clip(TINY)  # of each row, along each line
    explained, labels = -np.inf, every // size
    while count > 1:
        found = linear_sum_assignment(np.repeat(along**2, size, axis=1), maximize=True)[1] // size
        value = (along[every, found] ** 2).sum()
        if value <= explained * (1 + SLACK):
            break
        explained, labels = value, found
        along = np.stack([_along(gram, labels == cluster) for cluster in range(count)], axis=1)
    return explained, labels


def _along(gram: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The component of every row (n,) along the line nearest to ``members``."""
    values, vectors = np.linalg.eigh(gram[np.ix_(members, members)])
    return gram[:, members] @ vectors[:, -1] / np.sqrt(values[-1].clip(TINY))


# -- the inputs of layers --------------------------------------------------------------------------------------------


def covariances(
    model: nn.Module, names: Iterable[str], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """E[x x^T] of the channels that each layer reads, over all images and places: name -> (C, C).

    The mean is not taken off. UserError without an image, and where the inputs are not finite.
    """
    names, sums, places = list(names), {}, Counter()
    with reconstruct.inputs(model, {Site(name): _products for name in names}) as run:
        for x, _ in batches:
            for site, (products, count) in run(x).items():
                sums[site.module] = sums[site.module] + products if site.module in sums else products
                places[site.module] += count
    if len(sums) < len(names):
        raise UserError("No image was given to measure covariances on: ask for at least one.")
    for name, products in sums.items():
        if not products.isfinite().all():
            raise UserError(f"The inputs of {name} are not finite numbers: the network has diverged; train it again.")
    return {name: sums[name] / places[name] for name in names}


def _products(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(the sum of x x^T over all places, how many there are) of maps (N, C, H, W) or vectors (..., C)."""
    flat = (x.movedim(1, -1) if x.dim() == 4 else x).flatten(0, -2)
    return double(flat.T @ flat), len(flat)


def roots(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric square roots of covariances (..., C, C), and their inverses.

    Eigenvalues below ``FLOOR`` of the largest are raised to it, so that there is an inverse; without any it is 1.
    """
    if torch.equal(covariance, torch.eye(covariance.shape[-1]).to(covariance).expand_as(covariance)):
        return covariance, covariance
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[..., -1:]
    scale = torch.where(largest > 0, values.maximum(FLOOR * largest), 1.0).sqrt()[..., None, :]
    return vectors * scale @ vectors.mT, vectors / scale @ vectors.mT


# -- layers ----------------------------------------------------------------------------------------------------------


class Reorder(nn.Module):
    """Hands on ``channels`` of its input's channels: those of the buffer ``order``, one of which may come twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("order", torch.arange(channels, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, channels, H, W)."""
        return x.index_select(1, self.order)


@torch.no_grad()
def places(model: nn.Module, example: torch.Tensor) -> dict[str, tuple[int, int]]:
    """How many places the input and the output of each layer have, per channel, in the order in which they run.

    All modules with parameters of their own are there, BN too; a linear layer behind a flattening has one place.
    """
    found: dict[str, tuple[int, int]] = {}

    def hook(name: str) -> Callable:
        def after(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1
            here = (x.numel() // x.shape[axis] for x in (args[0], output))
            found[name] = tuple(a + b for a, b in zip(found.get(name, (0, 0)), here, strict=True))

        return after

    own = {name: module for name, module in model.named_modules() if module._parameters}
    handles = [module.register_forward_hook(hook(name)) for name, module in own.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()(example[:1])
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def candidates(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that are linear layers and convolutions without groups."""
    modules = {name: model.get_submodule(name) for name in names}
    return [n for n, m in modules.items() if isinstance(m, Layer) and getattr(m, "groups", 1) == 1]


def divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``, both at least 1."""
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def kernel(layer: Layer) -> torch.Tensor:
    """The weights as a cell (inputs, entries of the 2-d kernel, outputs), float64; a linear layer has one entry.

    UserError where they are not finite.
    """
    if not layer.weight.isfinite().all():
        raise UserError("The weights of a layer are not finite numbers: the network has diverged; train it again.")
    return double(reconstruct.kernels(layer)).permute(1, 2, 0)


def chain(
    layer: Layer,
    weights: Sequence[torch.Tensor],
    reads: torch.Tensor | None = None,
    writes: torch.Tensor | None = None,
) -> nn.Sequential:
    """Layers with these weights, one after the other, in the place of ``layer``.

    Each of ``weights`` is (outputs, inputs, height, width) for a convolution, (outputs, inputs) for a linear layer;
    fewer inputs than the one before it gives make groups. The first that has the kernel's size takes stride, padding
    and dilation; the last takes the bias. ``reads``: the channel of the input that each input of the first one is;
    ``writes``: the output of ``layer`` that each output of the last one is.
    """
    made: list[nn.Module] = []
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    if reads is not None:
        made.append(_reorder(reads, layer))
        channels = len(reads)
    size = tuple(layer.weight.shape[2:])
    spatial = next(i for i, weight in enumerate(weights) if tuple(weight.shape[2:]) == size)
    for i, weight in enumerate(weights):
        bias = layer.bias if i == len(weights) - 1 else None
        if bias is not None and writes is not None:
            bias = bias[writes.to(bias.device)]
        made.append(_filled(layer, weight, channels // weight.shape[1], i == spatial, bias))
        channels = len(weight)
    if writes is not None:
        made.append(_reorder(writes.argsort(), layer))
    return nn.Sequential(*made)


def _filled(layer: Layer, weight: torch.Tensor, groups: int, spatial: bool, bias: torch.Tensor | None) -> Layer:
    """A layer of the kind of ``layer`` with this weight and bias."""
    options = {"bias": bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    kind, shape = nn.Linear, (weight.shape[1], weight.shape[0])
    if isinstance(layer, nn.Conv2d):
        kind, shape = nn.Conv2d, (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
        options["groups"] = groups
        if spatial:
            options |= {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode")}
    made = nn.utils.skip_init(kind, *shape, **options)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias)
    return made


def _reorder(order: torch.Tensor, layer: Layer) -> Reorder:
    made = Reorder(len(order)).to(layer.weight.device)
    made.order.copy_(order)
    return made


@contextlib.contextmanager
def fixed(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """These modules, and the statistics in them, do not change while the others are trained inside."""
    modules = [model.get_submodule(name) for name in names]

    def evaluate(*_: object) -> None:
        for module in modules:
            module.eval()

    handle = model.register_forward_pre_hook(evaluate)  # training sets the whole model to train mode
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for module in modules:
            module.requires_grad_(True)


# -- ranks for a budget ----------------------------------------------------------------------------------------------


class Approximation(Protocol):
    """What a layer can be replaced by: which ranks keep how much, how large the factors are then, and the layers."""

    layer: Layer

    def ranks(self, share: float) -> tuple[int, ...]:
        """The lowest ranks that keep the share of the energy; they do not fall when it rises."""

    def sizes(self, *ranks: int) -> tuple[int, int]:
        """(weights that run at the places of the layer's input, weights that run at those of its output)."""

    def build(self, *ranks: int) -> nn.Module:
        """The layers at these ranks."""


class Matrix:
    """A fully connected layer, or a 1x1 convolution, by truncated SVD: two layers, of which the second has the bias.

    ``covariance`` (C, C) of its inputs is the metric: the factors minimise E||(W - W')x||^2; the unit matrix stands for
    the Frobenius norm.
    """

    def __init__(self, layer: Layer, covariance: torch.Tensor) -> None:
        self.layer = layer
        root, self.inverse = roots(covariance)
        self.weight = root @ kernel(layer)[:, 0]

    @cached_property
    def energy(self) -> torch.Tensor:
        """The squared singular values."""
        return energies(self.weight)

    def ranks(self, share: float) -> tuple[int, ...]:
        """One rank."""
        return (rank_for(self.energy, share),)

    def sizes(self, rank: int) -> tuple[int, int]:
        """Both factors run at the places of the output."""
        return 0, rank * sum(self.weight.shape)

    def build(self, rank: int) -> nn.Sequential:
        """Two layers of the kind of the layer."""
        left, values, right = svd(self.weight, rank)
        pair = (self.inverse @ left).T, (values[:, None] * right).T
        return chain(self.layer, [weight.reshape(*weight.shape, *self.layer.weight.shape[2:]) for weight in pair])


def plan(
    found: Mapping[str, Approximation],
    runs: Mapping[str, tuple[int, int]],
    whole: int,
    energy: float,
    macs_reduction: float | None,
) -> tuple[float, dict[str, tuple[int, ...]]]:
    """(share of the energy that each layer keeps, ranks of the layers that are to be replaced, in their order).

    The share is ``energy``, or, where ``macs_reduction`` is set, the largest one that takes at least this share of the
    net's ``whole`` MACs away. A layer that would not save both MACs and weights is not replaced. ``runs`` as ``places``
    gives it. UserError for values outside (0, 1] and [0, 1), and for a reduction out of reach.
    """

    def chosen(share: float) -> dict[str, tuple[tuple[int, ...], int]]:
        """(ranks, MACs saved) of the layers that get smaller."""
        result = {}
        for name, approximation in found.items():
            ranks, weights, (into, out) = approximation.ranks(share), approximation.layer.weight.numel(), runs[name]
            before, behind = approximation.sizes(*ranks)
            saved = (weights - behind) * out - before * into
            if saved > 0 and before + behind < weights:
                result[name] = ranks, saved
        return result

    if not 0 < energy <= 1:
        raise UserError(f"energy={energy} lies outside (0, 1]: give the share to keep, such as 0.9.")
    if macs_reduction is not None:
        energy = share_for(lambda share: whole - sum(n for _, n in chosen(share).values()), whole, macs_reduction)
    return energy, {name: ranks for name, (ranks, _) in chosen(energy).items()}


def share_for(macs: Callable[[float], int], whole: int, reduction: float) -> float:
    """The largest share of the energy whose ranks take away at least the share ``reduction`` of ``whole`` MACs.

    ``macs(share)`` is what the net costs at that share; it does not fall when the share rises. UserError where even
    the lowest ranks cost too much, or ``reduction`` lies outside [0, 1).
    """
    if not 0 <= reduction < 1:
        raise UserError(f"The MACs reduction {reduction} lies outside [0, 1): give the share to remove, such as 0.5.")
    goal, low, high = whole * (1 - reduction), 0.0, 1.0
    if macs(low) > goal:
        raise UserError(
            f"A MACs reduction of {reduction} is out of reach: at the lowest ranks it is {1 - macs(low) / whole:.4f}. "
            "Ask for less."
        )
    if macs(high) <= goal:
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) <= goal else (low, middle)
    return low
