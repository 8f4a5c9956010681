"""A method's paper beside its records: which reported rows belong to a run, and what is to be said of the two."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from statistics import variance
from typing import TYPE_CHECKING, Any

from baselines.errors import UserError
from methods.base import Method, Reported
from repro.counting import Counts, of_costs
from repro.record import Record, plain

if TYPE_CHECKING:
    from baselines.base import Baseline

REPRODUCED = 0.5  # points of Δ top-1 between the paper and us (of top-1 where the paper prints no dense accuracy)
CLOSE = 1.0
CONFIDENCE = 0.95
SLACK = 0.1  # points of reduction by which a paper may count its dense net otherwise


@functools.lru_cache(maxsize=4096)
def settings(cls: type[Method], recipe: str | None) -> dict[str, Any] | None:
    """The hyper-parameters that a recipe stands for ("" and None: the defaults); None where there is no such recipe."""
    try:
        return plain(dataclasses.asdict(cls(**(cls.recipes[recipe] if recipe else {}))))
    except (KeyError, TypeError, ValueError, UserError):
        return None


def printed_rows(record: Record, cls: type[Method] | None, baseline: Baseline | None) -> list[Reported]:
    """The rows of the method's paper with this baseline and these hyper-parameters; the published top-1 for dense."""
    if cls is None:
        return []
    rows = [r for r in cls.reported if r.baseline == record.baseline and _has_settings(record, cls, r.recipe)]
    if record.method == "dense" and not rows and baseline and baseline.published:
        top1, top5 = (baseline.published.get(name) for name in ("top1", "top5"))
        rows = [Reported(record.baseline, "published", baseline.source, top1=top1, top5=top5)]
    return rows


def starts_alike(printed: Reported, record: Record, parent: Record | None, methods: Mapping[str, type[Method]]) -> bool:
    """Whether a run starts where the row's own did: from the dense net, or from a run of the named method and recipe on
    the same data at the same budget. ``parent``: the run that it starts from, None where it is not known."""
    if not printed.start:
        return record.parent is None
    name, _, recipe = printed.start.partition(":")
    if parent is None or parent.parent or parent.status != "ok" or parent.method != name or name not in methods:
        return False
    kind = [(r.baseline, r.budget, plain(r.options)) for r in (record, parent)]
    return kind[0] == kind[1] and _has_settings(parent, methods[name], recipe)


def _has_settings(record: Record, cls: type[Method], recipe: str) -> bool:
    """Whether the hyper-parameters of a run are those of a recipe; what the run does not name has its default."""
    return settings(cls, recipe) == (settings(cls, None) or {}) | plain(record.hyperparameters)


def verdict(printed: Reported, row: dict[str, Any]) -> str:
    """How the row's accuracy compares with the paper's; only at budget ``paper`` can it be a reproduction."""
    if row["budget"] != "paper":
        return "reduced budget"
    theirs = delta(printed)
    if theirs is None and printed.top1 is None:
        return "no accuracy printed"
    if not row["n"]:
        return "not reproduced"
    gap = round(abs(row["top1"] - printed.top1 if theirs is None else row["delta"] - theirs), 4)
    return "reproduced" if gap <= REPRODUCED else "close" if gap <= CLOSE else "not reproduced"


def confidence(ours: Sequence[float], theirs: Sequence[float] | None = None) -> float | None:
    """Half the width of the 95 % t interval of mean(ours), or of mean(ours) - mean(theirs); None: not known.

    Of a difference it is Welch's. Where one side is a single value, it is taken to scatter as the other side does, if
    that does.
    """
    from scipy.special import stdtrit

    sides = [ours] if theirs is None else [ours, theirs]
    known = [(variance(side), len(side)) for side in sides if len(side) > 1]
    if not known:
        return None
    parts = [(v / n, n - 1) for v, n in known]
    total = math.fsum(part for part, _ in parts)
    if not total:
        return 0.0 if len(known) == len(sides) else None
    freedom = total**2 / math.fsum(part**2 / n for part, n in parts)
    if len(known) < len(sides):
        total += known[0][0]
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)


def delta(printed: Reported) -> float | None:
    """The change of top-1 in points that a row prints, or that follows from its two accuracies; None: neither."""
    if printed.delta is not None:
        return printed.delta
    return None if None in (printed.top1, printed.base_top1) else printed.top1 - printed.base_top1


def structure(printed: Reported, group: list[Record]) -> str:
    """Params and MACs of the compressed nets against the printed ones: exact within their rounding, or how far off."""
    found = []
    for name, what in (("params", "params"), ("macs", "MACs")):
        count, share = getattr(printed, name), getattr(printed, f"{name}_reduction")
        if count is None and share is None:
            continue
        known = [both for r in group if (both := counts(r, printed.rule))]
        if not known:
            found.append(f"{what} not counted by rule {printed.rule}")
        elif count is not None:
            worst = max((both[name] - count for both in known), key=abs)
            exact = abs(worst) <= _rounding(count)
            found.append(f"{what} exact" if exact else f"{what} differ by {share_of(worst / count)}")
        else:
            worst = max((100 * (1 - both[name] / max(1, both[f"dense_{name}"])) - share for both in known), key=abs)
            exact = abs(worst) <= _rounding(share, percent=True)
            found.append(f"{what} exact" if exact else f"{what} differ by {worst:+.1f} points of reduction")
    return ", ".join(found)


def share_of(value: float) -> str:
    """A share that is not zero, in percent with its sign: one decimal, or the first digit that tells it from zero."""
    return f"{100 * value:{'+.1f' if abs(value) >= 0.0005 else '+.1g'}} %"


def counts(record: Record, rule: str) -> Counts | None:
    """Both nets under a counting rule; None where nobody counted them so.

    A rule that came after the record is applied to the costs in it, if it needs no more: the counts are the same.
    """
    return record.counted.get(rule) or of_costs(rule, record.dense, record.compressed)


def _rounding(printed: float, percent: bool = False) -> float:
    """Half a unit of the last digit of a printed figure; a percentage written as a float has one decimal or more."""
    unit = float(Decimal(1).scaleb(Decimal(repr(printed)).normalize().as_tuple().exponent))
    unit = min(unit, 1.0 if isinstance(printed, int) else 0.1) if percent else unit
    return unit / 2 * (1 + 1e-9)


def contradictions(printed: Reported, record: Record) -> list[str]:
    """Sentences on printed reductions that do not follow from the printed counts: reduction = 1 - new / old.

    ``old`` is the dense net by the paper's own rule; as stored and executed where nobody counted it so.
    """
    known, found = counts(record, printed.rule) or counts(record, "mac"), []
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        new, share = getattr(printed, name), getattr(printed, f"{name}_reduction")
        if new is None or share is None:
            continue
        old = max(1, known[f"dense_{name}"])
        implied = 100 * (1 - new / old)
        if abs(implied - share) > 100 * _rounding(new) / old + _rounding(share, True) + SLACK:
            found.append(
                f"The paper's cell contradicts itself ({printed.label}, {printed.source}): it prints {share:g} % fewer "
                f"{what}, but its {new:,.0f} of this net's {old:,} are {implied:.1f} % fewer."
            )
    return found


def cell(printed: Reported) -> str:
    """What the paper prints, in one table cell."""
    change = delta(printed)
    accuracy = "/".join(f"{value:g}" for value in (printed.top1, printed.top5) if value is not None)
    words = [f"{printed.label}:", accuracy, "" if change is None else f"(Δ {change:+z.2f})", f"({printed.source})"]
    return " ".join(filter(None, words))


def deviations(cls: type[Method]) -> int | None:
    """How many bullets stand under "Deviations" in the docstring of the class or of its file; None: no such part."""
    found = deviation_texts(cls)
    return None if found is None else len(found)


def deviation_texts(cls: type[Method]) -> list[str] | None:
    """Those bullets themselves, each as one line; None: no such part."""
    for text in (cls.__doc__, getattr(sys.modules.get(cls.__module__), "__doc__", None)):
        lines = [line.strip() for line in (text or "").splitlines()]
        start = next((i for i, line in enumerate(lines) if line.startswith("Deviations")), None)
        if start is not None:
            part = lines[start + 1 :]
            first = next((i for i, line in enumerate(part) if line.startswith("- ")), len(part))
            end = next((i for i, line in enumerate(part) if i > first and not line), len(part))
            bullets = "\n".join(part[first:end]).split("\n- ") if first < end else []
            return [bullet.removeprefix("- ").replace("\n", " ") for bullet in bullets]
    return None
