"""Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
Transfer.

S. Zagoruyko, N. Komodakis. ICLR 2017, https://arxiv.org/abs/1612.03928.

Idea: where a net looks is worth teaching. The student learns the labels while its attention maps become those of the
teacher: maps of how strongly all channels together respond at each place (``mode`` "activation"), or of how much the
loss depends on each value of the input ("gradient").

Activation maps are read at the ends of the stages, which teacher and student have in common; a teacher's map of another
size is interpolated to the student's. In the gradient mode the loss holds a derivative of the student, so that its own
gradient goes backwards twice (Eq. 5).

Deviations
- Both gaps are means of squares, times ``beta``, as in the authors' code and in RepDistiller: the norms of Eqs. 2 and 4
  are squared (Eq. 5 is the derivative of the square) and their halves left out. So ``beta`` is the paper's 10^3, which
  it divides by the number of elements of the map and of images.
- On MNIST ``beta`` is 10 for activations, chosen on images held out of training (99.2 % against 92.4 with 10^3): the
  mean over a map's places makes the gap of its 2x2 maps 16 times as heavy as that of the paper's smallest, of 8x8.
- Gradients get the same 10^3 over the number of elements; no published value is known, and on held-out digits 100 is no
  better.
- ``beta`` stays as it is when the teacher's probabilities are used too (``alpha``), as in the authors' code; the paper
  lets it decay then and does not say how.
- The teacher's probabilities weigh ``alpha`` T^2 as a mean over images, as in the distillation paper; the authors' code
  takes 2 ``alpha`` T^2 and the mean over all probabilities: a fifth of that with 10 classes.
- Maps are read behind the stage's last ReLU (or its pooling), as in RepDistiller; the authors' CIFAR nets are
  pre-activation nets and give theirs before it. VGG's stages end with its first four pools: behind the last group of
  convolutions nothing is compared.
- Schedule, batch size and weight decay are the baseline's, from this learning rate down (cosine), and epochs and rate
  those of the other distillation methods; the authors' code trains CIFAR nets for 200 epochs from 0.1, times 0.2 after
  60, 120 and 160, and ImageNet nets for 100 from 0.1 at batches of 256, divided by 10 after 30, 60 and 90.
- The printed row is that of RepDistiller, which trains with batches of 64, divides the rate by 10 after epochs 150, 180
  and 210, has 1x1 convolutions in its shortcuts where the width changes, and a teacher of 72.34 %; here the dense net
  of the same run teaches, unless ``baseline.teacher`` names the weights of another.
- The gradient mode works on nets with batch normalisation, whose batch statistics the student's derivatives go through;
  the paper's net for it has none (recalled from the paper, not read again).
- The symmetry constraint (Eq. 6) needs no teacher and is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import distill

if TYPE_CHECKING:
    from baselines.task import Task

    Compared = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # the student's logits, the teacher's, the gap

MODES = ("activation", "gradient")
CIFAR = {"epochs": 240.0, "lr": 0.05}
NETS = {
    "vgg16_mnist5k": {**CIFAR, "beta": 10.0},
    "vgg16_cifar10": CIFAR,
    "resnet56_cifar10": CIFAR,
    "resnet56_cifar100": CIFAR,
    "resnet50_imagenette": {"epochs": 100.0, "lr": 0.0125},  # 0.1 at batches of 256, for batches of 32
}
VARIANTS = {"": {}, "/gradient": {"mode": "gradient", "beta": 1000.0}, "/kd": {"alpha": 0.9}}


@dataclass
class AT(Method):
    """Trains the student from scratch on labels and on the teacher's attention, weighted by ``beta`` >= 0.

    ``mode``: "activation" (sums over channels of values to the ``power`` >= 1) or "gradient" (of the loss, by the
    input). ``alpha`` in [0, 1] is the weight of the teacher's probabilities at ``temperature`` > 0, 1 - alpha that of
    the labels.
    """

    mode: str = "activation"
    beta: float = 1000.0
    power: float = 2.0
    alpha: float = 0.0
    temperature: float = 4.0
    epochs: float = 240.0
    lr: float = 0.05

    paper: ClassVar[Paper] = Paper(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        authors="S. Zagoruyko, N. Komodakis",
        venue="ICLR 2017",
        url="https://arxiv.org/abs/1612.03928",
        code="https://github.com/szagoruyko/attention-transfer",
    )
    recipes: ClassVar[dict[str, dict]] = {
        f"{baseline}{variant}": {**training, **fields}
        for baseline, training in NETS.items()
        for variant, fields in VARIANTS.items()
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar100",
            recipe="resnet56_cifar100",
            label="ResNet-56 to ResNet-20, RepDistiller's re-implementation",
            source="README of RepDistiller, row AT, column resnet56/resnet20: not a table of this paper",
            top1=70.55,
            base_top1=72.34,
            verified="read in that README; its base is the teacher, its student alone has 69.06",
        ),
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "A student that learns the teacher's activation attention is better than the same student alone.",
            "Tables 1 and 5", Select("at", ("",)), (Select("student"),), budgets=("short", "paper"),
            verified="figures of both tables read in the authors' README and in copies",
        ),
        Claim(
            "So is one that learns its gradient attention.", "Table 2", Select("at", ("gradient",)),
            (Select("student"),), budgets=("short", "paper"), verified="recalled, not read again",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Train the student from scratch under all objectives at once; the dense model itself is left alone."""
        self._check()
        teacher, student = task.teacher, task.student()
        compare = gradients
        if self.mode == "activation":
            names = common_stages(teacher, student, task)
            compare = functools.partial(activations, names, self.power)

        def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            logits, targets, gap = compare(net, teacher, x, y)
            return self.objective(logits, targets, y) + self.beta * gap  # Eq. 2, Eq. 4

        task.train(student, self.epochs, lr=self.lr, loss=loss)
        return student

    def objective(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss without attention: student and teacher logits (N, classes), labels (N,)."""
        hard = F.cross_entropy(logits.float(), labels)
        return (1 - self.alpha) * hard + self.alpha * distill.kd_loss(logits, targets, self.temperature)

    def _check(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"There is no mode '{self.mode}': choose one of {', '.join(MODES)}.")
        if not self.beta >= 0:
            raise UserError(f"The weight beta={self.beta} is not a number from 0 up: give one such as 1000.")
        if not self.power >= 1:
            raise UserError(f"The power {self.power} is below 1, where maps have no slope: give one such as 2.")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"The weight alpha={self.alpha} lies outside [0, 1]: give a share such as 0.9, or 0.")
        if not self.temperature > 0:
            raise UserError(f"The temperature {self.temperature} is not positive: give a number such as 4.")


def common_stages(teacher: nn.Module, student: nn.Module, task: Task) -> list[str]:
    """The names of the stages that both nets have; UserError where these are not the same, or none."""
    theirs, ours = ([name for name, _ in task.stages(net)] for net in (teacher, student))
    if theirs != ours or not ours:
        shown = [", ".join(names) or "none" for names in (theirs, ours)]
        raise UserError(
            f"The teacher has the stages {shown[0]} and the student {shown[1]}, but attention is compared stage by "
            "stage: give a teacher of the student's family, or method.mode=gradient."
        )
    return ours


def activations(
    names: Sequence[str], power: float, net: nn.Module, teacher: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> Compared:
    """Both nets' logits for images ``x``, and the gaps of their attention at the layers ``names``, added up."""
    ours, logits = distill.outputs(net, names, x)
    with torch.no_grad():
        theirs, targets = distill.outputs(teacher, names, x)
    gaps = [attention_gap(a, b, power) for a, b in zip(ours, theirs, strict=True)]
    return logits, targets, torch.stack(gaps).sum()  # Eq. 2


def attention_gap(student: torch.Tensor, teacher: torch.Tensor, power: float) -> torch.Tensor:
    """Mean squared difference of the normalised attention of two maps (N, C, H, W); C, H and W may differ."""
    ours, theirs = attention(student, power), attention(teacher, power)
    if ours.shape != theirs.shape:
        theirs = F.interpolate(theirs[:, None], ours.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return (F.normalize(ours.flatten(1)) - F.normalize(theirs.flatten(1))).square().mean()


def attention(maps: torch.Tensor, power: float) -> torch.Tensor:
    """The sum over channels of absolute values to the ``power`` (Eq. 1): (N, C, H, W) -> (N, H, W), float32."""
    if maps.dim() != 4:
        raise UserError(f"A stage gives {tuple(maps.shape[1:])}, no maps (C, H, W): use method.mode=gradient here.")
    return maps.float().abs().pow(power).sum(1)


def gradients(net: nn.Module, teacher: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Compared:
    """Both nets' logits for images ``x`` with labels ``y``, and the mean squared difference of their gradients."""
    logits, ours = sensitivity(net, x, y, twice=True)
    targets, theirs = sensitivity(teacher, x, y)
    return logits, targets.detach(), (ours - theirs).square().mean()  # Eq. 4


def sensitivity(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, twice: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the gradient of each image's cross-entropy by the image, like ``x`` (Eq. 3).

    ``twice``: the gradient can be differentiated again.
    """
    x = x.detach().requires_grad_()
    logits = net(x)
    total = F.cross_entropy(logits.float(), y, reduction="sum")
    (gradient,) = torch.autograd.grad(total, x, create_graph=twice)
    return logits, gradient
