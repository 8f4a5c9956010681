"""What a baseline file holds: ``BASELINE = Baseline(...)``. The file is the registration; its stem is the name."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from baselines.errors import UserError

if TYPE_CHECKING:
    from baselines.data import Data, DataOptions

BUDGETS = ("smoke", "zero", "short", "paper")


@dataclass(frozen=True)
class Recipe:
    """How a net is trained: SGD with momentum; ``milestones`` and ``warmup`` are shares of the whole training.

    ``sizes``: progressive resizing, pairs (share of the training until which it holds, image side in pixels).
    """

    epochs: float
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup: float = 0.0
    label_smoothing: float = 0.0
    sizes: tuple[tuple[float, int], ...] = ()

    def factor(self, done: float) -> float:
        """Learning rate, as a factor of ``lr``, after the share ``done`` (0 to 1) of the training."""
        if done < self.warmup:
            return max(done / self.warmup, 1e-2)
        if self.schedule == "step":
            return 0.1 ** sum(done >= m for m in self.milestones)
        return cosine(done)

    def size(self, done: float) -> int | None:
        """Image side after the share ``done`` of the training; None: the data's own."""
        return next((side for until, side in self.sizes if done < until), None)


def cosine(done: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class Baseline:
    """A net, its data, and how it is trained and fine-tuned.

    ``net`` and ``student`` build an untrained network from the number of classes. ``train`` maps each dense budget to
    a recipe; ``finetune`` is the schedule that methods get (its ``epochs`` is the total of one ``compress`` at budget
    ``short``). ``crop`` is the padding of the random crop in pixels, ``flip`` allows mirroring. ``published`` holds
    the dense accuracy in percent (``top1``, ``top5``) and ``source`` says where it is printed. ``pretrained`` builds
    the net with published weights where the dense net is not trained here.
    """

    name: str
    net: Callable[[int], nn.Module]
    student: Callable[[int], nn.Module]
    data: Callable[[DataOptions], Data]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: dict[str, Recipe]
    finetune: Recipe
    crop: int = 0
    flip: bool = False
    augment: str = "crop"
    stages: tuple[str, ...] = ()
    siblings: dict[str, Callable[[int], nn.Module]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    budgets: tuple[str, ...] = BUDGETS
    default_budget: str = "paper"
    pretrained: Callable[[], nn.Module] | None = None

    def dense_recipe(self, budget: str) -> Recipe:
        """How the dense net is trained at ``budget``; where there is no recipe of that name, as at ``short``."""
        return self.train.get(budget) or self.train["short"]


def names() -> list[str]:
    """The baselines: every file of this folder named NET_DATA.py."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*_*.py") if not p.stem.startswith("_"))


def load(name: str) -> Baseline:
    """The baseline called ``name``; UserError where there is none."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"There is no baseline '{name}'.{hint} Choose one of: {', '.join(names())}.")
    return importlib.import_module(f"baselines.{name}").BASELINE
