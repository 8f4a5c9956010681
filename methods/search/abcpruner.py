"""Channel Pruning via Automatic Structure Search.

M. Lin, R. Ji, Y. Zhang, B. Zhang, Y. Wu, Y. Tian. IJCAI 2020, https://arxiv.org/abs/2001.08565.

Idea: which filters stay matters less than how many of each layer; so let an artificial bee colony search the numbers,
with the accuracy after two epochs, begun from filters drawn at random out of the trained net, as fitness.

A structure is a code of one number per layer, 1 to 10 alpha: the tenths of its filters that stay, int(c n / 10), at
least one. Each employed bee tries a neighbour of its source: at a few random places the number moves towards or away
from that of another source by a random share of their difference. Onlookers go round the sources, take the next with
probability 0.9 fit / max fit + 0.1 and try as well. The fitter code stays; the source tried most often in vain, if
``limit`` times or more, is drawn anew by the scout. The fittest code of all is fine-tuned, from its weights after the
two epochs. In residual nets a number is for the inner convolutions of a block (in bottlenecks two); the stem, what an
addition couples, and hidden linear layers (the paper's VGG-16 has none) stay whole.

The defaults are the paper's: 3 sources, 2 cycles, limit 2, at most 17 structures and 34 epochs (the paper counts 12)
beside 150 of fine-tuning; recipes "code" take the 10, 10, 5 of the authors' code. ``cycles`` are the search's rounds:
``short`` grants 1, at most 10 structures and 12 % of all training (code: 31 and 29 %), or less where codes come back.

Deviations
- Fitness is top-1 on the fixed tenth of the training set; the authors' code takes the test set (ImageNet: its top-5).
- A code is trained once, with filters that code and seed draw; theirs trains it again, with other filters.
- Kept filters bring bias and batch normalisation along, and VGG-16 its classifier; their code starts these afresh.
- Batch normalisation is measured anew before a structure is scored: its statistics lag behind after the few steps of
  small budgets, and every structure is at chance.
- Their code never changes the last number, never takes a layer's last filter, its scouts never draw the highest number
  (exclusive bounds), and of the initial sources it remembers the first alone as the best. Here none of this is so.
- Schedule (cosine, in the fitness epochs too), batch size, momentum and weight decay are the baseline's, from the
  paper's learning rate down; the paper divides it by 10 after each third. Imagenette takes 0.01, that of their README.
- alpha is 0.7, which the paper settles on, where it names none for a net, and on MNIST VGG-16's 0.8.
- ``macs_reduction`` is not in the paper: numbers then are proportions, and one factor scales them until just so many
  MACs go; no layer grows beyond its width, and alpha limits numbers, not shares.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Method, Paper, Reported
from methods.kit import search, surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Layer, Selection

Code, Rng = tuple[int, ...], np.random.Generator
CODE = {"sources": 10, "cycles": 10, "limit": 5}
SOURCE = "the paper's results, as repeated in the README of the authors' code"
READ = "read in that README; nets of such sizes exist; its MACs count batch normalisation too, which adds up to 3 %"
NETS = {
    "vgg16_mnist5k": {"alpha": 0.8}, "vgg16_cifar10": {"alpha": 0.8}, "resnet56_cifar10": {}, "resnet56_cifar100": {},
    "resnet50_imagenette": {"epochs": 90.0}, "resnet50_imagenet": {"epochs": 90.0, "lr": 0.1},
}  # fmt: skip


def row(recipe: str, label: str, top1: float, *size: float, **more: float) -> Reported:
    """A row of the authors' README; ``size``: parameters, MACs and the percentages of both that went."""
    return Reported(
        baseline=recipe.split("/")[0], recipe=recipe, label=label, top1=top1, source=SOURCE, verified=READ,
        **dict(zip(("params", "macs", "params_reduction", "macs_reduction"), size, strict=False)), **more,
    )  # fmt: skip


@dataclass
class ABCPruner(Method):
    """Searches how many filters each layer keeps with an artificial bee colony, then fine-tunes the fittest structure.

    Codes go up to ``alpha`` in tenths. ``sources`` codes live through ``cycles``; a source gives up after ``limit``
    trials in vain; a bee changes ``changes`` numbers. ``inherit``: filters are drawn ("random") or those of the largest
    norms stay ("l1"). ``calibration``: images that measure batch normalisation before a structure is scored.
    ``macs_reduction``: codes are scaled so that this share of the MACs goes.
    """

    alpha: float = 0.7
    macs_reduction: float | None = None
    sources: int = 3
    cycles: int = 2
    limit: int = 2
    changes: int = 2
    inherit: str = "random"
    calibration: int = 500
    search_epochs: float = 2.0
    epochs: float = 150.0
    lr: float = 0.01

    paper: ClassVar[Paper] = Paper(
        title="Channel Pruning via Automatic Structure Search",
        authors="M. Lin, R. Ji, Y. Zhang, B. Zhang, Y. Wu, Y. Tian",
        venue="IJCAI 2020", url="https://arxiv.org/abs/2001.08565", code="https://github.com/lmbxmu/ABCPruner",
    )  # fmt: skip
    recipes: ClassVar[dict[str, dict]] = {
        **NETS,
        **{f"{net}/l1": {**fields, "inherit": "l1"} for net, fields in NETS.items()},
        **{f"{net}/code": {**fields, **CODE} for net, fields in NETS.items()},
        **{f"{net}/macs{p}": {**NETS[net], "macs_reduction": p / 100} for net in NETS for p in (30, 50, 70)},
        **{f"resnet50_imagenet/{p}": {**NETS["resnet50_imagenet"], "alpha": p / 100} for p in (30, 50, 80, 100)},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        row("vgg16_cifar10", "ABCPruner-80%", 93.08, 1.67e6, 8.281e7, 88.68, 73.68, base_top1=93.02),
        row("resnet56_cifar10", "ABCPruner-70%", 93.23, 3.9e5, 5.854e7, 54.20, 54.13, base_top1=93.26),
        row("resnet50_imagenet/30", "ABCPruner-30%", 70.289, 7.35e6, 9.4485e8, 71.24, top5=89.631),
        row("resnet50_imagenet/50", "ABCPruner-50%", 72.582, 9.1e6, 1.2954e9, 64.38, 68.68, top5=90.19),
        row("resnet50_imagenet", "ABCPruner-70%", 73.516, 1.124e7, 1.79445e9, 56.01, 56.61, top5=91.512),
        row("resnet50_imagenet/80", "ABCPruner-80%", 73.864, 1.175e7, 1.8906e9, 54.02, 54.29, top5=91.687),
        row("resnet50_imagenet/100", "ABCPruner-100%", 74.843, 1.802e7, 2.55555e9, 29.49, 38.21, top5=92.272),
    )

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Prune, train and validate each code that the colony asks for; fine-tune the fittest."""
        self._check()
        parts, cycles = blocks(surgery.layers(model, task.example)), task.rounds(self.cycles)
        total = (self.sources + cycles * (2 * self.sources + 1)) * self.search_epochs + self.epochs
        best: dict[str, Any] = {"fitness": -1.0}

        def fitness(code: Code) -> float:
            keep, clamped = self._select(model, task, parts, code)
            net = surgery.remove(copy.deepcopy(model), task.example, keep)
            task.train(net, self.search_epochs, of=total, lr=self.lr)
            search.calibrate(net, task.batches(self.calibration))
            reached = task.validate(net)
            if reached > best["fitness"]:
                best.update(fitness=reached, code=list(code), net=net, keep=keep, clamped=clamped)
            return reached

        rng = np.random.default_rng(seed_of(task.seed, "abcpruner"))
        colony = Colony(fitness, len(parts), int(10 * self.alpha + surgery.SLACK), self.sources, rng)
        history = []
        for cycle in range(cycles + 1):
            if cycle:
                colony.cycle(self.limit, self.changes)
            done = {"cycles": cycle, "evaluations": len(colony.known), "training_seconds": round(task.meter.seconds, 1)}
            history.append({**done, "fitness": best["fitness"], "code": best["code"]})
        kept = {name: int(kept.sum()) for name, kept in best["keep"].items()}
        facts = search.of_filters(model, task.example, best["keep"], list(colony.known.values()))
        task.report(search=history, **facts, **history[-1], clamped=best["clamped"], kept=kept)
        return task.train(best["net"], self.epochs, of=total, lr=self.lr)

    def _check(self) -> None:
        """UserError for a value that nothing can be made of."""
        if not 0.1 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha} lies outside [0.1, 1]: give the largest share to keep, such as 0.7.")
        for name, least in {"sources": 2, "cycles": 1, "limit": 1, "changes": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} leaves the bees nothing to do: give {least} or more.")
        if self.inherit not in ("random", "l1"):
            raise UserError(f"There is no inherit '{self.inherit}': choose 'random' or 'l1'.")

    def _select(self, model: nn.Module, task: Task, parts: Sequence[list[Layer]], code: Code) -> Selection:
        """The filters that a code keeps, by lot or by norm: int(c n / 10), or as ``macs_reduction`` scales it."""
        shares = [number / 10 for number, part in zip(code, parts, strict=True) for _ in part]
        lot = torch.Generator().manual_seed(seed_of(task.seed, f"abcpruner {code}"))
        scores = {layer.name: torch.rand(layer.width, generator=lot) for part in parts for layer in part}
        if self.inherit == "l1":
            scores = {name: model.get_submodule(name).weight.abs().flatten(1).sum(1) for name in scores}

        def scaled(scores: Mapping[str, torch.Tensor], ratio: float) -> Selection:
            factor = (1 - ratio) / max(ratio, surgery.SLACK)  # from all filters to none
            return surgery.select(scores, [1 - min(1.0, share * factor) for share in shares], "keep")

        if self.macs_reduction is None:
            return scaled(scores, 0.5)  # a factor of 1
        return surgery.macs_budget(model, task.example, scores, self.macs_reduction, scaled)


def blocks(layers: Mapping[str, Layer]) -> list[list[Layer]]:
    """The convolutions that share a number: a residual block's inner ones (first two parts of a name), else each alone.

    UserError when a residual net has no convolution inside of its blocks.
    """
    if not any(layer.coupled for layer in layers.values()):
        return [[layer] for layer in layers.values()]
    found = [list(block) for _, block in itertools.groupby(layers.values(), lambda layer: layer.name.split(".")[:2])]
    inner = [[layer for layer in block if not layer.coupled] for block in found]
    parts = [part for part, block in zip(inner, found, strict=True) if 0 < len(part) < len(block)]
    if not parts:
        raise UserError("No convolution lies inside of this network's blocks: choose another baseline.")
    return parts


@dataclass
class Source:
    """A code, its fitness, and how often bees have tried to better it in vain."""

    code: Code
    fitness: float
    trials: int = 0


class Colony:
    """``size`` sources with codes of ``length`` numbers from 1 to ``highest``; ``known``: the fitness of all codes."""

    def __init__(self, fitness: Callable[[Code], float], length: int, highest: int, size: int, rng: Rng) -> None:
        self.fitness, self.length, self.highest, self.rng = fitness, length, highest, rng
        self.known: dict[Code, float] = {}
        self.sources = [self._drawn() for _ in range(size)]

    def cycle(self, limit: int, changes: int) -> None:
        """One cycle: an employed bee for each source, as many onlookers, and at most one scout."""
        for j in range(len(self.sources)):
            self._try(j, changes)
        for j in picks(self.sources, self.rng):
            self._try(j, changes)
        worn = max(self.sources, key=lambda source: source.trials)
        if worn.trials >= limit:
            self.sources[self.sources.index(worn)] = self._drawn()

    def _try(self, j: int, changes: int) -> None:
        """A bee looks beside source ``j``; the fitter of the two codes stays, the source's in a tie."""
        other = self.sources[(j + self.rng.integers(1, len(self.sources))) % len(self.sources)].code
        own, code = self.sources[j].code, list(self.sources[j].code)
        places, steps = self.rng.integers(self.length, size=changes), self.rng.uniform(-1, 1, changes)
        for i, r in zip(places.tolist(), steps.tolist(), strict=True):
            code[i] = min(max(int(own[i] + r * (own[i] - other[i])), 1), self.highest)
        reached = self._score(tuple(code))
        if reached > self.sources[j].fitness:
            self.sources[j] = Source(tuple(code), reached)
        else:
            self.sources[j].trials += 1

    def _drawn(self) -> Source:
        """A source with a random code."""
        code = tuple(self.rng.integers(1, self.highest + 1, self.length).tolist())
        return Source(code, self._score(code))

    def _score(self, code: Code) -> float:
        if code not in self.known:
            self.known[code] = self.fitness(code)
        return self.known[code]


def picks(sources: Sequence[Source], rng: Rng) -> Iterator[int]:
    """The onlookers: they go round the sources and take each with its chance, until there are as many takes."""
    fitness = [source.fitness for source in sources]
    chances = [0.9 * (value / max(fitness) if max(fitness) > 0 else 1.0) + 0.1 for value in fitness]
    taken = j = 0
    while taken < len(sources):
        if rng.random() < chances[j]:
            taken += 1
            yield j
        j = (j + 1) % len(sources)
