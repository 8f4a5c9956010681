"""The planes that accuracy is plotted in: against which cost, and which points are on the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plane:
    """One plot: accuracy against ``cost``, which is the lower the better; ``log``: on a logarithmic axis of the site;
    ``unit``: what stands behind the numbers of the axis, with a prefix such as M, or "%"."""

    key: str
    title: str
    cost: Callable[[dict], float | None]
    log: bool = False
    unit: str = "%"


def _left(row: dict, name: str, left: Callable[[float], float]) -> float | None:
    """What is left of the dense net's cost, in percent; the dense net itself has all of it by definition."""
    if row["method"] == "dense":
        return 100.0
    return None if row[name] is None else round(100 * left(row[name]), 4)


PLANES = (
    Plane("bytes", "bytes of the file", lambda row: row["bytes"], log=True, unit="B"),
    Plane("macs", "MACs, as executed", lambda row: row["macs"], unit=""),
    Plane(
        "rule",
        "MACs left by the paper's own rule, %",
        lambda row: _left(row, "macs_reduction_paper_rule", lambda share: 1 - share),
    ),
    Plane("bit_ops", "bit-operations", lambda row: row["bit_ops"], log=True, unit=""),
    Plane(
        "latency1",
        "latency at batch 1 on one thread, % of the dense net's",
        lambda row: _left(row, "speedup_batch1", lambda ratio: 1 / ratio),
    ),
    Plane(
        "latency64",
        "latency at batch 64 on all threads, % of the dense net's",
        lambda row: _left(row, "speedup_batch64", lambda ratio: 1 / ratio),
    ),
)


def costs(row: dict) -> dict[str, float | None]:
    """The costs of a row by the keys of the planes; None where it is not known, or is 0 on a logarithmic axis."""
    known = {plane.key: plane.cost(row) for plane in PLANES}
    return known | {plane.key: None for plane in PLANES if plane.log and not known[plane.key]}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, gain) that no other point beats, by cost: none costs less and gains as much, or
    costs as much and gains more. Equal points are all on the front or all off it."""
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not found or points[i][1] > points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found
