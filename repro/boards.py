"""Records -> the rows of one table per (baseline, budget): a pure function of the records and the classes."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.base import BUDGETS, Baseline
from methods.base import Method, Reported
from repro.record import ACCURACIES, MAX_COUNT, Measurement, Record, canonical, plain, stale_ids
from repro.registry import ROOT
from repro.verdict import (
    cell,
    confidence,
    contradictions,
    counts,
    deviations,
    printed_rows,
    settings,
    starts_alike,
    structure,
    verdict,
)

if TYPE_CHECKING:
    import pandas as pd

SEPARATION = 2.0  # combined stds between the dense net and a random control below which a board cannot rank
NOT_RUN = "not run yet"
REMOVING = ("filter_pruning", "structured_sparsity", "search")  # families that take structure away
CONTROLS = {  # the families that a control stands beside
    **dict.fromkeys(("random_filter", "scratch"), REMOVING),
    "student": ("distillation",),
    **dict.fromkeys(("magnitude", "random_weight"), ("weight_pruning", "weight_sharing")),
}
SPEEDS = {"speedup_batch1": (1, False), "speedup_batch64": (64, True)}  # batch size; one thread, or all
ZERO = "zero training: top-1 right after compression, no fine-tuning"


@dataclass(frozen=True)
class Board:
    """One table: ``rows`` as in the CSV, but for keys with a leading _.

    ``metric``: what Δ and rank refer to; ``head``: how many classes the net tells apart; ``top5``: whether it is shown.
    """

    title: str
    slug: str
    metric: str
    head: str
    top5: bool
    rows: list[dict[str, Any]]
    remarks: list[str]
    footnotes: list[str]


@dataclass(frozen=True)
class Boards:
    """All tables, and all their rows in one ``frame``."""

    boards: list[Board]
    frame: pd.DataFrame


@dataclass(frozen=True)
class _View:
    methods: Mapping[str, type[Method]]
    baselines: Mapping[str, Baseline]
    stale: set[str]
    by_id: dict[str, Record]


def build(
    records: Iterable[Record],
    methods: Mapping[str, type[Method]],
    baselines: Mapping[str, Baseline],
    methods_dir: Path = ROOT,
) -> Boards:
    """Tables of all records but the smoke ones; ``methods_dir`` holds the files that staleness is judged by."""
    import pandas as pd

    kept = sorted((r for r in records if r.budget != "smoke"), key=lambda r: (r.seed, r.id))
    view = _View(methods, baselines, stale_ids(kept, methods_dir), {r.id: r for r in kept})
    on_board = defaultdict(list)
    for record in kept:
        on_board[record.baseline, _data(record), BUDGETS.index(record.budget)].append(record)
    boards = _with_agreement([_board(on_board[key], view) for key in sorted(on_board)])
    public = [{k: v for k, v in row.items() if k[0] != "_"} for board in boards for row in board.rows]
    frame = pd.DataFrame(public)
    whole = {name for row in public for name, value in row.items() if type(value) is int}
    return Boards(boards, frame.astype(dict.fromkeys(whole, "Int64")))


# ------------------------------------------------------------------------------------------- records -> rows


def _data(record: Record) -> str:
    """The data set of a record; a subset has brackets in its name."""
    return str(record.options.get("data", ""))


def _whole(record: Record) -> bool:
    """Whether the record is about all of the data and its classes, as a paper's figures are."""
    return "[" not in _data(record) and record.compressed.subset_top1 is None


def _board(records: list[Record], view: _View) -> Board:
    records = [r for r in records if r.kind == "run"] + _trained(records)
    first, ok = records[0], [r for r in records if r.status == "ok"]
    among = [value for r in ok for value in (r.dense.subset_top1, r.compressed.subset_top1)]
    subset = first.budget != "zero" and ok and None not in among
    metric = "subset_top1" if subset else "top1"
    groups = defaultdict(list)
    for record in records:
        groups[_group_key(record, view.by_id)].append(record)
    options = {key for r in records for key in r.options}
    varied = {key for key in options if len({str(plain(r.options.get(key))) for r in records}) > 1}
    rows = [_row(group, view, metric, varied) for group in groups.values()]
    for label, same in grouped(rows, lambda r: (r["method"], r["setting"])).items():
        for row in same if len(same) > 1 else []:
            row["setting"] = f"{label[1]} #{row['ids'][:4]}"
    rows.sort(key=_order)
    remarks = _rank(rows, metric) + _controls(rows) + _dense_nets(records) + _not_run(first, rows, view)
    footnotes = _footnotes(rows)
    data = _data(first)
    name = first.baseline if not data or data in first.baseline else f"{first.baseline} ({data})"
    head = f"{first.layers[-1]['dense'][0]}-way" if first.layers and first.layers[-1]["dense"] else "all classes"
    slug = re.sub(r"[^a-z0-9_]+", "-", f"{name} {first.budget}".lower()).strip("-")
    title = f"{name}, budget {first.budget}" + (f" - {ZERO}" if first.budget == "zero" else "")
    top5 = "top5" in getattr(view.baselines.get(first.baseline), "published", {})
    return Board(title, slug, metric, head, top5, rows, remarks, footnotes)


def _trained(records: list[Record]) -> list[Record]:
    """The training records, which stand in for the dense row where nobody ran ``method=dense``."""
    run = any(r.kind == "run" and r.method == "dense" for r in records)
    return [] if run else [r for r in records if r.kind == "train"]


def grouped(rows: Iterable[dict], key: Callable[[dict], Any]) -> dict[Any, list[dict]]:
    """The rows grouped by ``key``, in their order."""
    found = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def _group_key(record: Record, by_id: dict[str, Record]) -> str:
    """What the seeds of one row have in common."""
    dense = record.provenance["dense_sha256"] if record.given_weights else "trained"
    parent = by_id.get(record.parent or "")
    before = _group_key(parent, by_id) if parent else record.parent
    same = [record.kind, record.method, record.hyperparameters, record.options, dense, record.starts_from, before]
    return canonical(plain(same))


def _order(row: dict) -> tuple:
    reduction = row["macs_reduction"] or 0.0
    controls = row["family"] != "controls"
    return row["method"] != "dense", controls, row["family"], row["method"], reduction, row["setting"], row["ids"]


def _row(group: list[Record], view: _View, metric: str, varied: set[str]) -> dict[str, Any]:
    first, ok = group[0], [r for r in group if r.status == "ok"]
    cls = view.methods.get(first.method)
    printed, apart, why = _printed(first, cls, view)
    row = {
        "baseline": first.baseline,
        "data": _data(first),
        "budget": first.budget,
        "method": first.method,
        "family": first.family,
        "setting": _setting(first, cls, varied, view.by_id),
        "starts_from": first.starts_from,
        "rank": None,
        "n": len(ok),
        "diverged": len(group) - len(ok),
        "stale": sum(r.id in view.stale for r in group),
        "shared_dense": first.given_weights,
        **_accuracies(ok, metric),
        **_sizes(ok or group),
        **_by_paper_rule(ok or group, cls),
        **_speed(group),
        "clamped": max(len(_clamped(r)) for r in group),
        "deviations": deviations(cls) if cls else None,
    }
    claims = cls is not None and (bool(cls.reported) or first.method == "dense")
    row["paper"] = "; ".join(cell(rep) for rep in printed)
    row["verdict"] = "; ".join(verdict(rep, row) for rep in printed) or (f"not comparable{why}" if claims else "")
    row["structure"] = "; ".join(filter(None, (structure(rep, group) for rep in printed)))
    row["ids"] = " ".join(r.id for r in group)
    row["_printed"], row["_apart"], row["_first"] = printed, apart, first
    row["_searches"] = [found for r in group if (found := search_of(r))]
    row["_clamped"] = sorted({layer for r in group for layer in _clamped(r)})
    return row


def _printed(record: Record, cls: type[Method] | None, view: _View) -> tuple[list[Reported], list[Reported], str]:
    """(the printed rows of a run; where there are none, those that only start elsewhere, and how that is said)."""
    rows = printed_rows(record, cls, view.baselines.get(record.baseline)) if _whole(record) else []
    parent = view.by_id.get(record.parent or "")
    printed = [row for row in rows if starts_alike(row, record, parent, view.methods)]
    if printed or not rows:
        return printed, [], ""
    ours = f"run {record.parent}" if record.parent else "the dense net"
    if parent:
        setting = _setting(parent, view.methods.get(parent.method), set(), view.by_id)
        ours = f"{parent.method} ({setting}, budget {parent.budget})"
    theirs = " or ".join(dict.fromkeys(row.start or "the dense net" for row in rows))
    return [], rows, f": it starts from {ours}, the printed row from {theirs}"


def mean(values: Iterable[float | None], digits: int = 4) -> float | None:
    """The rounded mean of the values that are known; None where none is."""
    known = [v for v in values if v is not None]
    return round(math.fsum(known) / len(known), digits) if known else None


def _std(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return None
    centre = math.fsum(known) / len(known)
    return round(math.sqrt(math.fsum((v - centre) ** 2 for v in known) / (len(known) - 1)), 4)


def _accuracies(ok: list[Record], metric: str) -> dict[str, float | None]:
    """Means and stds over the seeds that ended well, in percent and points, and the 95 % interval of Δ."""
    deltas = [getattr(r.compressed, metric) - getattr(r.dense, metric) for r in ok]
    dense = [getattr(r.dense, metric) for r in ok]
    found = {"delta": mean(deltas), "delta_std": _std(deltas), "delta_ci95": mean([confidence(deltas)])}
    found |= {"dense": mean(dense), "dense_std": _std(dense)}
    for name in ACCURACIES:
        values = [getattr(r.compressed, name) for r in ok]
        found |= {name: mean(values), f"{name}_std": _std(values)}
    for name in ("top1", "subset_top1"):
        found[f"{name}_after_compression"] = mean((r.after_compression or {}).get(name) for r in ok)
    return found


def _sizes(group: list[Record]) -> dict[str, float | int | None]:
    """Means over the seeds of what was counted; reductions as shares, ratios as factors."""
    found: dict[str, float | int | None] = {}
    for name in ("params", "nonzero", "macs", "effective_macs", "bits", "bytes", "onnx_bytes", "bit_ops"):
        average = mean(getattr(r.compressed, name) for r in group)
        found[name] = None if average is None else round(average)
    ratios: dict[str, Callable[[Measurement, Measurement], float | None]] = {
        "params_reduction": lambda old, new: 1 - new.params / old.params if old.params else None,
        "macs_reduction": lambda old, new: 1 - new.macs / old.macs if old.macs else None,
        "sparsity": lambda _, new: 1 - new.nonzero / new.params if new.params else None,
        "theoretical_speedup": lambda old, new: old.macs / new.effective_macs if new.effective_macs else None,
        "compression_ratio": lambda old, new: old.bytes / new.bytes if old.bytes and new.bytes else None,
    }
    return found | {name: mean((f(r.dense, r.compressed) for r in group), 6) for name, f in ratios.items()}


def _by_paper_rule(group: list[Record], cls: type[Method] | None) -> dict[str, Any]:
    """Reductions as the method's own paper counts them: by the rule of its rows for this net, else of any row."""
    printed = cls.reported if cls else ()
    rule = next((r.rule for r in printed if r.baseline == group[0].baseline), printed[0].rule if printed else None)
    known = [both for r in group if rule and (both := counts(r, rule))]
    found: dict[str, Any] = {"paper_rule": rule if known else None}
    for name in ("params", "macs"):
        shares = [1 - c[name] / c[f"dense_{name}"] for c in known if c[f"dense_{name}"]]
        found[f"{name}_reduction_paper_rule"] = mean(shares, 6)
    return found


def _speed(group: list[Record]) -> dict[str, Any]:
    """Measured latency of the dense net over that of the compressed one, per cell of ``SPEEDS``; None where the gain
    has no fast kernel (nothing is claimed then). What is to be said: ``latency`` of the measurement, CELL_kernel of a
    cell where a kernel of our own was faster."""
    measured = [r.latency for r in group if r.latency]
    claims = [m for m in measured if m["kernel"] != "no_fast_kernel"]
    found: dict[str, Any] = {}
    for name, (batch, all_threads) in SPEEDS.items():
        picked = [_cell(m["cells"], batch, all_threads) for m in claims]
        found[name] = mean((c["dense_ms"] / c["compressed_ms"] for c in picked if c), 4)
        own = [c.get("kernel") == "popcount" for c in picked if c]
        found[f"{name}_kernel"] = "popcount kernel" + " in part" * (not all(own)) if any(own) else ""
    words = ["no fast kernel"] if len(claims) < len(measured) else []
    words += ["machine was loaded"] if any(m["loaded"] for m in claims) else []
    return found | {"latency": ", ".join(words)}


def remark(row: dict[str, Any], name: str) -> str:
    """What has to be said of one of a row's ``SPEEDS``."""
    return ", ".join(filter(None, (row[f"{name}_kernel"], row["latency"])))


def _cell(cells: list[dict], batch: int, all_threads: bool) -> dict | None:
    """The cell of a batch size at one thread, or at the most threads there are."""
    here = sorted((c for c in cells if c["batch"] == batch), key=lambda c: c["threads"])
    return here[-1 if all_threads else 0] if here else None


def _clamped(record: Record) -> list[str]:
    layers = record.details.get("clamped", [])
    return [str(layer) for layer in layers] if isinstance(layers, list) else []


@dataclass(frozen=True)
class Search:
    """What the search of one run found.

    ``policy``: the share of each layer that stays, in network order; ``uniform``: the shares when all layers are
    treated alike, at the same cost; ``rewards``: those of all episodes, in order.
    """

    policy: dict[str, float]
    uniform: dict[str, float]
    rewards: list[float]

    @property
    def best(self) -> list[float]:
        """The best reward up to each episode."""
        return list(itertools.accumulate(self.rewards, max))


def search_of(record: Record) -> Search | None:
    """The search that a method reported, None where there is none: ``details`` may hold anything."""
    policy, uniform, rewards = (record.details.get(name) for name in ("policy", "uniform", "rewards"))
    if not (isinstance(policy, dict) and isinstance(uniform, dict) and isinstance(rewards, list)):
        return None
    shares = [*policy.values(), *uniform.values()]
    if not all(type(value) in (int, float) for value in (*shares, *rewards)) or policy.keys() != uniform.keys():
        return None
    if not (shares and rewards and 0 <= min(shares) <= max(shares) <= 1 and max(map(abs, rewards)) <= MAX_COUNT):
        return None
    places = {layer["name"]: place for place, layer in enumerate(record.layers)}
    names = sorted(policy, key=lambda name: places.get(name, len(places)))  # a file has them by the alphabet
    return Search(*({name: kind[name] for name in names} for kind in (policy, uniform)), rewards)


def _setting(record: Record, cls: type[Method] | None, varied: set[str], by_id: dict[str, Record]) -> str:
    """What tells a row from the other rows of its method: its recipe, and what differs from it."""
    base = (settings(cls, record.recipe) or settings(cls, None) or {}) if cls else {}
    variant = (record.recipe or "").partition("/")[2]
    words = [f"recipe {variant}".strip()] if record.recipe else []
    changed = {k: v for k, v in plain(record.hyperparameters).items() if k not in base or base[k] != v}
    changed |= {k: record.options[k] for k in sorted(varied) if record.options.get(k)}
    words += [f"{key}={_short(value)}" for key, value in changed.items()]
    if record.parent:
        words.append(f"after {by_id[record.parent].method if record.parent in by_id else record.parent}")
    return ", ".join(words) or "defaults"


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = [_short(v) for v in value]
        return f"({' '.join(shown if len(shown) < 5 else [*shown[:2], '…', shown[-1]])})"
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]


def _footnotes(rows: list[dict]) -> list[str]:
    """The footnotes of a table; each row gets the numbers of its own in ``_notes``."""
    notes: list[str] = []
    for row in rows:
        own = [note for printed in row["_printed"] for note in contradictions(printed, row["_first"])]
        if row["_clamped"]:
            own.append(f"Clamped layers of {row['method']} ({row['setting']}): {', '.join(row['_clamped'])}.")
        notes += [note for note in own if note not in notes]
        row["_notes"] = "".join(f" [{notes.index(note) + 1}]" for note in own)
    return notes


def _not_run(first: Record, rows: list[dict], view: _View) -> list[str]:
    """A remark that names the reported rows of this baseline which no row of the table stands beside."""
    if first.budget == "zero" or not _whole(first):
        return []
    done = {(row["method"], printed) for row in rows for printed in row["_printed"]}
    waiting = [
        f"{name} ({printed.label})"
        for name, cls in sorted(view.methods.items())
        for printed in cls.reported
        if printed.baseline == first.baseline and (name, printed) not in done
    ]
    return [f"Reported in papers for this net, {NOT_RUN} at this budget: {', '.join(waiting)}."] if waiting else []


def _controls(rows: list[dict]) -> list[str]:
    """A remark that names the controls, other than the dense net, which the families call for and which did not run."""
    here, families = {row["method"] for row in rows if row["n"]}, {_takes(row) for row in rows}
    trained = rows[0]["budget"] != "zero"  # where nothing is trained, nothing is trained from scratch
    called = [name for name, beside in CONTROLS.items() if families & {*beside} and (trained or name != "scratch")]
    missing = [name for name in called if name not in here]
    return [f"Controls {NOT_RUN} on this board: {', '.join(missing)}."] if missing else []


def _takes(row: dict) -> str:
    """The family of a row; that of weight pruning where zeros are all that a structure's family left of the weights."""
    zeros = row["sparsity"] and row["params_reduction"] == 0
    return "weight_pruning" if zeros and row["family"] in REMOVING else row["family"]


def _dense_nets(records: list[Record]) -> list[str]:
    """A remark where runs with the same seed did not all start from the same dense net."""
    nets: dict[int, dict[str, float]] = defaultdict(dict)
    for record in records:
        if record.status == "ok" and record.kind == "run":
            nets[record.seed][record.provenance["dense_sha256"]] = record.dense.top1
    seed, most = max(nets.items(), key=lambda item: len(item[1]), default=(0, {}))
    if len(most) < 2:
        return []
    return [
        f"Runs of one seed do not all have the same dense net ({len(most)} nets of seed {seed}, top-1 "
        f"{min(most.values()):.2f} to {max(most.values()):.2f}): Δ is against the run's own, not against the first row."
    ]


# ----------------------------------------------------------------------------------------------------- ranks


def _with_agreement(boards: list[Board]) -> list[Board]:
    """The same boards; those of budget short say how well their order is that of budget paper, where both have runs."""
    known = {(*_net(board), board.rows[0]["budget"]): board for board in boards}
    pairs = [(board, known.get((*_net(board), "paper"))) for board in boards]
    return [
        replace(board, remarks=[*board.remarks, *_agreement(board, paper)])
        if paper and board.rows[0]["budget"] == "short"
        else board
        for board, paper in pairs
    ]


def _net(board: Board) -> tuple[str, str]:
    return board.rows[0]["baseline"], board.rows[0]["data"]


def _agreement(short: Board, paper: Board) -> list[str]:
    """A remark with Spearman's rho between the rows that both boards have; none where fewer than three have ended."""
    from scipy.stats import spearmanr

    ours, theirs = (
        {(r["method"], r["setting"]): r[board.metric] for r in board.rows if r["n"] and r["method"] != "dense"}
        for board in (short, paper)
    )
    both = [(value, theirs[key]) for key, value in ours.items() if key in theirs]
    if len(both) < 3 or 1 in (len(set(column)) for column in zip(*both, strict=True)):
        return []
    rho = spearmanr(*zip(*both, strict=True)).statistic
    return [f"Rank agreement with budget paper: Spearman's rho {rho:+z.2f} over the n={len(both)} rows that both have."]


def _rank(rows: list[dict], metric: str) -> list[str]:
    """Fill in the ranks, unless the board cannot tell methods apart; the remarks that say so."""
    known = [row[f"{metric}_std"] for row in rows if row[f"{metric}_std"] is not None]
    control = [row for row in rows if row["method"].startswith("random") and row["n"]]
    unsure = [] if control else ["No random control yet: whether this board can tell methods apart is not known."]
    if not known:
        return ["No ranks: no row has two seeds yet, so the noise is not known.", *unsure]
    pooled = math.sqrt(math.fsum(std**2 for std in known) / len(known))
    gaps = [(-row["delta"], _combined(row, metric, pooled)) for row in control]
    if gaps and all(gap < SEPARATION * std for gap, std in gaps):
        gap, std = max(gaps)
        return [
            f"This board cannot rank: the dense net is only {gap:.2f} points above a random control, less than "
            f"{SEPARATION:g} combined standard deviations ({std:.2f} each)."
        ]
    for start in ("trained", "scratch"):
        rivals = [r for r in rows if r["method"] != "dense" and r["starts_from"] == start and r["n"]]
        for row, place in zip(rivals, _places(rivals, metric, pooled), strict=True):
            row["rank"] = place
    return unsure


def _combined(row: dict, metric: str, pooled: float) -> float:
    """Combined std of a row and its dense nets; one dense net that all seeds share has none."""
    own = row[f"{metric}_std"]
    dense = 0.0 if row["shared_dense"] else row["dense_std"]
    return ((pooled if own is None else own) ** 2 + (pooled if dense is None else dense) ** 2) ** 0.5


def _places(rivals: list[dict], metric: str, pooled: float) -> list[int]:
    """1 + how many rivals are better by more than the combined std of the two, but never before a higher mean: a
    large deviation of its own is no merit."""
    import numpy as np

    mean = np.array([row[metric] for row in rivals], dtype=float)
    std = np.array([pooled if row[f"{metric}_std"] is None else row[f"{metric}_std"] for row in rivals], dtype=float)
    better = mean[None, :] - mean[:, None] > np.hypot(std[None, :], std[:, None]) + 1e-9
    places, order = 1 + better.sum(axis=1), np.argsort(-mean, kind="stable")
    places[order] = np.maximum.accumulate(places[order])
    return [int(place) for place in places]
