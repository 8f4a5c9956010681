"""Rethinking the Value of Network Pruning: the structure that pruning found, trained from new weights.

Z. Liu, M. Sun, T. Zhou, G. Huang, T. Darrell. ICLR 2019, https://arxiv.org/abs/1810.05270.

Idea: if the pruned architecture, trained from random weights, is as good as the pruned and fine-tuned network, then the
structure is what pruning gave, not the weights. It is the control of every method that removes structure.

The run starts from another run's network (``start=RUN``), whatever made it: layers keep their widths, single weights
and filters that are zero there stay zero, everything else is drawn anew. *Scratch-E* trains for as many epochs as the
dense net, *Scratch-B* for as much computation: the epochs grow by the factor that the MACs shrank by.

Deviations
- All but the learning rate is as the dense net is trained. On CIFAR-10 at budget paper that is the paper's schedule (a
  tenth after one half and three quarters of the training), with batches of 128 (the paper: 64). The short one is a
  cosine behind a warm-up, which the paper does not have: at 0.1 from the first step on, ResNet-56 can die in 2 epochs.
- Scratch-B has no upper bound, as in the authors' scripts; the paper's text bounds it on ImageNet at twice the epochs.
- At a reduced budget both get the one fixed total of epochs, so Scratch-B is not longer than Scratch-E there.
- Batch normalisation starts at weight 1; the authors start their VGG nets at 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import masks

if TYPE_CHECKING:
    from baselines.task import Task

BatchNorm = nn.modules.batchnorm._BatchNorm
SOURCE = "Table 1 (L1-norm based filter pruning)"
GRID = "read in a third party's copy of the table (shrinkbench)"
RELEASE = "ImageNet results in the README of the authors' code"
README = "read in the README"
RECALLED = "recalled from the paper, not read again"
TABLE = (RECALLED, GRID)  # Scratch-E, Scratch-B


@dataclass
class Scratch(Method):
    """Draws new weights for the given structure and trains it. ``mode``: "E", ``epochs`` epochs (those of the dense
    net), or "B", ``epochs`` times dense MACs / MACs."""

    mode: str = "E"
    epochs: float = 160.0
    lr: float = 0.1

    paper: ClassVar[Paper] = Paper(
        title="Rethinking the Value of Network Pruning",
        authors="Z. Liu, M. Sun, T. Zhou, G. Huang, T. Darrell",
        venue="ICLR 2019",
        url="https://arxiv.org/abs/1810.05270",
        code="https://github.com/Eric-mingjie/rethinking-network-pruning",
    )
    recipes: ClassVar[dict[str, dict]] = {
        f"{baseline}{variant}": {"mode": mode, **training}
        for baseline, training in {
            "vgg16_mnist5k": {"epochs": 12.0, "lr": 0.05},
            "vgg16_cifar10": {"epochs": 160.0, "lr": 0.1},
            "resnet56_cifar10": {"epochs": 160.0, "lr": 0.1},
            "resnet56_cifar100": {"epochs": 160.0, "lr": 0.1},
            "resnet50_imagenette": {"epochs": 90.0, "lr": 0.0125},  # batches of 32
            "resnet50_imagenet": {"epochs": 90.0, "lr": 0.1},
        }.items()
        for variant, mode in (("", "E"), ("/B", "B"))
    }
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            baseline=baseline, label=f"{pruned}, Scratch-{mode}", source=source, recipe=f"{baseline}{variant}",
            top1=top1, base_top1=dense, verified=verified, start=start,
        )
        for baseline, pruned, start, dense, values, source, checked in (
            ("vgg16_cifar10", "L1 A", "l1_filter:vgg16_cifar10", 93.63, (93.62, 93.78), SOURCE, TABLE),
            ("resnet56_cifar10", "L1 A", "l1_filter:resnet56_cifar10/A", 93.14, (92.96, 93.09), SOURCE, TABLE),
            ("resnet56_cifar10", "L1 B", "l1_filter:resnet56_cifar10", 93.14, (92.54, 93.05), SOURCE, TABLE),
            *(
                ("resnet50_imagenet", pruned, start, None, values, RELEASE, (README, README))
                for pruned, start, values in (
                    ("ThiNet-30", "thinet:resnet50_imagenet/30", (70.91, 71.57)),
                    ("ThiNet-50", "thinet:resnet50_imagenet", (73.31, 73.90)),
                    ("ThiNet-70", "thinet:resnet50_imagenet/70", (74.42, 75.14)),
                    ("Channel pruning 2x", "channel_pruning:resnet50_imagenet", (71.26, 74.58)),
                )
            ),
        )
        for top1, (mode, variant), verified in zip(values, (("E", ""), ("B", "/B")), checked, strict=True)
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = tuple(
        Claim(
            f"Trained from new weights for as {much}, a pruned structure reaches the pruned and fine-tuned net.",
            "Tables 1 to 5", Select("scratch", settings={"mode": mode}), budgets=("short", "paper"), margin=0.5,
            verified=verified,
        )
        for mode, much, verified in (("E", "many epochs as the dense net", RECALLED), ("B", "much computation", GRID))
    )  # fmt: skip
    expected_failures: ClassVar[dict[str, str]] = {
        "smaller/tiny_resnet_synthetic": "it keeps the structure that it starts from, here the dense one",
        "dial": "its only dials are how long and how fast it trains",
    }

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """New weights into the structure of ``model``, then the training of a dense net."""
        if self.mode not in ("E", "B"):
            raise UserError(f"There is no mode '{self.mode}': choose E (as many epochs) or B (as much computation).")
        epochs = self.epochs
        if self.mode == "B":
            epochs *= task.cost(task.teacher).macs / task.cost(model).macs
        task.report(epochs_at_full_budget=round(epochs, 2))
        hold = structure(model)
        draw(model)
        hold()
        task.from_scratch = True
        task.train(model, epochs, lr=self.lr, after_step=hold, recipe=task.dense_recipe)
        return model


def structure(model: nn.Module) -> Callable[..., None]:
    """An ``after_step`` that keeps at zero what is zero in ``model`` now: weights; filters with their bias and BN."""
    hold_weights, cells = masks.hold(model), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            pairs = [(module.bias, (module.weight.detach() == 0).flatten(1).all(1))]
        elif isinstance(module, BatchNorm) and module.affine:
            gone = (module.weight.detach() == 0) & (module.bias.detach() == 0)
            pairs = [(module.weight, gone), (module.bias, gone)]
        else:
            continue
        cells += [(param, zeros) for param, zeros in pairs if param is not None and zeros.any()]

    def hold(step: int = 0) -> None:
        hold_weights(step)
        for param, zeros in cells:
            param.data.masked_fill_(zeros, 0)

    return hold


def draw(model: nn.Module) -> None:
    """New weights, as in the authors' code: convolutions from N(0, 2 / (k * k * filters)), linear layers from
    N(0, 0.01^2), zero biases, fresh batch normalisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
