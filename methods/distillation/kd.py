"""Distilling the Knowledge in a Neural Network.

G. Hinton, O. Vinyals, J. Dean. NIPS Deep Learning Workshop 2014, https://arxiv.org/abs/1503.02531.

Idea: a trained net's class probabilities, softened by a temperature, say which wrong classes resemble the right one; a
small net learns more from them than from labels alone.

The paper has no convolutional benchmark. Defaults and the printed row are those of RepDistiller, the usual reference
implementation (Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699).

Deviations
- Schedule, batch size and weight decay are the baseline's, from this learning rate down (cosine); RepDistiller trains
  with batches of 64 and divides the rate by 10 after epochs 150, 180 and 210.
- The CIFAR nets have parameter-free shortcuts (option A); RepDistiller's have 1x1 convolutions where the width changes.
- The dense net of the same run teaches, as accurate as its own budget made it, unless ``baseline.teacher`` names the
  weights of another; RepDistiller's ResNet-56 has 72.34 %.
- The settings are RepDistiller's for CIFAR-100 on every CIFAR and MNIST net. On ImageNet they are those of later
  re-implementations from ResNet-34 to ResNet-18 (T = 1, half of each term, 100 epochs from 0.1 at batches of 256, here
  0.0125 at 32), where the teacher is a ResNet-50.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit.distill import kd_loss

if TYPE_CHECKING:
    from baselines.task import Task


NETS = (
    "vgg16_mnist5k", "vggsmall_mnist5k", "bnn_convnet_mnist5k", "lenet300_mnist5k", "lenet5_mnist5k", "lenet300_mnist",
    "lenet5_mnist", "vgg16_cifar10", "vggsmall_cifar10", "bnn_convnet_cifar10", "resnet56_cifar10", "resnet56_cifar100",
)  # fmt: skip
REPDISTILLER = {"temperature": 4.0, "alpha": 0.9, "epochs": 240.0, "lr": 0.05}


@dataclass
class KD(Method):
    """Trains the student from scratch on labels and on the teacher's softened probabilities.

    ``temperature`` T > 0 softens both nets' outputs; ``alpha`` in [0, 1] is the weight of the teacher's term, 1 - alpha
    that of the labels' cross-entropy.
    """

    temperature: float = 4.0
    alpha: float = 0.9
    epochs: float = 240.0
    lr: float = 0.05

    paper: ClassVar[Paper] = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="G. Hinton, O. Vinyals, J. Dean",
        venue="NIPS Deep Learning Workshop 2014",
        url="https://arxiv.org/abs/1503.02531",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **dict.fromkeys(NETS, REPDISTILLER),
        "resnet50_imagenette": {"temperature": 1.0, "alpha": 0.5, "epochs": 100.0, "lr": 0.0125},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar100",
            recipe="resnet56_cifar100",
            label="ResNet-56 to ResNet-20, RepDistiller's re-implementation",
            source="README of RepDistiller, row KD, column resnet56/resnet20: not a table of this paper",
            top1=70.66,
            base_top1=72.34,
            verified="read in that README; its base is the teacher, its student alone has 69.06",
        ),
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "The distilled student is better than the same student alone.", "Sec. 3 (digits: 74 errors against 146)",
            Select("kd"), (Select("student"),), budgets=("short", "paper"), verified="read in notes on the paper",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Train the student from scratch under both objectives; the dense model itself is left alone."""
        if not self.temperature > 0:
            raise UserError(f"The temperature {self.temperature} is not positive: give a number such as 4.")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"The weight alpha={self.alpha} lies outside [0, 1]: give a share such as 0.9.")
        teacher, student = task.teacher, task.student()

        def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                targets = teacher(x)
            return self.objective(net(x), targets, y)

        task.train(student, self.epochs, lr=self.lr, loss=loss)
        return student

    def objective(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Weighted average of the two objectives (Sec. 2): student and teacher logits (N, classes), labels (N,)."""
        hard = F.cross_entropy(logits.float(), labels)
        soft = kd_loss(logits, targets, self.temperature)  # Eq. 1 at T in both nets, times T^2
        return (1 - self.alpha) * hard + self.alpha * soft
