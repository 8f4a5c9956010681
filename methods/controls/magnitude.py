"""Magnitude pruning of single weights: the control of every weight-pruning row.

D. Blalock, J. J. Gonzalez Ortiz, J. Frankle, J. Guttag. What is the State of Neural Network Pruning? MLSys 2020,
https://arxiv.org/abs/2003.03033, asks for it beside every result, at the compressions 2, 4, 8, 16 and 32.

Idea: set the weights with the smallest magnitudes to zero, all at once, and fine-tune the others. ``scope`` "global"
compares the weights of all layers; "layer" takes the same share of each layer; ``sparsities`` takes a share per layer,
such as those that another method has reached, so that only its choice within the layers is compared; with ``scope``
"parent" they are read from the net of another run (``start=RUN``), and the trained dense net (the task's teacher) is
pruned by them.

Conventions: convolutions and linear layers are pruned, the first layer like any other. The last linear layer, the
classifier, stays dense unless ``classifier`` is set. Biases and batch normalisation stay. The compression is that of
the paper's code: all parameters of the net over those that are left, those that cannot be pruned counted in both.
Removed weights stay in the net as zeros.

Deviations
- The paper's code prunes biases by magnitude as well, where each layer has few of them.
- The learning rate is the baselines' of fine-tuning, 0.01: from the 1e-3 of the paper's code down, a net compressed 32
  times did not recover, and a control has to be tuned. Schedule (cosine; theirs is constant), batch size, momentum and
  weight decay are the baseline's.
- A layer in which the global comparison leaves nothing keeps its largest weight.
- ``sparsity`` is not in the paper.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import masks

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.masks import Keep

DEFAULT_COMPRESSION = 4.0
SCOPES = ("global", "layer", "parent")
# Shares to remove: one minus the densities of Han et al., NIPS 2015, Tables 2, 3 and 5
LENET300_HAN = (0.92, 0.91, 0.74)
LENET5_HAN = (0.34, 0.88, 0.92, 0.81)
VGG16_HAN = (0.42, 0.78, 0.66, 0.64, 0.47, 0.76, 0.58, 0.68, 0.73, 0.66, 0.65, 0.71, 0.64, 0.96, 0.77)
LIKE_HAN = {"epochs": 300.0}  # retrained for as long as their five iterations take
RETHINKING = (
    "Rethinking the Value of Network Pruning (Liu et al., ICLR 2019), unstructured on ImageNet: their run of it"
)
README = "read in the README of their code; the base is that of the weights they start from"


def points(net: str, **fields: float) -> dict[str, dict]:
    """A recipe NET/2x ... NET/32x for each of the paper's compressions."""
    return {f"{net}/{factor}x": {"compression": float(factor), **fields} for factor in (2, 4, 8, 16, 32)}


@dataclass
class Magnitude(Method):
    """Zeroes the weights with the smallest magnitudes, then fine-tunes with the zeros held.

    The first that is set of ``compression`` (parameters over parameters left), ``sparsity`` (share of the prunable
    weights to remove) and ``sparsities`` (one per layer, the classifier included, in order of definition) counts; with
    none of them the compression is 4. ``scope`` of a single number: "global" (all layers compared) or "layer" (that
    share of each); "parent": no number, the sparsity of each layer in the net of ``start=RUN``.
    """

    compression: float | None = None
    sparsity: float | None = None
    sparsities: tuple[float, ...] = ()
    scope: str = "global"
    classifier: bool = False
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
        **points("vgg16_mnist5k"),
        "vgg16_mnist5k/han": {"sparsities": VGG16_HAN, **LIKE_HAN, "lr": 0.005},
        "lenet300_mnist/han": {"sparsities": LENET300_HAN, "epochs": 25.0, "lr": 0.005},
        "lenet5_mnist/han": {"sparsities": LENET5_HAN, "epochs": 25.0, "lr": 0.002},
        "lenet300_mnist5k/han": {"sparsities": LENET300_HAN, **LIKE_HAN, "lr": 0.005},
        "lenet5_mnist5k/han": {"sparsities": LENET5_HAN, **LIKE_HAN, "lr": 0.005},
        **points("vgg16_cifar10"),
        "vgg16_cifar10/han": {"sparsities": VGG16_HAN, **LIKE_HAN},
        **points("resnet56_cifar10"),
        **points("resnet56_cifar100"),
        **points("resnet50_imagenette", classifier=True, lr=0.001),  # dense, its classifier alone is a twelfth
        "resnet50_imagenet/sparsity30": {"sparsity": 0.3, "epochs": 10.0, "lr": 0.001},
        "resnet50_imagenet/sparsity60": {"sparsity": 0.6, "epochs": 10.0, "lr": 0.001},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/sparsity30", label="30 % of the conv weights",
            source=RETHINKING, top1=76.06, top5=92.88, base_top1=76.15, rule="nonzero", verified=README,
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/sparsity60", label="60 % of the conv weights",
            source=RETHINKING, top1=76.09, top5=92.91, base_top1=76.15, rule="nonzero", verified=README,
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "A small amount of pruning costs no accuracy.", "Sec. 3", Select("magnitude", ("2x", "4x")),
            (Select("dense"),), budgets=("short", "paper"), margin=0.5, verified="recalled, not read again",
        ),
        Claim(
            "Where much is pruned, many methods are better than pruning by lot.", "Sec. 3.1",
            Select("magnitude", ("han",)), (Select("random_weight", ("han",)),), verified="recalled, not read again",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Choose, zero, fine-tune."""
        if self.scope not in SCOPES:
            raise UserError(f"There is no scope '{self.scope}': choose 'global', 'layer' or 'parent'.")
        sparsities = self.sparsities
        if self.scope == "parent":
            model, sparsities = self._as_sparse_as(model, task)
        weights = masks.weights(model)
        keep, clamped = self._choose(model, weights, sparsities)
        masks.prune(weights, keep)
        task.report(clamped=clamped)
        return task.train(model, self.epochs, lr=self.lr, after_step=masks.hold(model))

    def _as_sparse_as(self, parent: nn.Module, task: Task) -> tuple[nn.Module, list[float]]:
        """(the dense net, the share of zeros in every layer of ``parent``)."""
        if self.compression is not None or self.sparsity is not None or self.sparsities:
            raise UserError("scope=parent takes its sparsities from the net of start=RUN: set no number beside it.")
        dense = copy.deepcopy(task.teacher).requires_grad_(True)
        theirs = masks.weights(parent)
        if {n: w.shape for n, w in theirs.items()} != {n: w.shape for n, w in masks.weights(dense).items()}:
            raise UserError("The net of start=RUN has other layers than the dense net: start from one with its shapes.")
        zeros = [min(int((w == 0).sum()), w.numel() - 1) / w.numel() for w in theirs.values()]
        if not any(zeros):
            raise UserError("scope=parent copies the sparsities of a pruned net: give one with start=RUN.")
        return dense, zeros

    def _choose(
        self, model: nn.Module, weights: Mapping[str, Tensor], sparsities: Sequence[float]
    ) -> tuple[Keep, list[str]]:
        """The weights to keep, by whichever of the ways of giving a size is set."""
        if self.compression is None and self.sparsity is None and sparsities:
            return per_layer(weights, sparsities)
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
        prunable = {name: w for name, w in weights.items() if self.classifier or name not in last}
        if not prunable:
            raise UserError("This network has no weights beside those of its classifier: set classifier=true.")
        share = self.sparsity
        if self.compression is not None or share is None:
            compression = DEFAULT_COMPRESSION if self.compression is None else self.compression
            share = sparsity_for(compression, sum(p.numel() for p in model.parameters()), prunable)
        if self.scope == "global":
            return masks.largest(prunable, share)
        return per_layer(prunable, [share] * len(prunable))


def per_layer(weights: Mapping[str, Tensor], sparsities: Sequence[float]) -> tuple[Keep, list]:
    """Keep masks with one share to remove per layer; UserError when their number is wrong."""
    if len(sparsities) != len(weights):
        raise UserError(
            f"{len(sparsities)} sparsities were given, but there are {len(weights)} layers with weights "
            f"({', '.join(weights)}): give one for each."
        )
    pairs = zip(weights.items(), sparsities, strict=True)
    return {name: masks.largest({name: weight}, share)[0][name] for (name, weight), share in pairs}, []


def sparsity_for(compression: float, total: int, prunable: Mapping[str, Tensor]) -> float:
    """The share of ``prunable`` to remove so that ``total`` / ``compression`` parameters are left in the whole net."""
    free = sum(weight.numel() for weight in prunable.values())
    left = total / compression - (total - free) if compression >= 1 else 0
    if not left > 0:
        raise UserError(
            f"A compression of {compression:g} is out of reach: give a number from 1 on that leaves more than the "
            f"{total - free:,} parameters which are not pruned, or set classifier=true."
        )
    return 1 - left / free
