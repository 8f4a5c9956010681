"""The student alone: the control of every distillation row.

Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. ICLR 2020, https://arxiv.org/abs/1910.10699,
and its code, RepDistiller, print it beside every distilled student.

Idea: what a teacher gives is what its student has more than the same student trained on the labels alone, from the
same start, for as many epochs and at the same learning rate.

Deviations
- Schedule, batch size and weight decay are the baseline's, from this learning rate down (cosine), as in the
  distillation methods; RepDistiller trains with batches of 64 and divides the rate by 10 after epochs 150, 180 and 210.
- The CIFAR nets have parameter-free shortcuts (option A); RepDistiller's have 1x1 convolutions where the width changes.
- RepDistiller trains on CIFAR-100 only: the settings elsewhere are those of the distillation methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from methods.base import Method, Paper, Reported

if TYPE_CHECKING:
    from baselines.task import Task

NETS = (
    "vgg16_mnist5k", "vggsmall_mnist5k", "bnn_convnet_mnist5k", "lenet300_mnist5k", "lenet5_mnist5k", "lenet300_mnist",
    "lenet5_mnist", "vgg16_cifar10", "vggsmall_cifar10", "bnn_convnet_cifar10", "resnet56_cifar10", "resnet56_cifar100",
)  # fmt: skip
IMAGENET = {"epochs": 100.0, "lr": 0.0125}  # 0.1 at batches of 256, for batches of 32


@dataclass
class Student(Method):
    """Trains the baseline's student from scratch on the labels, for ``epochs`` epochs from the learning rate ``lr``."""

    epochs: float = 240.0
    lr: float = 0.05

    paper: ClassVar[Paper] = Paper(
        title="Contrastive Representation Distillation",
        authors="Y. Tian, D. Krishnan, P. Isola",
        venue="ICLR 2020",
        url="https://arxiv.org/abs/1910.10699",
        code="https://github.com/HobbitLong/RepDistiller",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **{baseline: {"epochs": 240.0, "lr": 0.05} for baseline in NETS},
        "resnet50_imagenette": IMAGENET,
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar100",
            recipe="resnet56_cifar100",
            label="ResNet-20 alone",
            source="README of RepDistiller, row Student, column resnet56/resnet20",
            top1=69.06,
            base_top1=72.34,
            verified="read in that README; its base is the teacher",
        ),
    )
    expected_failures: ClassVar[dict[str, str]] = {"dial": "its only dials are how long and how fast it trains"}

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Cross-entropy with the labels; the dense model is left alone."""
        return task.train(task.student(), self.epochs, lr=self.lr)
