"""Random filter pruning: the control of every filter-pruning row.

D. Blalock, J. J. Gonzalez Ortiz, J. Frankle, J. Guttag. What is the State of Neural Network Pruning? MLSys 2020,
https://arxiv.org/abs/2003.03033, asks for random pruning, with one rate for all layers and with the layer-wise
proportions of the method under test, beside every result.

Idea: draw the filters to remove by lot and do everything else like the method it is compared with. At the same rates
and the same retraining it costs exactly as much; what a method reaches above it is owed to its choice of filters, and
what both reach is owed to the layer widths and the retraining.

Convolutions that an addition couples (a residual stream) lose nothing to ``ratio`` and ``macs_reduction`` unless
``stream`` is set; then layers whose channels go together draw one common lot, and CIFAR ResNets have the filters of
their stream zeroed. ``ratios`` names every convolution, in network order. With ``scope`` "parent" the run starts from
another run's network (``start=RUN``): the trained dense net (the task's teacher) is pruned by lot to as many filters
in every layer as that network has left, whatever method chose them. The recipes repeat the rates and the
retraining of L1-norm pruning (Li et al., ICLR 2017; configurations A and B) and of HRank (CVPR 2020; rates of its
README).

Deviations
- The paper's random pruning draws single weights; here whole filters are drawn, so that the network gets smaller.
- ``macs_reduction`` is not in the paper.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Method, Paper
from methods.kit import surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Layer, Selection

DEFAULT_RATIO = 0.5
SCOPES = ("layer", "global", "parent")
# VGG-16, 13 convolutions; HRank's README ends in two rates of 0.8, its code leaves the last convolution whole
VGG16_L1_A = (0.5,) + (0.0,) * 6 + (0.5,) * 6
VGG16_HRANK = (0.95,) + (0.5,) * 6 + (0.9,) * 4 + (0.8, 0.0)
# ResNet-56, 55 convolutions: the stem, then two per block; L1 prunes the first one of most blocks
BLOCKS_L1_A = (0.1,) * 7 + (0.0, 0.1, 0.0) + (0.1,) * 8 + (0.0,) + (0.1,) * 7 + (0.0,)
BLOCKS_L1_B = (0.6,) * 7 + (0.0,) * 3 + (0.3,) * 6 + (0.0, 0.3, 0.0) + (0.1,) * 7 + (0.0,)
RESNET56_L1_A = (0.0, *(rate for first in BLOCKS_L1_A for rate in (first, 0.0)))
RESNET56_L1_B = (0.0, *(rate for first in BLOCKS_L1_B for rate in (first, 0.0)))
RESNET56_HRANK = (0.1,) + (0.6,) * 35 + (0.0,) * 2 + (0.6,) * 6 + (0.4,) * 3 + (0.1, 0.4) * 4

LIKE_HRANK = {"epochs": 30, "lr": 0.01}  # retrained as HRank is; the other recipes as L1-norm pruning is


@dataclass
class RandomFilter(Method):
    """Removes filters drawn by lot (the lot depends on the seed only), then retrains.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one ratio), ``ratio`` and ``ratios`` (one
    per convolution) counts; with none of them the ratio is 0.5. ``scope`` of one ratio: "layer" (that share of each
    layer) or "global" (of all filters together); "parent": no ratio, the layer widths of the net of ``start=RUN``.
    ``rounding``: "removed", int(w * ratio) go, or "keep",
    int(w * (1 - ratio)) stay.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    scope: str = "layer"
    stream: bool = False
    rounding: str = "removed"
    epochs: int = 40
    lr: float = 1e-3

    paper: ClassVar[Paper] = Paper(
        title="What is the State of Neural Network Pruning?",
        authors="D. Blalock, J. J. Gonzalez Ortiz, J. Frankle, J. Guttag",
        venue="MLSys 2020",
        url="https://arxiv.org/abs/2003.03033",
        code="https://github.com/JJGO/shrinkbench",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k/l1_A": {"ratios": VGG16_L1_A, "rounding": "keep"},
        "vgg16_mnist5k/hrank": {"ratios": VGG16_HRANK, **LIKE_HRANK},
        "vgg16_cifar10/l1_A": {"ratios": VGG16_L1_A, "rounding": "keep"},
        "vgg16_cifar10/hrank": {"ratios": VGG16_HRANK, **LIKE_HRANK},
        "resnet56_cifar10/l1_A": {"ratios": RESNET56_L1_A, "rounding": "keep"},
        "resnet56_cifar10/l1_B": {"ratios": RESNET56_L1_B, "rounding": "keep"},
        "resnet56_cifar10/hrank": {"ratios": RESNET56_HRANK, **LIKE_HRANK},
        "resnet56_cifar100/l1_B": {"ratios": RESNET56_L1_B, "rounding": "keep"},
        "resnet56_cifar100/hrank": {"ratios": RESNET56_HRANK, **LIKE_HRANK},
    }

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Draw, remove, retrain."""
        if self.scope not in SCOPES:
            raise UserError(f"There is no scope '{self.scope}': choose 'layer', 'global' or 'parent'.")
        ratios = self.ratios
        if self.scope == "parent":
            model, ratios = self._as_wide_as(model, task)
        layers = surgery.layers(model, task.example)
        keep, clamped = self._choose(model, task, layers, ratios)
        task.report(clamped=clamped, kept={name: int(kept.sum()) for name, kept in keep.items()})
        model = surgery.remove(model, task.example, keep)
        task.train(model, self.epochs, lr=self.lr, after_step=surgery.hold(model, task.example))
        return model

    def _as_wide_as(self, parent: nn.Module, task: Task) -> tuple[nn.Module, tuple[float, ...]]:
        """(the dense net, the share of filters per convolution that ``parent`` lacks: gone, or zero and BN with it)."""
        if self.macs_reduction is not None or self.ratio is not None or self.ratios:
            raise UserError("scope=parent takes its proportions from the net of start=RUN: set no ratio beside it.")
        dense = copy.deepcopy(task.teacher).requires_grad_(True)
        left = {name: int(alive.sum()) for name, alive in surgery.alive(parent, task.example).items()}
        widths = {name: layer.width for name, layer in surgery.layers(dense, task.example).items()}
        if left.keys() != widths.keys() or any(left[name] > width for name, width in widths.items()):
            raise UserError("The net of start=RUN does not have the dense net's layers: start from a pruned net of it.")
        if left == widths:
            raise UserError("scope=parent copies the layer widths of a pruned net: give one with start=RUN.")
        return dense, tuple((width - left[name]) / width for name, width in widths.items())

    def _choose(
        self, model: nn.Module, task: Task, layers: Mapping[str, Layer], ratios: tuple[float, ...]
    ) -> Selection:
        """The filters to keep, by whichever of the ways of giving rates is set."""
        scores = lots(layers, task.seed)
        if self.macs_reduction is None and self.ratio is None and ratios:
            if self.scope == "global":
                raise UserError("scope=global takes one ratio for the whole network, not one per layer: set ratio.")
            if self.scope == "parent":
                scores = surgery.couple(scores, layers)
            return surgery.select(scores, ratios, "removed" if self.scope == "parent" else self.rounding)
        scores = surgery.couple(scores, layers)
        scores = {name: lot for name, lot in scores.items() if self.stream or not layers[name].coupled}
        if self.macs_reduction is not None:
            return surgery.macs_budget(model, task.example, scores, self.macs_reduction, self._one_ratio)
        return self._one_ratio(scores, DEFAULT_RATIO if self.ratio is None else self.ratio)

    def _one_ratio(self, scores: Mapping[str, torch.Tensor], ratio: float) -> Selection:
        if self.scope == "global":
            return surgery.select_global(scores, ratio)
        return surgery.select(scores, ratio, self.rounding)


def lots(layers: Mapping[str, Layer], seed: int) -> dict[str, torch.Tensor]:
    """A uniform random score for every filter: name -> (filters,)."""
    generator = torch.Generator().manual_seed(seed_of(seed, "random_filter"))
    return {name: torch.rand(layer.width, generator=generator) for name, layer in layers.items()}
