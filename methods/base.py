"""The method contract: what a file in ``methods/`` must hold (see CONTRIBUTING.md)."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

if TYPE_CHECKING:
    from baselines.task import Task


@dataclass(frozen=True)
class Paper:
    """The cited text of a method. ``code`` is the authors' repository, empty where there is none."""

    title: str
    authors: str
    venue: str
    url: str
    code: str = ""


@dataclass(frozen=True)
class Reported:
    """One row of a paper's table: what the paper claims, never what we measured.

    ``recipe`` is the key in the method's ``recipes`` that should reproduce the row ("" when the row belongs to the
    defaults). ``top1`` / ``top5`` / ``base_top1`` are percentages; ``delta`` is the change of top-1 in points where the
    table prints that and no accuracy. ``params`` and ``macs`` are counts as printed; ``rule`` names the counting rule
    behind them and behind the reductions (``mac``, ``two_per_mac``, ``nonzero``, ``hrank_out_only``). ``source`` is the
    table of the paper; ``verified`` says how the number was checked.
    """

    baseline: str
    label: str
    source: str
    recipe: str = ""
    top1: float | None = None
    top5: float | None = None
    base_top1: float | None = None
    base_top5: float | None = None
    delta: float | None = None
    params: float | None = None
    macs: float | None = None
    params_reduction: float | None = None
    macs_reduction: float | None = None
    rule: str = "mac"
    verified: str = ""


@dataclass
class Method(ABC):
    """A compression method: fields are hyper-parameters, ``compress`` is the algorithm, the rest is data."""

    paper: ClassVar[Paper]
    reported: ClassVar[tuple[Reported, ...]] = ()
    recipes: ClassVar[dict[str, dict]] = {}
    expected_failures: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        """Turn the lists that a configuration delivers back into tuples."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                setattr(self, field.name, tuple(value))

    @abstractmethod
    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Take the trained dense baseline (yours to modify) and return the compressed network."""
