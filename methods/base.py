"""The method contract: what a file in ``methods/`` must hold (see CONTRIBUTING.md)."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

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
    behind them and behind the reductions (``mac``, ``two_per_mac``, ``nonzero``, ``hrank_out_only``). ``start`` is the
    run that the row's own starts from, METHOD:RECIPE; empty: the dense net. ``source`` is the table of the paper;
    ``verified`` says how the number was checked.
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
    start: str = ""


@dataclass(frozen=True)
class Select:
    """The rows of a board that one side of a claim is about: those of ``method``, started from the dense net.

    ``variants``: of these recipes only, by what stands behind the slash ("" for BASELINE itself); None: any settings,
    also without a recipe. ``settings``: hyper-parameters that have these values.
    """

    method: str
    variants: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A qualitative claim of a paper: rows of ``better`` have a higher accuracy than rows of each of ``than``.

    ``than`` empty: than the run that the row of ``better`` started from. Rows are compared where they have equal values
    of each of ``at``: hyper-parameters, or (within 5 %) the measured ``params``, ``macs`` or ``bytes``. ``measure``:
    "top1", or "after_compression", right after compression and before any retraining. ``budgets``, ``baselines``: where
    the claim is looked at; empty: everywhere. ``margin``: points that it may be worse by; 0 where the paper says it is
    better. ``source`` is the place in the paper, ``verified`` says how it was checked.
    """

    text: str
    source: str
    better: Select
    than: tuple[Select, ...] = ()
    at: tuple[str, ...] = ()
    measure: str = "top1"
    budgets: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    margin: float = 0.0
    verified: str = ""


@dataclass
class Method(ABC):
    """A compression method: fields are hyper-parameters, ``compress`` is the algorithm, the rest is data."""

    paper: ClassVar[Paper]
    reported: ClassVar[tuple[Reported, ...]] = ()
    recipes: ClassVar[dict[str, dict]] = {}
    claims: ClassVar[tuple[Claim, ...]] = ()
    expected_failures: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        """Turn the lists that a configuration delivers back into tuples."""
        for parameter in dataclasses.fields(self):
            value = getattr(self, parameter.name)
            if isinstance(value, list):
                setattr(self, parameter.name, tuple(value))

    @abstractmethod
    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Take the trained dense baseline (yours to modify) and return the compressed network."""
