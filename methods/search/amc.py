"""AMC: AutoML for Model Compression and Acceleration on Mobile Devices.

Y. He, J. Lin, Z. Liu, H. Wang, L.-J. Li, S. Han. ECCV 2018, https://arxiv.org/abs/1802.03494.

Idea: an agent goes through the net layer by layer and says how much of each may stay; the accuracy of the pruned net,
not fine-tuned, is its reward, and after some hundred episodes it knows which layers bear it.

The agent is DDPG (``methods/kit/search.py``); of a layer it sees the paper's eleven numbers. Channel pruning decides on
the *input* channels of a layer, as the authors' code does: those with the largest sums of absolute weights stay, the
weights that read them are solved for anew, so that the layer's output stays near the dense net's, and the filters that
gave the others are really gone. Fine-grained pruning keeps the largest weights of each layer, all layers alike.

Under ``reward`` "error" (resource-constrained) there is a budget: a layer may have what the later layers, at their
least, leave of it. "macs" and "params" (accuracy-guaranteed) set none: the agent finds out how much can go.

In residual nets channels inside of blocks are pruned, which makes 27 actions for ResNet-56. What an addition couples
stays whole; the authors' code gives such channels of MobileNet-V2 one action in common.

Deviations
- Batch normalisation is calibrated on a few training images, without labels, before a pruned net is judged. Errors are
  top-1 on a tenth of the training set (for CIFAR the authors' 5,000 images); their code takes top-5 unless told else.
- A layer's action is bound from below too, so that an episode spends its budget to within one channel or weight.
- Counts of channels are rounded up to multiples of ``rounding``; the authors' code takes 8, where ResNet-56 has blocks
  of 16 channels and gets 1 here.
- Channels that an addition couples stay whole (see above), and so do the neurons of hidden linear layers.
- What is reduced so far is, in the state, the sum of the MACs of the layers times the share of inputs that each lost;
  the authors' code takes the filters that they lost into account as well.
- A column of the state that is the same for all layers is 0; the authors' code leaves it as it is.
- The updates of an episode's end follow each other; in the authors' code they alternate with storing the episode. The
  actor ends in a tanh, scaled to [0, 1], not a sigmoid; batches are drawn with replacement.
- Fine-grained pruning is one search; the paper prunes ResNet-50 in four, with fine-tuning between them.
- Fine-tuning takes 150 epochs and a cosine, which the authors' code has for MobileNet; learning rate, batch size,
  momentum and weight decay are the baseline's.
- There are the paper's 100 + 300 episodes; the authors' code has 101 + 699. Shorter budgets search for fewer.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import masks, reconstruct, search, surgery
from methods.kit.features import Site
from methods.kit.reconstruct import Moments
from methods.kit.search import Counts, Space

if TYPE_CHECKING:
    from baselines.cost import Cost
    from baselines.task import Task
    from methods.kit.reconstruct import Reader
    from methods.kit.search import Actions

CHOICES = {"granularity": ("channel", "weight"), "reward": ("error", "macs", "params")}
BASELINES = (
    *("vgg16_mnist5k", "vgg16_cifar10", "resnet56_cifar10", "resnet56_cifar100"),
    *("resnet50_imagenette", "resnet50_imagenet"),
)


@dataclass
class AMC(Method):
    """Searches how much of each layer stays by DDPG, prunes so, and fine-tunes.

    ``granularity`` "channel" removes ``macs_reduction`` of the MACs, "weight" leaves ``sparsity`` of the weights at
    zero, where ``reward`` is "error"; with "macs" and "params" there is no such goal. Of each layer a share of
    ``lowest`` stays, in multiples of ``rounding`` channels. ``warmup`` episodes are random, ``episodes`` follow them.
    ``images`` with ``locations`` samples each are refitted on; ``calibration`` images set batch normalisation.
    """

    granularity: str = "channel"
    reward: str = "error"
    macs_reduction: float = 0.5
    sparsity: float = 0.5
    lowest: float = 0.2
    rounding: int = 1
    warmup: int = 100
    episodes: int = 300
    images: int = 3000
    locations: int = 10
    calibration: int = 500
    epochs: float = 150.0
    lr: float | None = None

    paper: ClassVar[Paper] = Paper(
        title="AMC: AutoML for Model Compression and Acceleration on Mobile Devices",
        authors="Y. He, J. Lin, Z. Liu, H. Wang, L.-J. Li, S. Han",
        venue="ECCV 2018",
        url="https://arxiv.org/abs/1802.03494",
        code="https://github.com/mit-han-lab/amc",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **{name: {"macs_reduction": 0.5} for name in BASELINES},
        **{f"{name}/macs{share}": {"macs_reduction": share / 100} for name in BASELINES for share in (30, 50, 70)},
        **{f"{name}/fine_grained": {"granularity": "weight", "sparsity": 0.6} for name in BASELINES},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10", label="AMC, 50 % FLOPs", source="Table 2",
            top1=91.9, base_top1=92.8, macs=6.27e7, macs_reduction=50.0,
            verified="accuracies in the table of another project's reimplementation, MACs in a later paper's README",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "At the same MACs the searched policy is better than channel pruning by hand-made rates.", "Table 2",
            Select("amc", settings={"granularity": "channel"}), (Select("channel_pruning"),), ("macs",),
            budgets=("short", "paper"), verified="its figures, read in another project's table and README",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Let the agent go through the layers, episode by episode; prune by the best episode and fine-tune."""
        self._check()
        channel = self.granularity == "channel"
        pruner = (Channels if channel else Weights)(model, task, self)

        def reward(actions: Actions) -> float:
            candidate = pruner.prune(copy.deepcopy(model), actions)
            search.calibrate(candidate, task.batches(self.calibration))
            return self._reward(1 - task.validate(candidate) / 100, task.cost(candidate))

        warmup, seed = task.rounds(self.warmup), seed_of(task.seed, "amc")
        found = search.search(pruner.space, reward, warmup + task.rounds(self.episodes), warmup, seed)
        task.report(**found.facts(pruner.names, pruner.counts))
        model = pruner.prune(model, found.actions)
        search.calibrate(model, task.batches(self.calibration))
        return task.train(model, self.epochs, lr=self.lr, after_step=None if channel else masks.hold(model))

    def _check(self) -> None:
        """UserError for a value that nothing can be made of."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"There is no {name} '{getattr(self, name)}': choose one of {', '.join(choices)}.")
        for name in ("macs_reduction", "sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"The {name} {getattr(self, name)} lies outside [0, 1): give the share to remove.")
        reconstruct.check_samples(self.images, self.locations)

    def _reward(self, error: float, cost: Cost) -> float:
        """R_err, R_FLOPs or R_Param of a net that is wrong on the share ``error``."""
        macs, params = cost.macs, cost.params
        if self.granularity == "weight":
            macs, params = cost.effective_macs, cost.nonzero
        return -error * {"error": 1.0, "macs": math.log(macs), "params": math.log(params)}[self.reward]


class Channels:
    """Pruning of the channels that the convolutions ``names`` give, by the weights of the layers that read them."""

    def __init__(self, model: nn.Module, task: Task, method: AMC) -> None:
        self.example, self.found = task.example, surgery.layers(model, task.example)
        self.readers = {name: reconstruct.readers(layer) for name, layer in self.found.items() if not layer.coupled}
        self.names, widths = list(self.readers), [self.found[name].width for name in self.readers]
        self.grams = grams(model, task, method, [reader for found in self.readers.values() for reader in found])
        macs = surgery.module_macs(model, task.example)

        def total(counts: np.ndarray) -> float:
            keep = {n: torch.arange(w) < c for n, w, c in zip(self.names, widths, counts, strict=True)}
            return surgery.macs_left(model, macs, keep, self.found)

        whole = total(np.array(widths))
        goal = whole * (1 - method.macs_reduction) if method.reward == "error" else None
        self.counts = Counts(np.array(widths), total, goal, method.lowest, method.rounding)
        first = [readers[0].name for readers in self.readers.values()]  # the layers that lose inputs
        states, costs = search.describe(model, task.example, first), np.array([macs[name] for name in first])
        self.space = Space(states, costs, self.counts.bounds, self.counts.snap)

    def prune(self, model: nn.Module, actions: Actions) -> nn.Module:
        """Remove from the dense net what the actions leave out, and refit what reads the rest."""
        keep = {}
        for (name, readers), count in zip(self.readers.items(), self.counts.of(actions), strict=True):
            weights = [reader.part(reconstruct.kernels(model.get_submodule(reader.name))) for reader in readers]
            scores = sum(weight.double().abs().sum((0, 2)).cpu() for weight in weights)
            keep[name] = torch.zeros(len(scores), dtype=torch.bool)
            keep[name][scores.argsort(descending=True, stable=True)[:count]] = True  # the largest sums stay
            for reader, weight in zip(readers, weights, strict=True):
                reader.set(model, refit(self.grams[reader], weight, keep[name]))
        return surgery.remove(model, self.example, keep)


class Weights:
    """Fine-grained pruning of the convolutions and linear layers ``names``."""

    def __init__(self, model: nn.Module, task: Task, method: AMC) -> None:
        weights = masks.weights(model)
        self.names, sizes = list(weights), np.array([weight.numel() for weight in weights.values()])
        goal = float(sizes.sum()) * (1 - method.sparsity) if method.reward == "error" else None
        self.counts = Counts(sizes, lambda counts: float(counts.sum()), goal, method.lowest)
        states = search.describe(model, task.example, self.names)
        self.space = Space(states, sizes, self.counts.bounds, self.counts.snap)

    def prune(self, model: nn.Module, actions: Actions) -> nn.Module:
        """Zero the smallest weights of each layer."""
        weights = masks.weights(model)
        for name, left in zip(self.names, self.counts.of(actions), strict=True):
            masks.prune(weights, masks.largest({name: weights[name]}, 1 - left / weights[name].numel())[0])
        return model


@torch.no_grad()
def grams(model: nn.Module, task: Task, method: AMC, readers: list[Reader]) -> dict[Reader, torch.Tensor]:
    """X^T X (p, p) in float64 of what each reader takes in of its channels, at random places of training images."""
    generator = torch.Generator().manual_seed(seed_of(task.seed, "amc samples"))

    def tap(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        draw = functools.partial(reconstruct.draw, module=module, locations=method.locations, generator=generator)
        return lambda x: reconstruct.patches(x, module, draw(x))

    moments = {reader: Moments() for reader in readers}
    with reconstruct.inputs(model, {Site(r.name): tap(model.get_submodule(r.name)) for r in readers}) as run:
        for x, _ in task.batches(method.images):
            read = run(x)
            for reader, sums in moments.items():
                rows = reader.part(read[Site(reader.name)]).flatten(1)
                sums.add(rows, rows[:, :0])  # the targets follow from the weights: Y = X W
    return {reader: sums.xx for reader, sums in moments.items()}


def refit(gram: torch.Tensor, weight: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The weights (outputs, C, K), 0 but for the channels in ``keep``, that give the outputs of ``weight`` best.

    ``gram`` (C * K, C * K): X^T X of the samples; by least squares, without an intercept.
    """
    kept = keep.repeat_interleave(weight.shape[2])
    targets = gram[kept] @ weight.flatten(1).T.to(gram)
    found = reconstruct.solve(gram[kept][:, kept], targets)
    result = torch.zeros_like(weight)
    result[:, keep] = found.T.reshape(len(weight), -1, weight.shape[2]).to(weight)
    return result
