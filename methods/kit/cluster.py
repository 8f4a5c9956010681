"""Weight sharing: k-means of the weights of a tensor, and a training in which weights of one value keep one value.

The shared weights of a tensor are the distinct values in it that are not zero; zero is a removed connection. Nothing
else is remembered. The steps of a method: ``share`` (cluster a tensor), ``tie`` (train its centroids).

Sorted numbers have clusters that are intervals, so an iteration of Lloyd's algorithm needs only the places of the
k - 1 midpoints between the centroids, and its means only running sums: k log n operations, whatever the number n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from baselines.errors import UserError

VERSION = 1
STARTS = ("linear", "random", "density")
ROUNDS = 100_000  # of Lloyd's algorithm at most; it ends where no weight changes its cluster

Callback = Callable[[int], None]


def share(name: str, weight: torch.Tensor, k: int, start: str, random: np.random.Generator) -> int:
    """Replace in place what is not zero by the centroids of at most ``k`` clusters; the number of distinct ones.

    ``start`` is one of ``STARTS``. UserError for another one, fewer than one cluster, or weights that are not finite.
    """
    kept = weight.detach() != 0
    values = weight.detach()[kept].cpu().double().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"The weights of {name} are not finite numbers: the network has diverged; train it again.")
    if not len(values):
        return 0
    centroids, labels = lloyd(values, first_centroids(values, k, start, random))
    weight.data[kept] = torch.from_numpy(centroids[labels]).to(weight)
    return len(centroids)


def first_centroids(values: np.ndarray, k: int, start: str, random: np.random.Generator) -> np.ndarray:
    """The ``k`` centroids from which k-means of ``values`` (n,) starts, float64 (k,); UserError as ``share``.

    "linear": equal steps from the least to the largest value; "random" (Forgy): k of the values, all where there are
    fewer; "density": where the distribution function of the values reaches the middle of each of k equal steps.
    """
    if k < 1:
        raise UserError(f"{k} clusters hold no weight: give at least 1.")
    if start == "linear":
        return np.linspace(values.min(), values.max(), k)
    if start == "random":
        return random.choice(values, min(k, len(values)), replace=False)
    if start == "density":
        return np.quantile(values, (np.arange(k) + 0.5) / k, method="inverted_cdf")
    raise UserError(f"There is no start '{start}' for k-means: choose one of {', '.join(STARTS)}.")


def lloyd(values: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's algorithm on ``values`` (n,) from ``centroids`` (k,): ascending (m,), m <= k, and labels (n,) below m.

    Until no value changes its cluster: each is with the centroid nearest to it (the lower one, halfway), and each
    centroid is the mean of its values. An empty cluster stays where it is and may get values later; where it has none
    in the end it is left out. All float64.
    """
    data = np.sort(values)
    sums, centres = np.concatenate([[0.0], np.cumsum(data)]), np.sort(centroids)
    edges = np.empty(0)
    for _ in range(ROUNDS):
        middles = (centres[1:] + centres[:-1]) / 2
        before, edges = edges, np.concatenate([[0], np.searchsorted(data, middles, side="right"), [len(data)]])
        if np.array_equal(before, edges):
            break
        counts = np.diff(edges)
        filled = counts > 0
        centres[filled] = np.diff(sums[edges])[filled] / counts[filled]
    labels = np.searchsorted(middles, values, side="left")
    return centres[filled], (np.cumsum(filled) - 1)[labels]


def tie(weights: Iterable[torch.nn.Parameter]) -> tuple[Callback, Callback]:
    """(``after_backward``, ``after_step``) of a training in which the weights that are equal now stay equal.

    Each group of equal weights is trained as one number: its gradient is the sum of theirs (Han et al., ICLR 2016,
    Eq. 3), and so are momentum and weight decay of each that number's own. Zeros stay zero. Rounding may differ between
    the weights of a group, so after every step all take the value of the first. Does not synchronise.
    """
    groups = [(weight, *_groups(weight.detach().flatten())) for weight in weights]

    def after_backward(step: int) -> None:
        for weight, labels, _, shared in groups:
            if weight.grad is not None:
                sums = torch.zeros(len(shared), dtype=torch.float64, device=labels.device)
                sums.index_add_(0, labels, weight.grad.flatten().double())
                weight.grad.copy_(torch.where(shared, sums, 0.0)[labels].view_as(weight))

    def after_step(step: int) -> None:
        for weight, labels, first, _ in groups:
            weight.data.copy_(weight.data.flatten()[first][labels].view_as(weight))

    return after_backward, after_step


def _groups(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of numbers (n,): the group of each (n,), the first number of each group (m,), which groups are not zero (m,)."""
    values, labels = flat.unique(return_inverse=True)
    places = torch.arange(len(flat), device=flat.device)
    first = torch.full_like(values, len(flat), dtype=torch.long).scatter_reduce_(0, labels, places, "amin")
    return labels, first, values != 0
