"""Random pruning of single weights: the control by lot of every weight-pruning row.

D. Blalock, J. J. Gonzalez Ortiz, J. Frankle, J. Guttag. What is the State of Neural Network Pruning? MLSys 2020,
https://arxiv.org/abs/2003.03033, asks for random pruning, with one rate for all layers and with the layer-wise
proportions of the method under test, beside every result.

Idea: draw the weights to remove by lot and do everything else like the method it is compared with. At the same shares
and the same retraining the nets are as sparse in every layer; what a method reaches above it is owed to its choice of
weights.

``sparsity`` takes one share of every layer, ``sparsities`` a share per layer. With ``scope`` "parent" they are read
from the net of another run (``start=RUN``), and the trained dense net (the task's teacher) is pruned by them. The
recipes repeat the shares and the retraining of the magnitude control beside Han et al. (NIPS 2015, Tables 2, 3, 5).

Conventions: convolutions and linear layers are pruned, the first and the last like any other. Biases and batch
normalisation stay. Removed weights stay in the net as zeros.

Deviations
- The paper's code draws for every weight by itself, so that the share is met on average; here exactly as many go.
- Its code prunes biases as well.
- Its variant that compares all layers together is the same as one share for every layer, up to chance, and left out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Method, Paper
from methods.kit import masks

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.masks import Keep

DEFAULT_SPARSITY = 0.5
SCOPES = ("layer", "parent")
# Shares to remove: one minus the densities of Han et al., NIPS 2015, Tables 2, 3 and 5
LENET300_HAN = (0.92, 0.91, 0.74)
LENET5_HAN = (0.34, 0.88, 0.92, 0.81)
VGG16_HAN = (0.42, 0.78, 0.66, 0.64, 0.47, 0.76, 0.58, 0.68, 0.73, 0.66, 0.65, 0.71, 0.64, 0.96, 0.77)


@dataclass
class RandomWeight(Method):
    """Zeroes weights drawn by lot (the lot depends on the seed only), then fine-tunes with the zeros held.

    ``sparsity``, the share to remove of every layer, counts before ``sparsities`` (one per layer, the classifier
    included, in order of definition); with neither the sparsity is 0.5. ``scope`` "layer": these; "parent": no number,
    the sparsity of each layer in the net of ``start=RUN``.
    """

    sparsity: float | None = None
    sparsities: tuple[float, ...] = ()
    scope: str = "layer"
    epochs: float = 30.0
    lr: float = 0.01

    paper: ClassVar[Paper] = Paper(
        title="What is the State of Neural Network Pruning?",
        authors="D. Blalock, J. J. Gonzalez Ortiz, J. Frankle, J. Guttag",
        venue="MLSys 2020",
        url="https://arxiv.org/abs/2003.03033",
        code="https://github.com/JJGO/shrinkbench",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k/han": {"sparsities": VGG16_HAN, "epochs": 300.0, "lr": 0.005},
        "lenet300_mnist/han": {"sparsities": LENET300_HAN, "epochs": 25.0, "lr": 0.005},
        "lenet5_mnist/han": {"sparsities": LENET5_HAN, "epochs": 25.0, "lr": 0.002},
        "lenet300_mnist5k/han": {"sparsities": LENET300_HAN, "epochs": 300.0, "lr": 0.005},
        "lenet5_mnist5k/han": {"sparsities": LENET5_HAN, "epochs": 300.0, "lr": 0.005},
        "vgg16_cifar10/han": {"sparsities": VGG16_HAN, "epochs": 300.0},
    }

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Draw, zero, fine-tune."""
        if self.scope not in SCOPES:
            raise UserError(f"There is no scope '{self.scope}': choose 'layer' or 'parent'.")
        sparsities = self.sparsities
        if self.scope == "parent":
            model, sparsities = self._as_sparse_as(model, task)
        weights = masks.weights(model)
        if self.sparsity is not None or not sparsities:
            sparsities = [DEFAULT_SPARSITY if self.sparsity is None else self.sparsity] * len(weights)
        masks.prune(weights, lots(weights, sparsities, task.seed))
        return task.train(model, self.epochs, lr=self.lr, after_step=masks.hold(model))

    def _as_sparse_as(self, parent: nn.Module, task: Task) -> tuple[nn.Module, list[float]]:
        """(the dense net, the share of zeros in every layer of ``parent``)."""
        if self.sparsity is not None or self.sparsities:
            raise UserError("scope=parent takes its sparsities from the net of start=RUN: set no number beside it.")
        dense = copy.deepcopy(task.teacher).requires_grad_(True)
        theirs = masks.weights(parent)
        if {n: w.shape for n, w in theirs.items()} != {n: w.shape for n, w in masks.weights(dense).items()}:
            raise UserError("The net of start=RUN has other layers than the dense net: start from one with its shapes.")
        zeros = [min(int((w == 0).sum()), w.numel() - 1) / w.numel() for w in theirs.values()]
        if not any(zeros):
            raise UserError("scope=parent copies the sparsities of a pruned net: give one with start=RUN.")
        return dense, zeros


def lots(weights: Mapping[str, Tensor], sparsities: Sequence[float], seed: int) -> Keep:
    """Keep masks: of each layer's n weights all but int(n * its sparsity), drawn by lot.

    UserError for a wrong number of sparsities, or one outside [0, 1).
    """
    if len(sparsities) != len(weights):
        raise UserError(
            f"{len(sparsities)} sparsities were given, but there are {len(weights)} layers with weights "
            f"({', '.join(weights)}): give one for each."
        )
    generator = torch.Generator().manual_seed(seed_of(seed, "random_weight"))
    drawn = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    pairs = zip(drawn.items(), sparsities, strict=True)
    return {name: masks.largest({name: lot}, share)[0][name] for (name, lot), share in pairs}
