"""A method's paper beside its records: which reported rows belong to a run, and what is to be said of the two."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from baselines.errors import UserError
from methods.base import Method, Reported
from repro.record import Measurement, Record, plain

if TYPE_CHECKING:
    from baselines.base import Baseline

REPRODUCED = 0.5  # points of Δ top-1 between the paper and us (of top-1 where the paper prints no dense accuracy)
CLOSE = 1.0
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
    here = (settings(cls, None) or {}) | plain(record.hyperparameters)
    rows = [r for r in cls.reported if r.baseline == record.baseline and settings(cls, r.recipe) == here]
    if record.method == "dense" and not rows and baseline and baseline.published:
        top1, top5 = (baseline.published.get(name) for name in ("top1", "top5"))
        rows = [Reported(record.baseline, "published", baseline.source, top1=top1, top5=top5)]
    return rows


def verdict(printed: Reported, row: dict[str, Any]) -> str:
    """How the row's accuracy compares with the paper's; only at budget ``paper`` can it be a reproduction."""
    if row["budget"] != "paper":
        return "reduced budget"
    if printed.top1 is None:
        return "no accuracy printed"
    if not row["n"]:
        return "not reproduced"
    if printed.base_top1 is None:
        gap = abs(row["top1"] - printed.top1)
    else:
        gap = abs(row["delta"] - (printed.top1 - printed.base_top1))
    gap = round(gap, 4)
    return "reproduced" if gap <= REPRODUCED else "close" if gap <= CLOSE else "not reproduced"


def structure(printed: Reported, group: list[Record]) -> str:
    """Params and MACs of the compressed nets against the printed ones: exact within their rounding, or how far off."""
    found = []
    for name, what in (("params", "params"), ("macs", "MACs")):
        count, share = getattr(printed, name), getattr(printed, f"{name}_reduction")
        if count is None and share is None:
            continue
        known = [r for r in group if _counted(r, printed.rule, name) is not None]
        ours = [_counted(r, printed.rule, name) for r in known]
        if not known:
            found.append(f"{what} not counted by rule {printed.rule}")
        elif count is not None:
            worst = max((new - count for new in ours), key=abs)
            exact = abs(worst) <= _rounding(count)
            found.append(f"{what} exact" if exact else f"{what} differ by {100 * worst / count:+.1f} %")
        else:
            olds = [_dense(r.dense, r.counted, printed.rule, name) for r in known]
            worst = max((100 * (1 - new / old) - share for new, old in zip(ours, olds, strict=True)), key=abs)
            exact = abs(worst) <= _rounding(share, percent=True)
            found.append(f"{what} exact" if exact else f"{what} differ by {worst:+.1f} points of reduction")
    return ", ".join(found)


def _counted(record: Record, rule: str, name: str) -> int | None:
    """Params or MACs of the compressed net under a counting rule; None where nobody counted them so."""
    if rule in ("mac", "two_per_mac"):
        return getattr(record.compressed, name) * (2 if (rule, name) == ("two_per_mac", "macs") else 1)
    return record.counted.get(rule, {}).get(name)


def _dense(dense: Measurement, counted: Mapping[str, dict[str, int]], rule: str, name: str) -> int:
    """Params or MACs of the dense net under a counting rule; as measured where nobody counted them so."""
    if rule not in ("mac", "two_per_mac") and rule in counted:
        return max(1, counted[rule][f"dense_{name}"])
    return max(1, getattr(dense, name) * (2 if (rule, name) == ("two_per_mac", "macs") else 1))


def _rounding(printed: float, percent: bool = False) -> float:
    """Half a unit of the last digit of a printed figure; a percentage written as a float has one decimal or more."""
    unit = float(Decimal(1).scaleb(Decimal(repr(printed)).normalize().as_tuple().exponent))
    unit = min(unit, 1.0 if isinstance(printed, int) else 0.1) if percent else unit
    return unit / 2 * (1 + 1e-9)


def contradictions(
    printed: Reported, dense: Measurement, counted: Mapping[str, dict[str, int]] | None = None
) -> list[str]:
    """Sentences on printed reductions that do not follow from the printed counts: reduction = 1 - new / old.

    ``old`` is the dense net by the paper's own rule, from the record's ``counted`` where the rule is not ``mac``.
    """
    found = []
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        new, share = getattr(printed, name), getattr(printed, f"{name}_reduction")
        old = _dense(dense, counted or {}, printed.rule, name)
        if new is None or share is None:
            continue
        implied = 100 * (1 - new / old)
        if abs(implied - share) > 100 * _rounding(new) / old + _rounding(share, True) + SLACK:
            found.append(
                f"The paper's cell contradicts itself ({printed.label}, {printed.source}): it prints {share:g} % fewer "
                f"{what}, but its {new:,.0f} of this net's {old:,} are {implied:.1f} % fewer."
            )
    return found


def cell(printed: Reported) -> str:
    """What the paper prints, in one table cell."""
    delta = None if None in (printed.top1, printed.base_top1) else printed.top1 - printed.base_top1
    accuracy = "/".join(f"{value:g}" for value in (printed.top1, printed.top5) if value is not None)
    words = [f"{printed.label}:", accuracy, "" if delta is None else f"(Δ {delta:+z.2f})", f"({printed.source})"]
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
