"""FitNets: Hints for Thin Deep Nets.

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio. ICLR 2015, https://arxiv.org/abs/1412.6550.

Idea: a thin student learns more easily when its middle layer has first learned to predict what a middle layer of the
teacher, the hint, computes; from there on it is distilled as a whole.

Stage 1 runs the student up to its guided layer only: what lies behind is not executed, so neither its weights nor its
batch statistics change. A convolutional regressor on top of the guided layer makes its map as large as the hint (its
kernel has the size N_guided - N_hint + 1 without padding, Sec. 2.2) and is thrown away after the stage.

Deviations
- 240 epochs in all (100 on ImageNet, which the paper does not have), as for the other distillation methods, half of
  them for each stage; the paper stops each stage after 100 epochs without progress on validation images, or after 500.
  On MNIST the first stage has a sixth: on images held out of training 99.1 %, where half gives 98.4 (3 seeds).
- RMSProp in stage 1 begins at the paper's 0.005 and follows the baseline's schedule down (cosine), where theirs is
  constant; the authors' files scale it by 0.05 in every convolution.
- Stage 2 is trained as the baseline is, from ``lr`` down, so that only its start differs from other distillation;
  the paper takes RMSProp there too. Weight decay is the baseline's in stage 2 and none in stage 1.
- lambda falls with every step of stage 2, over all of it; the paper's falls over 500 epochs (MNIST: 150),
  however long the stage is.
- The paper's nets are maxout nets without batch normalisation, deeper than their teachers, on whitened images; here
  they are the baseline's nets and images, and the student is initialised as usual (the paper: uniformly up to 0.005).
- The regressor's convolution is followed by batch normalisation, as the layers of these nets are (and as RepDistiller's
  regressor is), and by a ReLU where the hint has no negative value (the hint's non-linearity, Sec. 2.2).
- Where the number of stages is even, the middle one is the earlier of the two; VGG-16's recipes name the pool behind
  the seventh of its 13 convolutions, the middle one.
- ``beta`` and the recipe "repdistiller" are not the paper's, which found joint training to fail: they train hint and
  labels together, as the usual re-implementation does (RepDistiller; Tian, Krishnan, Isola, ICLR 2020).
- The printed row is that of RepDistiller, which trains with batches of 64, divides the rate by 10 after epochs 150, 180
  and 210, has 1x1 convolutions in its shortcuts where the width changes, and a teacher of 72.34 %; here the dense net
  of the same run teaches, unless ``baseline.teacher`` names the weights of another.
"""

from __future__ import annotations

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

CONV7 = {"hint": "features.23", "guided": "features.23"}
HALVES = {"hint_epochs": 120.0, "epochs": 120.0, "lr": 0.05}


@dataclass
class FitNets(Method):
    """Trains the student up to a guided layer on the teacher's hint, then the whole student by distillation.

    ``hint`` and ``guided`` name a layer of the teacher and one of the student; empty: their middle stage. Stage 1 takes
    ``hint_epochs`` at ``hint_lr``; stage 2 ``epochs`` at ``lr``, with the teacher's term at ``temperature`` weighted
    from ``lambda_start`` to ``lambda_end``. With ``beta`` there are no stages: ``epochs`` of labels plus ``beta`` times
    the mean squared error of the hint.
    """

    hint: str = ""
    guided: str = ""
    temperature: float = 3.0
    lambda_start: float = 4.0
    lambda_end: float = 1.0
    beta: float | None = None
    hint_epochs: float = 120.0
    hint_lr: float = 0.005
    epochs: float = 120.0
    lr: float = 0.05

    paper: ClassVar[Paper] = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        authors="A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio",
        venue="ICLR 2015",
        url="https://arxiv.org/abs/1412.6550",
        code="https://github.com/adri-romsor/FitNets",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k": {**CONV7, "hint_epochs": 40.0, "epochs": 200.0, "lr": 0.05},
        "vgg16_cifar10": {**CONV7, **HALVES},
        "resnet56_cifar10": HALVES,
        "resnet56_cifar100": HALVES,
        "resnet56_cifar100/repdistiller": {"beta": 100.0, "epochs": 240.0, "lr": 0.05},
        "resnet50_imagenette": {"hint_epochs": 50.0, "epochs": 50.0, "lr": 0.0125},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar100",
            recipe="resnet56_cifar100/repdistiller",
            label="ResNet-56 to ResNet-20, RepDistiller's re-implementation",
            source="README of RepDistiller, row FitNet, column resnet56/resnet20: not a table of this paper",
            top1=69.21,
            base_top1=72.34,
            verified="read in that README; its base is the teacher, its student alone has 69.06",
        ),
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "A student that begins with hints is better than the same student alone, and than with distillation alone.",
            "Sec. 3 (digits: errors of 0.51 %, 1.9 % and 0.65 %)", Select("fitnets", ("",)),
            (Select("student"), Select("kd")), budgets=("short", "paper"), verified="read in a copy of its text",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Algorithm 1, or both objectives at once; the dense model itself is left alone."""
        self._check()
        teacher, student = task.teacher, task.student()
        hint, guided = self.hint or middle(teacher, task), self.guided or middle(student, task)
        images, _ = next(iter(task.batches(8)))
        with torch.no_grad():
            regressor = regressor_for(layer(student.eval(), guided, images), layer(teacher, hint, images))
        task.report(hint=hint, guided=guided)

        def stage_1(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return hint_loss(regressor(layer(net, guided, x)), layer(teacher, hint, x))

        def jointly(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            (features,), logits = distill.outputs(net, [guided], x)
            gap = F.mse_loss(regressor(features).float(), layer(teacher, hint, x).float())
            return F.cross_entropy(logits.float(), y) + self.beta * gap

        if self.beta is not None:
            return task.train(student, self.epochs, lr=self.lr, loss=jointly, also_train=[regressor])
        of = self.hint_epochs + self.epochs
        task.train(student, self.hint_epochs, of=of, loss=stage_1, also_train=[regressor], optimizer=self._rmsprop)
        self._stage_2(student, teacher, task, of)
        return student

    def _stage_2(self, student: nn.Module, teacher: nn.Module, task: Task, of: float) -> None:
        """Distillation of the whole student, with lambda falling linearly from its first to its last step."""
        steps, clock = task.steps(self.epochs, of), {"step": 0}

        def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                targets = teacher(x)
            return self.objective(net(x), targets, y, clock["step"] / max(1, steps - 1))

        def tick(step: int) -> None:
            clock["step"] = step + 1

        task.train(student, self.epochs, of=of, lr=self.lr, loss=loss, after_step=tick, state=[clock])

    def objective(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, done: float) -> torch.Tensor:
        """Eq. 2 after the share ``done`` of the stage: student and teacher logits (N, classes), labels (N,)."""
        weight = self.lambda_start + done * (self.lambda_end - self.lambda_start)  # Sec. 2.4
        softened = F.softmax(targets.float() / self.temperature, dim=1)  # Eq. 1
        soft = F.cross_entropy(logits.float() / self.temperature, softened)
        return F.cross_entropy(logits.float(), labels) + weight * soft  # Eq. 2

    def _rmsprop(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """As in the authors' files: gradients over a moving root mean square that is bounded at 1e-5 from below."""
        return torch.optim.RMSprop(params, self.hint_lr, alpha=0.9, eps=1e-5)

    def _check(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"The temperature {self.temperature} is not positive: give a number such as 3.")
        for name in ("lambda_start", "lambda_end", "beta"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"The weight {name}={value} is not a number from 0 up: give one such as 1.")


def middle(net: nn.Module, task: Task) -> str:
    """The name of the middle stage of ``net``, of two the earlier one; UserError where it has none."""
    names = [name for name, _ in task.stages(net)]
    if not names:
        raise UserError("This network has no named stage: name its layer with method.hint=... or method.guided=...")
    return names[(len(names) - 1) // 2]


def layer(net: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """The output of one layer of ``net`` for images ``x``; nothing behind it runs."""
    (found,), _ = distill.outputs(net, [name], x, whole=False)
    return found


def regressor_for(features: torch.Tensor, hint: torch.Tensor) -> nn.Sequential:
    """Takes maps like ``features`` (N, C, H, W) to the size of ``hint``: a convolution without padding, BN, and ReLU.

    UserError where the two are no maps, or the first are smaller.
    """
    sizes = [tuple(maps.shape[1:]) for maps in (features, hint)]
    if any(len(size) != 3 for size in sizes):
        raise UserError(
            f"The guided layer gives {sizes[0]} and the hint {sizes[1]}: choose layers with maps (C, H, W)."
        )
    kernel = [g - h + 1 for g, h in zip(features.shape[2:], hint.shape[2:], strict=True)]  # N_g - k + 1 = N_h
    if min(kernel) < 1:
        raise UserError(
            f"The guided layer gives {sizes[0]}, smaller maps than the hint's {sizes[1]}: choose an earlier guided "
            "layer or a later hint."
        )
    parts = [nn.Conv2d(features.shape[1], hint.shape[1], kernel, bias=False), nn.BatchNorm2d(hint.shape[1])]
    return nn.Sequential(*parts, *([nn.ReLU()] if bool((hint >= 0).all()) else []))


def hint_loss(predicted: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
    """Half the squared distance of two maps (N, C, H, W), averaged over the images (Eq. 3)."""
    return 0.5 * (predicted.float() - hint.float()).square().flatten(1).sum(1).mean()  # Eq. 3
