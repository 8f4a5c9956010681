"""One run as one self-contained HTML page: no script, nothing from a network. The same record gives the same bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines import base
from baselines.errors import UserError
from repro import registry
from repro.boards import Search, build, search_of
from repro.counting import Counts, of_costs
from repro.record import ACCURACIES, Measurement, Record, canonical, is_stale, load, pick, replace
from repro.verdict import CLOSE, REPRODUCED, counts, delta, deviation_texts, structure, verdict

if TYPE_CHECKING:
    from jinja2 import Template

    from baselines.base import Baseline
    from methods.base import Method, Reported

FOLDED = 8  # entries from which a list is folded
DEEP = 5  # levels of nesting below which a value is shown as JSON
REDUCED = {
    "smoke": "A few training steps, to try things out: the accuracies mean nothing.",
    "zero": "No training after compression: not a reproduction of the paper.",
    "short": "Less training than in the paper: this compares methods, it is not a reproduction of the paper.",
}
RULES = {
    "mac": "a multiply-accumulate counts one",
    "two_per_mac": "a multiply-accumulate counts two",
    "nonzero": "weights that are zero count nowhere",
    "hrank_out_only": "filters that are removed or all zero count, the inputs that the next layer lost do not",
}
SIZES = {
    "params": "parameters",
    "nonzero": "nonzero parameters",
    "macs": "MACs",
    "effective_macs": "effective MACs (zero weights skipped)",
    "bits": "bits of the parameters",
    "bytes": "bytes of the file",
    "onnx_bytes": "bytes of the ONNX file",
    "bit_ops": "bit operations",
}


def write(run: str | None, results_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of the record whose id begins with ``run`` to ``out`` (default: ID.html here); its path."""
    record = find(run, results_dir)
    cls = entry.cls if (entry := registry.entries().get(record.method)) else None
    baseline = base.load(record.baseline) if record.baseline in base.names() else None
    parents = [load(path) for path in _paths(results_dir, record.parent)] if record.parent else []
    path = Path(out or f"{record.id}.html")
    if path.is_dir():
        raise UserError(f"out={path} is a folder: give a file, such as {path / record.id}.html.")
    content = page(record, cls, baseline, parents[0] if parents else None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content)
    except OSError as error:
        raise UserError(f"out={path} cannot be written ({error.strerror}): give a file in another folder.") from error
    return path


def find(run: str | None, results_dir: str | Path) -> Record:
    """The one record whose id begins with ``run``; UserError where none or several do."""
    root = Path(results_dir, "records")
    if not run:
        raise UserError("The run is missing: add run=ID, the id of a record or its first 4 digits or more.")
    paths = {path.stem: path for path in _paths(results_dir, "")}
    if not paths:
        raise UserError(f"There are no records below {root}: make one with `python -m repro run`.")
    return load(paths[pick(run, paths, str(root))])


def _paths(results_dir: str | Path, start: str) -> list[Path]:
    return sorted(Path(results_dir, "records").glob(f"*/*/*/{start}*.json"))


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    env.filters |= {"json": canonical, "scalar": scalar}
    return env.get_template("report.html.j2")


def _on_board(
    record: Record, cls: type[Method] | None, baseline: Baseline | None, parent: Record | None
) -> tuple[dict[str, Any], list[str]]:
    """The row that the record makes on a board, and its footnotes; a smoke run makes none."""
    records, classes = [record], {record.method: cls} if cls else {}
    if parent and (parent.baseline, parent.budget) == (record.baseline, record.budget):
        before = registry.entries().get(parent.method)
        records, classes = [record, parent], classes | ({parent.method: before.cls} if before and before.cls else {})
    for board in build(records, classes, {record.baseline: baseline} if baseline else {}).boards:
        for row in board.rows:
            if record.id in row["ids"].split():
                return row, [note for i, note in enumerate(board.footnotes, 1) if f"[{i}]" in row["_notes"]]
    return {"budget": record.budget, "setting": "", "verdict": "", "_printed": []}, []


def page(record: Record, cls: type[Method] | None, baseline: Baseline | None, parent: Record | None = None) -> str:
    """The HTML of one record; ``cls`` and ``baseline`` are None where they are not there any more."""
    row, notes = _on_board(record, cls, baseline, parent)
    text = _template().render(
        record=record,
        paper=getattr(cls, "paper", None),
        row=row,
        notes=notes,
        banners=banners(record),
        headline=headline(record),
        claims=[claim(printed, record, row) for printed in row["_printed"]],
        counted=(counted := by_rule(record, row["_printed"])),
        accountings=accountings(record, counted, row["_printed"]),
        bars=[bar(layer) for layer in record.layers],
        costs=layer_costs(record.layers),
        search=(search := search_of(record)),
        rewards=search and search_panel(search),
        panels=panels(record.curve),
        lost=sum(loss is None for _, loss, _ in record.curve),
        cells=latency_cells(record),
        deviations=deviation_texts(cls) if cls else None,
        parent=parent,
        limits=(REPRODUCED, CLOSE),
        rules=RULES,
        FOLDED=FOLDED,
        DEEP=DEEP,
    )
    return text.lstrip()


# ----------------------------------------------------------------------------- what the sections of the page show


def banners(record: Record) -> list[tuple[str, str, str]]:
    """(colour, title, sentence) of everything that a reader has to know before the numbers."""
    found = []
    if record.status != "ok":
        found.append(("bad", "Diverged", "The loss was no number, or exploded: the accuracies are of no use."))
    if is_stale(record, registry.ROOT):
        found.append(("bad", "Stale", "The code that made this record has changed since: run it again."))
    if record.budget != "paper":
        found.append(("warn", f"Budget {record.budget}", REDUCED[record.budget]))
    if record.given_weights:
        sha = record.provenance["dense_sha256"][:12]
        found.append(("note", "Given weights", f"The dense net was not trained here but read from a file ({sha}…)."))
    return found


Line = tuple[str, str | None, str | None, str]


def headline(record: Record) -> list[Line]:
    """(label, dense, compressed, change) of every measured quantity; None = not measured."""
    old, new, after = record.dense, record.compressed, record.after_compression or {}
    lines: list[Line] = []
    for name, label in ACCURACIES.items():
        values = getattr(old, name), after.get(name), getattr(new, name)
        if name != "subset_top1" or values != (None, None, None):
            lines.append(_accuracy(label, values[0], values[2]))
        if name == "top1" or values[1] is not None:
            lines.append(_accuracy(f"{label} after compression, before training", values[0], values[1]))
    lines += [_size(label, name, old, new) for name, label in SIZES.items()]
    ratio = f"{old.bytes / new.bytes:.2f}x" if old.bytes and new.bytes else None
    return [*lines, ("compression ratio, by bytes of the file", "", ratio, "")]


def _accuracy(label: str, old: float | None, new: float | None) -> Line:
    change = "" if old is None or new is None else f"{new - old:+z.2f} points"
    return label, _form(old, "{:.2f} %"), _form(new, "{:.2f} %"), change


def _size(label: str, name: str, dense: Measurement, compressed: Measurement) -> Line:
    old, new = getattr(dense, name), getattr(compressed, name)
    change = f"{100 * (new / old - 1):+z.1f}\u00a0%" if old and new is not None else ""
    return label, _form(old, "{:,}"), _form(new, "{:,}"), change


def _form(value: float | None, pattern: str) -> str | None:
    return None if value is None else pattern.format(value)


def claim(printed: Reported, record: Record, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the paper beside ours: ``lines`` of (label, paper, ours, difference in points), verdict, structure."""
    ours = None if None in (record.compressed.top1, record.dense.top1) else record.compressed.top1 - record.dense.top1
    both = [
        ("top-1", printed.top1, record.compressed.top1, "{:.2f} %"),
        ("top-1 of the dense net", printed.base_top1, record.dense.top1, "{:.2f} %"),
        ("change of top-1", delta(printed), ours, "{:+z.2f} points"),
        ("top-5", printed.top5, record.compressed.top5, "{:.2f} %"),
        ("top-5 of the dense net", printed.base_top5, record.dense.top5, "{:.2f} %"),
    ]
    lines = [
        (label, pattern.format(theirs), _form(ours, pattern), "" if ours is None else f"{ours - theirs:+z.2f} points")
        for label, theirs, ours, pattern in both
        if theirs is not None
    ]
    return {
        "printed": printed,
        "lines": lines,
        "verdict": verdict(printed, row),
        "structure": structure(printed, [record]),
    }


def by_rule(record: Record, rows: Iterable[Reported]) -> dict[str, Counts]:
    """Both nets under the counting rules of the record, and under those of the paper's rows that are known for it."""
    names = sorted({*record.counted, *(printed.rule for printed in rows if printed.rule != "mac")})
    return {name: both for name in names if (both := counts(record, name))}


def accountings(
    record: Record, counted: dict[str, Counts], rows: Iterable[Reported]
) -> list[tuple[str, str, list[str]]]:
    """(name, the paper's table, six texts) of every accounting: dense, compressed, reduction of params and of MACs."""
    found = [("physical", "", _counts(of_costs("mac", record.dense, record.compressed)))]
    found += [(f"rule {rule}", "", _counts(both)) for rule, both in counted.items()]
    for printed in rows:
        texts = ["", _form(printed.params, "{:,.0f}"), _form(printed.params_reduction, "{:g} %")]
        texts += ["", _form(printed.macs, "{:,.0f}"), _form(printed.macs_reduction, "{:g} %")]
        if any(texts):
            source = f"{printed.source}, rule {printed.rule}"
            found.append((f"paper, {printed.label}", source, [text or "" for text in texts]))
    return found


def _counts(both: Counts) -> list[str]:
    pairs = [(both[f"dense_{name}"], both[name]) for name in ("params", "macs")]
    return [t for a, b in pairs for t in (f"{a:,}", f"{b:,}", f"{100 * (1 - b / a):z.1f} %" if a else "")]


def bar(layer: dict[str, Any]) -> dict[str, Any]:
    """What was kept of a layer: the share of its output channels, the share of that which is not zero, and a text."""
    old, new = (shape[0] if shape else None for shape in (layer["dense"], layer["compressed"]))
    if old is None or new is None:
        return {"name": layer["name"], "kept": 0.0, "nonzero": 1.0, "text": "gone"}
    stored, filled = ((layer.get(name) or [0])[-1] for name in ("params", "nonzero"))
    nonzero = min(filled / stored, 1.0) if stored else 1.0
    kept = min(new / old, 1.0) if old else 0.0
    return {"name": layer["name"], "kept": kept, "nonzero": nonzero, "text": f"{new} of {old}"}


def layer_costs(layers: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A table of both nets' costs layer by layer: its ``columns``, and ``rows`` of (name, pairs of texts)."""
    names = {name: label for name, label in SIZES.items() if any(layer.get(name) for layer in layers)}
    rows = []
    for layer in layers:
        shapes = [" x ".join(map(str, shape)) if shape else "-" for shape in (layer["dense"], layer["compressed"])]
        pairs = [[f"{count:,}" for count in layer.get(name) or ()] for name in names]
        rows.append((layer["name"], [shapes, *pairs]))
    return {"columns": ["outputs x inputs", *names.values()], "rows": rows}


def _kernel(cell: dict[str, Any]) -> str:
    return " (popcount)" if cell.get("kernel") == "popcount" else ""


def latency_cells(record: Record) -> list[dict[str, Any]]:
    """The latency table: times as "median ± interquartile range", the ratio where one may be claimed."""
    measured = record.latency or {"cells": [], "kernel": ""}
    claimed = measured["kernel"] != "no_fast_kernel"
    return [
        {
            "threads": cell["threads"],
            "batch": cell["batch"],
            "rounds": cell["rounds"],
            "dense": f"{cell['dense_ms']:.3f} ± {cell['dense_spread_ms']:.3f}",
            "compressed": f"{cell['compressed_ms']:.3f} ± {cell['compressed_spread_ms']:.3f}",
            "ratio": f"{cell['dense_ms'] / cell['compressed_ms']:.2f}x{_kernel(cell)}" if claimed else "not claimed",
        }
        for cell in measured["cells"]
    ]


def scalar(value: Any) -> str:
    """A number, text, flag or null of a record in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------ curves

Points = list[tuple[float, float | None]]


def panels(curve: list[list[float | None]]) -> list[dict[str, Any]]:
    """Loss and learning rate over the steps, each ``drawn``, with a name and a sentence for those who cannot see it."""
    found = []
    for name, index in (("training loss", 1), ("learning rate", 2)):
        points = [(point[0], point[index]) for point in curve if point[0] is not None]
        values = [value for _, value in points if value is not None]
        if not values:
            continue
        log = index == 1 and 0 < 100 * min(values) <= max(values)
        shown = [(x, math.log10(y) if log and y is not None else y) for x, y in points]
        first, last = values[0], values[-1]
        found.append(
            {
                "name": name + (", logarithmic" if log else ""),
                "alt": f"{name.capitalize()} over the training steps: it starts at {first:.4g}, ends at {last:.4g}, "
                f"and lies between {min(values):.4g} and {max(values):.4g}.",
                **drawn({"path": shown}, log, zero=not log),
            }
        )
    return found


def search_panel(search: Search) -> dict[str, Any]:
    """The reward of every episode as a dot, the best so far as a line: a panel like the others."""
    dots = [point for x, y in enumerate(search.rewards, 1) for point in ((x, y), (x, None))]
    best, first = search.best, search.rewards[0]
    return {
        "name": "reward",
        "alt": f"Reward by episode: of {len(best)} the first has {first:.4g} and the best {best[-1]:.4g}, found in "
        f"episode {search.rewards.index(best[-1]) + 1}.",
        **drawn({"dots": dots, "path": list(enumerate(best, 1))}),
    }


def drawn(lines: dict[str, Points], log: bool = False, zero: bool = False) -> dict[str, Any]:
    """Lines in one box of 1000 x 100: an SVG path by the name of each, ticks ``x`` and ``y`` as (percent, text).

    A line has a gap where y is None. ``log``: y is a logarithm to base 10; ``zero``: 0 is on its axis.
    """
    points = [point for line in lines.values() for point in line]
    y_low, y_high, y_ticks = _axis([y for _, y in points if y is not None], zero, whole=log)
    x_low, x_high, x_ticks = _axis([x for x, _ in points], whole=True)

    def place(x: float, y: float | None) -> tuple[float, float | None]:
        return _place(x, x_low, x_high), None if y is None else 100 - _place(y, y_low, y_high)

    return {
        **{name: _path(place(*point) for point in line) for name, line in lines.items()},
        "y": [(_place(y, y_low, y_high), f"{10**y if log else y:g}") for y in y_ticks],
        "x": [(_place(x, x_low, x_high), f"{x:,.10g}") for x in x_ticks],
    }


def _axis(values: list[float], zero: bool = False, whole: bool = False) -> tuple[float, float, list[float]]:
    """Ends of an axis (with ``zero``: 0 is on it) and up to six round (with ``whole``: whole) numbers between them."""
    low, high = min(values), max(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - max(0.5, 0.1 * abs(low)), high + max(0.5, 0.1 * abs(high))
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(unit * factor for factor in (0.2, 0.5, 1, 2) if (high - low) / (unit * factor) <= 5)
    step = max(step, 1.0) if whole else step
    ticks = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return low, high, ticks


def _place(value: float, low: float, high: float) -> float:
    """The place of a value on an axis, in percent of its length."""
    return round(100 * (value - low) / (high - low), 2)


def _path(places: Iterable[tuple[float, float | None]]) -> str:
    """SVG path data through the places, with a gap where there is none; a lone place is a dot."""
    words, pen = [], "M"
    for x, y in places:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{10 * x:.1f} {y:.2f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(words)
