"""Learning both Weights and Connections for Efficient Neural Networks.

S. Han, J. Pool, J. Tran, W. J. Dally. NIPS 2015, https://arxiv.org/abs/1506.02626.

Idea: a trained net tells by the size of its weights which connections matter; remove those below a threshold, which is
a quality parameter times the standard deviation of the layer's weights, let the others adapt, and repeat.

Each iteration prunes the fully connected layers and retrains them with the convolutional part fixed, then prunes the
convolutional layers and retrains them with the fully connected part fixed (Sec. 3.3). Survivors keep their values and
are never re-initialised; L2 is the baseline's weight decay. Every convolution and linear layer is pruned, the first
and the last as well; biases and batch normalisation are not. Neurons that lost all inputs or all outputs are removed
with all their connections, biases and BN scales and shifts (Sec. 3.5): these are zeros too, and the tensors keep their
shapes. The standard deviation is that of the whole tensor, removed weights counting as zeros.

Deviations
- The quality parameters and the sensitivity analysis behind them are not published. ``densities`` gives the published
  shares of weights per layer instead, and the quality that leads to them is reported; a layer of our VGG-16 has
  the density of its namesake on ImageNet (the 512-unit layer that of fc7, the classifier that of fc8).
- How the threshold grows from one iteration to the next is not published: iteration k of K takes k / K of the quality,
  or density^(k / K).
- Five iterations, published for VGG-16, are the default for every net. The epochs are not published (AlexNet's
  retraining took 2.3 times as long as its training: so do the LeNets' on MNIST).
- The learning rate starts at a tenth of the dense net's, as for LeNet (a hundredth for ResNet-50, as for AlexNet), and
  follows the baseline's schedule (cosine) in every retraining; the paper gives no schedule.
- The paper's nets have no batch normalisation: here it belongs to the part that it follows, and a fixed part also keeps
  its running statistics and works with them.
- Sec. 4.2 retrains AlexNet as a whole, against Sec. 3.3, which is followed here; ``phases=false`` does the other.
- A layer below its threshold as a whole keeps its largest weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import masks

if TYPE_CHECKING:
    from baselines.task import Task

DEFAULT_QUALITY = 1.0
FC = (nn.Linear, nn.BatchNorm1d)
CONV = (nn.Conv2d, nn.BatchNorm2d)
# Shares of weights that stay, Tables 2, 3 and 5
LENET300 = (0.08, 0.09, 0.26)
LENET5 = (0.66, 0.12, 0.08, 0.19)
VGG16 = (0.58, 0.22, 0.34, 0.36, 0.53, 0.24, 0.42, 0.32, 0.27, 0.34, 0.35, 0.29, 0.36, 0.04, 0.23)
READ = "read in a copy of the paper's full text; the weights left, {} of {}, recounted from the densities of Table {}"


@dataclass
class HanPruning(Method):
    """Removes the weights below ``quality`` standard deviations of their layer in ``iterations`` steps, retraining.

    The first that is set of ``quality`` (one for all layers), ``qualities`` (one per layer) and ``densities`` (share of
    each layer's weights that stay) counts, layers in order of definition; with none of them the quality is 1.
    ``epochs`` are those of one retraining; ``phases``: fully connected and convolutional part in turn.
    """

    quality: float | None = None
    qualities: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    iterations: int = 5
    phases: bool = True
    epochs: float = 30.0
    lr: float = 0.01

    paper: ClassVar[Paper] = Paper(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        authors="S. Han, J. Pool, J. Tran, W. J. Dally",
        venue="NIPS 2015",
        url="https://arxiv.org/abs/1506.02626",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "lenet300_mnist": {"densities": LENET300, "lr": 0.005, "epochs": 5.0},
        "lenet5_mnist": {"densities": LENET5, "lr": 0.002, "epochs": 2.5},
        "lenet300_mnist5k": {"densities": LENET300, "lr": 0.005},
        "lenet5_mnist5k": {"densities": LENET5, "lr": 0.005},
        "vgg16_mnist5k": {"densities": VGG16, "lr": 0.005},
        "vgg16_cifar10": {"densities": VGG16},
        "resnet56_cifar10": {"quality": 1.0},
        "resnet56_cifar100": {"quality": 1.0},
        "resnet50_imagenette": {"quality": 1.0, "lr": 0.001},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="lenet300_mnist", recipe="lenet300_mnist", label="LeNet-300-100, 12x",
            source="Table 1", top1=98.41, base_top1=98.36, rule="nonzero", verified=READ.format("22K", "267K", 2),
        ),
        Reported(
            baseline="lenet5_mnist", recipe="lenet5_mnist", label="LeNet-5, 12x",
            source="Table 1", top1=99.23, base_top1=99.20, rule="nonzero", verified=READ.format("36K", "431K", 3),
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "Pruned to 9 to 13 times fewer weights, the retrained net loses no accuracy.", "abstract, Table 1",
            Select("han_pruning", ("",)), (Select("dense"),), budgets=("short", "paper"), margin=0.5,
            verified="read in a copy of the paper's text",
        ),
        Claim(
            "Pruning step by step is better than pruning as much at once.", "Sec. 3.4, Fig. 5",
            Select("han_pruning", ("",)), (Select("magnitude"),), ("bytes",), budgets=("short", "paper"),
            verified="recalled, not read again",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Prune and retrain the fully connected, then the convolutional part; ``iterations`` times."""
        if self.iterations < 1:
            raise UserError(f"iterations={self.iterations} prunes nothing: give at least 1; the paper takes 5.")
        weights = masks.weights(model)
        targets = self._targets(list(weights))
        parts = [part for part in ((FC, CONV) if self.phases else (FC + CONV,)) if names_of(model, weights, part)]
        of = self.epochs * self.iterations * len(parts)
        dropouts, qualities, clamped = dropouts_of(model), {}, []
        for k in range(1, self.iterations + 1):
            for part in parts:
                for name in names_of(model, weights, part):
                    qualities[name] = self._quality(weights[name], targets[name], k / self.iterations)
                    keep, spared = masks.beyond(name, weights[name], qualities[name])
                    masks.prune(weights, {name: keep})
                    clamped += [name] if spared and name not in clamped else []
                masks.prune_unused(model, task.example)  # Sec. 3.5
                adjust(dropouts)
                with fixed(model, [kind for kind in FC + CONV if kind not in part]):
                    task.train(model, self.epochs, of=of, lr=self.lr, after_step=masks.hold(model))
        task.report(qualities=qualities, clamped=clamped, emptied=[n for n, w in weights.items() if not w.any()])
        return model

    def _targets(self, names: list[str]) -> dict[str, float]:
        """The quality or density that each layer is to reach, whichever is set."""
        values = self.qualities or self.densities or (DEFAULT_QUALITY,) * len(names)
        if self.quality is not None:
            values = (self.quality,) * len(names)
        if len(values) != len(names):
            raise UserError(
                f"{len(values)} values were given, but there are {len(names)} layers with weights "
                f"({', '.join(names)}): give one for each, or a single quality."
            )
        return dict(zip(names, values, strict=True))

    def _quality(self, weight: torch.Tensor, target: float, share: float) -> float:
        """The quality parameter of a layer after the share k / K of the iterations."""
        if self.quality is not None or self.qualities or not self.densities:
            return target * share
        if not 0 < target <= 1:
            raise UserError(f"The density {target} lies outside (0, 1]: give the share of the weights that stays.")
        return quality_for(weight, target**share)


def quality_for(weight: torch.Tensor, density: float) -> float:
    """The quality that leaves the share ``density`` of a tensor's weights: a threshold between two magnitudes."""
    values = weight.detach().flatten().cpu().double()
    sizes = values.abs().sort().values
    gone = int(len(sizes) * (1 - density))
    threshold = (sizes[gone - 1] + sizes[gone]) / 2 if gone else sizes[0]
    return float(threshold / values.std(unbiased=False).clamp_min(1e-30))


def names_of(model: nn.Module, weights: Mapping[str, torch.Tensor], part: tuple[type, ...]) -> list[str]:
    """The layers with weights that are of the given kinds."""
    return [name for name in weights if isinstance(model.get_submodule(name), part)]


def dropouts_of(model: nn.Module) -> list[tuple[nn.Dropout, float, torch.Tensor]]:
    """Every dropout, its rate, and the weights of the layer before it, whose neurons it drops."""
    found, last = [], None
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = module.weight
        if isinstance(module, nn.Dropout) and last is not None:
            found.append((module, module.p, last))
    return found


def adjust(dropouts: list[tuple[nn.Dropout, float, torch.Tensor]]) -> None:
    """Sec. 3.2: fewer connections, less dropout."""
    for dropout, original, weight in dropouts:
        before, left = weight.numel(), weight.count_nonzero()  # Eq. 1: C_i = N_i N_(i-1)
        dropout.p = original * float(left / before) ** 0.5  # Eq. 2


@contextlib.contextmanager
def fixed(model: nn.Module, kinds: list[type]) -> Iterator[None]:
    """Sec. 3.3: modules of these kinds do not change while the others are retrained."""
    modules = [module for module in model.modules() if isinstance(module, tuple(kinds))]

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
