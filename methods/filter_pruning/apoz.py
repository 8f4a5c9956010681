"""Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures.

H. Hu, R. Peng, Y.-W. Tai, C.-K. Tang. arXiv 2016, https://arxiv.org/abs/1607.03250.

Idea: a neuron (a filter of a convolution, an output of a hidden linear layer) whose ReLU nearly always emits zero does
little; remove those whose average percentage of zeros (APoZ) stands out in their layer, retrain from the weights that
are left, measure again, and so on.

Only layers behind a ReLU have an APoZ; others stay whole. Caffe's LeNet-5 has its one ReLU behind ``ip1``: here only
that layer is trimmed, where the paper trims the second convolution too. The paper knows no residual nets. The rule
trims them inside their blocks, as the zeros behind an addition are not those of one filter. ``ratios``, and one rate
with ``stream``, prune the coupled convolutions as well: ResNet-50's lose channels by one common score, the average of
their shares of nonzeros; a CIFAR ResNet has the filters of its stream zeroed. The paper's other table, VGG-16 on
ImageNet, has no baseline here.

Deviations
- APoZ is measured on training images; the paper takes the validation set.
- The layers of a round follow a rule: the two of highest mean APoZ, and with every further round their next neighbours;
  the paper names them (conv5-3 and fc6 of VGG-16, conv2 and ip1 of LeNet) and goes on to their neighbours.
- A round retrains for 10 epochs on the baseline's schedule from 1e-3; the paper's solver settings are not known here.
- The standard deviation is that of a whole population; which one the paper takes is not known here.
- ``ratio``, ``ratios``, ``macs_reduction`` and the one-shot recipes are not in the paper. They remove the neurons of
  highest APoZ of a layer, in equal parts over the rounds.
- The recipes for Distiller's rows retrain for 7 epochs after each of 10 steps; Distiller prunes in 10 steps during the
  first 20 of 70 epochs, with learning rates of its own, and on ResNet-50 zeroes 87 % of the last layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import features, surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Keep, Layer

SLACK = 1e-12  # equal shares of zeros never stand out, however their mean is rounded
BASELINES = ("vgg16_mnist5k", "vgg16_cifar10", "resnet56_cifar10", "resnet56_cifar100", "resnet50_imagenette")
LENETS = ("lenet5_mnist", "lenet5_mnist5k")
RULE = {"deviations": 1.0, "first": 2, "spread": 1, "rounds": 4}
ONE_SHOT = {"deviations": 1.0, "first": 0, "rounds": 1, "epochs": 40.0}
GRADUAL = {"rounding": "removed", "rounds": 10, "epochs": 7.0}
DISTILLER = "Distiller (IntelLabs), examples/network_trimming: their run of this criterion"
READ = "read in its README and schedule; weights and MACs recounted from the structure: exact"


def resnet56(first: float, second: float, third: float, single: float) -> tuple[float, ...]:
    """Distiller's rates: one for each stage's blocks but some, ``single`` for one block; 0 on all second convolutions.

    The order is that of the 55 convolutions: the stem, then two in each block.
    """
    blocks = [first] * 9 + [0.0, *[second] * 4, 0.0, second, second, 0.0]
    blocks += [0.0, single, third, third, 0.0, *[third] * 4]
    return (0.0, *(rate for block in blocks for rate in (block, 0.0)))


RESNET56_A, RESNET56_B = resnet56(0.6, 0.5, 0.3, 0.1), resnet56(0.7, 0.6, 0.4, 0.2)
RESNET50 = (0.0, *(rate for blocks in (3, 4, 6, 3) for rate in (0.0, *(0.5, 0.5, 0.0) * blocks)))


@dataclass
class APoZ(Method):
    """Removes the neurons whose ReLU emits zero most often, in ``rounds`` of trimming and retraining.

    The paper's rule: those whose APoZ exceeds the mean of their layer by more than ``deviations`` standard deviations,
    in the ``first`` layers of highest mean APoZ (0: in all) and, with every further round, in ``spread`` more layers on
    either side. Else the first that is set of ``macs_reduction`` (share of the MACs to save, at one rate), ``ratio``
    (one for all) and ``ratios`` (one per convolution and hidden linear layer) counts; one rate leaves convolutions that
    an addition couples whole unless ``stream`` is set. ``neurons``: hidden linear layers are trimmed too. ``rounding``:
    int(w * (1 - rate)) of w neurons stay ("keep"), or int(w * rate) go ("removed"). ``images``: how many APoZ is
    measured on. ``epochs`` are those of one round.
    """

    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    macs_reduction: float | None = None
    stream: bool = False
    neurons: bool = True
    rounding: str = "keep"
    deviations: float = 1.0
    first: int = 2
    spread: int = 1
    rounds: int = 4
    images: int = 1000
    epochs: float = 10.0
    lr: float = 1e-3

    paper: ClassVar[Paper] = Paper(
        title="Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
        authors="H. Hu, R. Peng, Y.-W. Tai, C.-K. Tang",
        venue="arXiv 2016",
        url="https://arxiv.org/abs/1607.03250",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **dict.fromkeys((*BASELINES, *LENETS), RULE),
        **dict.fromkeys((f"{baseline}/oneshot" for baseline in (*BASELINES, *LENETS)), ONE_SHOT),
        **{f"{baseline}/macs{p}": {"macs_reduction": p / 100} for baseline in BASELINES for p in (30, 50, 70)},
        "resnet56_cifar10/distiller_A": {"ratios": RESNET56_A, **GRADUAL},
        "resnet56_cifar10/distiller_B": {"ratios": RESNET56_B, **GRADUAL},
        "resnet50_imagenet/distiller": {"ratios": RESNET50, **GRADUAL},
        "resnet56_cifar100/survey": {"ratio": 0.8, "rounds": 1, "epochs": 40.0},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="lenet5_mnist", recipe="lenet5_mnist", label="20-24-252-10", source="the table of LeNet",
            params_reduction=74.0, verified="recalled (3.85 times fewer), not read again; the structure recounts to it",
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10/distiller_A", label="Distiller, schedule 1",
            source=DISTILLER, top1=93.03, base_top1=92.85, params_reduction=25.47, macs_reduction=37.29, verified=READ,
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10/distiller_B", label="Distiller, schedule 2",
            source=DISTILLER, top1=92.59, base_top1=92.85, params_reduction=32.98, macs_reduction=46.08, verified=READ,
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet/distiller", label="Distiller, ResNet-50",
            source=DISTILLER, top1=73.93, base_top1=76.15, params=12_335_296, macs=1_822_031_872,
            verified=f"{READ}; params without BN and biases (the README's 43.37 % of them is a slip for 48.37 %)",
        ),
        Reported(
            baseline="resnet56_cifar100", recipe="resnet56_cifar100/survey", label="APoZ, 80 % sparsity",
            source="Fig. 5 of Xu, Li, Yuan, J. Zhejiang Univ. (Eng. Sci.) 57(3), 2023: their run of this criterion",
            top1=58.89, base_top1=71.5, verified="read in that paper",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "The trimmed net, retrained from the weights that are left, is no worse than the dense one.", "abstract",
            Select("apoz", ("",)), (Select("dense"),), budgets=("short", "paper"), margin=0.5,
            verified="its rows on ImageNet, read in the data of another paper, all gain accuracy",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Measure APoZ, trim, retrain; again and again."""
        self._check()
        layers = surgery.layers(model, task.example, linear=self.neurons)
        measured = behind_relu(model, task.example, layers)
        left, clamped = self._left(model, task, layers, measured)
        names = list(left) or [name for name in measured if not layers[name].coupled]
        surgery.rates(0.0, names)  # refuses a net of which nothing is free
        start, kept = [], {}
        for number in range(1, self.rounds + 1):
            zeros = features.channel_means(model, task.example, names, task.batches(self.images), zero_shares)
            start = start or sorted(names, key=lambda name: -zeros[name].mean())[: self.first or None]
            if left:
                keep = self._towards(model, task, layers, left, zeros, number)
            else:
                near = within(names, start, (number - 1) * self.spread)
                keep = {name: usual(zeros[name], self.deviations) for name in near}
            kept |= {name: int(mask.sum()) for name, mask in keep.items()}
            model = surgery.remove(model, task.example, keep)
            masked = any(layers[name].coupled for name in keep)
            hold = surgery.hold(model, task.example) if masked else None  # zeroed filters stay zero after every step
            task.train(model, self.epochs, of=self.epochs * self.rounds, lr=self.lr, after_step=hold)
        task.report(clamped=clamped, kept=kept)
        return model

    def _check(self) -> None:
        """UserError for hyper-parameters that mean nothing."""
        for name, least in (("rounds", 1), ("images", 1), ("first", 0), ("spread", 0), ("deviations", 0)):
            value = getattr(self, name)
            if not value >= least:
                raise UserError(f"{name}={value} leaves no way to trim: give at least {least}.")

    def _left(
        self, model: nn.Module, task: Task, layers: Mapping[str, Layer], measured: list[str]
    ) -> tuple[dict[str, int], list[str]]:
        """(how many neurons each layer ends with, layers clamped to one); nothing where the paper's rule decides."""
        names, ratios = [name for name in measured if self.stream or not layers[name].coupled], []
        if self.macs_reduction is None and self.ratio is None:
            if not self.ratios:
                return {}, []
            wanted = surgery.rates(self.ratios, layers)
            silent = [name for name, rate in wanted.items() if rate > 0 and name not in measured]
            if silent:
                raise UserError(f"No ReLU follows {', '.join(silent)}, so it has no APoZ: give it the ratio 0.")
            names, ratios = measured, [wanted[name] for name in measured]
        chosen, rates = {name: layers[name] for name in names}, (self.ratio, ratios, self.macs_reduction)
        return surgery.widths(model, task.example, chosen, *rates, stream=True, rounding=self.rounding)

    def _towards(
        self,
        model: nn.Module,
        task: Task,
        layers: Mapping[str, Layer],
        left: Mapping[str, int],
        zeros: Mapping[str, torch.Tensor],
        number: int,
    ) -> Keep:
        """Round ``number`` on the way to ``left``: the neurons of highest APoZ go, an equal part in every round."""
        scores = surgery.couple({name: 1 - share.cpu() for name, share in zeros.items()}, layers)
        coupled = [name for name in scores if layers[name].coupled]
        alive = surgery.alive(model, task.example) if coupled else {}
        for name in coupled:  # what an earlier round has zeroed is counted among what goes
            scores[name] = torch.where(alive[name], scores[name], -1.0)
        shares = []
        for name, score in scores.items():
            width = layers[name].width
            shares.append(1 - (width - (width - left[name]) * number // self.rounds) / len(score))
        return surgery.select(scores, shares, "keep")[0]


def behind_relu(model: nn.Module, example: torch.Tensor, names: Iterable[str]) -> list[str]:
    """Those of the layers ``names`` whose outputs are read behind a ReLU; UserError where there is none."""
    sites = features.sites(model, example, names)
    found = [name for name, site in sites.items() if isinstance(model.get_submodule(site.module), nn.ReLU | nn.ReLU6)]
    if not found:
        raise UserError("No prunable layer of this network is followed by a ReLU module: APoZ needs its zeros.")
    return found


@torch.no_grad()
def zero_shares(maps: torch.Tensor) -> torch.Tensor:
    """Share of zeros in every map of (N, C, H, W), or in every output of (N, C): (N, C) float64.

    UserError for outputs that are not finite.
    """
    if not maps.isfinite().all():
        raise UserError("An activation is not finite: the network has diverged; train it again before trimming it.")
    return (maps == 0).double().reshape(*maps.shape[:2], -1).mean(2)  # Eq. 1, averaged over the images by the caller


def usual(zeros: torch.Tensor, deviations: float) -> torch.Tensor:
    """Bool mask of the neurons whose APoZ is at most ``deviations`` standard deviations above their layer's mean."""
    return (zeros <= zeros.mean() + deviations * zeros.std(correction=0) + SLACK).cpu()


def within(names: list[str], start: Iterable[str], reach: int) -> list[str]:
    """The ``names`` at most ``reach`` places away from one of ``start``, in order."""
    places = [names.index(name) for name in start]
    return [name for i, name in enumerate(names) if any(abs(i - place) <= reach for place in places)]
