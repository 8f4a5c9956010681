"""What the commands print: the summary of a run, the lists of methods and baselines, and the help."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import baselines.base
from repro import registry
from repro.record import ACCURACIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from repro.record import Measurement, Record
    from repro.structures import Result

WIDE = 160  # columns where the output is no terminal
SHOWN = 12  # entries of a long reported list


def summary(record: Record, path: Path, verbose: bool = False) -> None:
    """Print what a run did to the network, what that cost and saved, and where its record is.

    ``verbose``: what every layer costs, too.
    """
    recipe = f", recipe {record.recipe}" if record.recipe else ""
    print(f"\n{record.method} on {record.baseline} (budget {record.budget}{recipe}, seed {record.seed})")
    if record.kind == "run":
        changed = [layer for layer in record.layers if layer["compressed"] != layer["dense"]]
        if changed:
            _console().print(_layers(changed))
        else:
            print("No layer changed its shape.")
        for name, value in record.details.items():
            if value not in (None, [], {}):
                print(f"{name.replace('_', ' ')}: {_short(value)}")
    if verbose:
        _console().print(layer_table(record))
    _console().print(_measured(record))
    if record.latency:
        _console().print(_latency(record.latency))
    if record.status != "ok":
        print("The training diverged: its loss was no number, or exploded. A smaller learning rate may help.")
    print(f"Record: {path}", flush=True)


def _layers(changed: Iterable[dict]) -> Table:
    """Output channels of every layer that was changed, before and after."""
    table = _table("layer", ("out channels", "right"), ("in channels", "right"), ("removed", "right"))
    for layer in changed:
        dense, compressed = layer["dense"], layer["compressed"]
        if compressed is None:
            table.add_row(layer["name"], str(dense[0]), str(dense[1]), "replaced")
            continue
        out, into = (f"{b} -> {a}" if a != b else f"{b}" for b, a in zip(dense, compressed, strict=True))
        table.add_row(layer["name"], out, into, f"{100 * (1 - compressed[0] / dense[0]):.0f} %")
    return table


def _measured(record: Record) -> Table:
    """Accuracy and size of the dense and of the compressed net."""
    nets = [record.dense] if record.kind == "train" else [record.dense, record.compressed]
    table = _table("", *((name, "right") for name in ("dense", "compressed", "change")[: 2 * len(nets) - 1]))
    for name, label in ACCURACIES.items():
        values = [getattr(net, name) for net in nets]
        if all(value is not None for value in values):
            change = [f"{values[-1] - values[0]:+.2f}"] if len(nets) > 1 else []
            table.add_row(label, *(f"{value:.2f} %" for value in values), *change)
    after = (record.after_compression or {}).get("top1")
    if len(nets) > 1 and after is not None:
        table.add_row("top-1 before retraining", "", f"{after:.2f} %", f"{after - record.dense.top1:+.2f}")
    for name, label in (("params", "params"), ("macs", "MACs"), ("bit_ops", "bit-ops"), ("bytes", "bytes")):
        _size_row(table, label, name, nets)
    return table


def _latency(latency: dict[str, Any]) -> Table:
    """Measured latency of both nets, and whether a speed-up is claimed."""
    remark = " - the machine was loaded" if latency["loaded"] else ""
    table = _table(
        f"latency{remark}", *((name, "right") for name in ("threads", "batch", "dense", "compressed", "speed-up"))
    )
    for cell in latency["cells"]:
        times = [f"{cell[f'{net}_ms']:.3g} ± {cell[f'{net}_spread_ms']:.2g} ms" for net in ("dense", "compressed")]
        ratio = f"{cell['dense_ms'] / cell['compressed_ms']:.2f}x"
        claim = "no fast kernel" if latency["kernel"] == "no_fast_kernel" else ratio
        claim += " (popcount)" if cell.get("kernel") == "popcount" else ""
        table.add_row(latency["runtime"], str(cell["threads"]), str(cell["batch"]), *times, claim)
    return table


def _size_row(table: Table, label: str, name: str, nets: list[Measurement]) -> None:
    values = [getattr(net, name) for net in nets]
    if all(values):
        change = [f"{100 * (values[-1] / values[0] - 1):+.1f} %"] if len(nets) > 1 else []
        table.add_row(label, *(f"{value:,}" for value in values), *change)


LAYER_COSTS = {"params": "params", "nonzero": "nonzero", "macs": "MACs", "bit_ops": "bit-ops (M)"}


def layer_table(record: Record) -> Table:
    """What every layer of the dense net costs and what is left of it; the last line is the network.

    The line before it holds the rest: normalisation, and layers that stand in no dense layer's place.
    """
    table = _table("layer", *((name, "right") for name in ("out", "in", *LAYER_COSTS.values())))
    for layer in record.layers:
        gone = ["replaced" if layer.get("params", (0, 0))[1] else "gone"] * 2
        shapes = map(_change, layer["dense"], layer["compressed"] or gone)
        table.add_row(layer["name"], *shapes, *(_cost(key, layer.get(key)) for key in LAYER_COSTS))
    whole = {key: [getattr(record.dense, key), getattr(record.compressed, key)] for key in LAYER_COSTS}
    known = [key for key, pair in whole.items() if None not in pair and all(key in layer for layer in record.layers)]
    rest = {key: [w - sum(layer[key][i] for layer in record.layers) for i, w in enumerate(whole[key])] for key in known}
    table.add_section()
    table.add_row("elsewhere", "", "", *(_cost(key, rest.get(key)) for key in LAYER_COSTS))
    table.add_row("network", "", "", *(_cost(key, pair) for key, pair in whole.items()))
    return table


def _cost(key: str, pair: Sequence[int | None] | None) -> str:
    """A cost before and after; bit-operations in millions. Empty where nobody counted it."""
    if pair is None or None in pair:
        return ""
    return _change(*(f"{n / 1e6:,.0f}" if key == "bit_ops" else f"{n:,}" for n in pair))


def _change(before: object, after: object) -> str:
    return f"{before}" if before == after else f"{before} -> {after}"


def methods_as_data() -> list[dict[str, Any]]:
    """Every method as JSON-able data, by family and name; the ones that cannot be used with their ``error``."""
    found = []
    for entry in sorted(registry.entries().values(), key=lambda entry: (entry.family, entry.name)):
        row: dict[str, Any] = {"name": entry.name, "family": entry.family, "error": entry.error}
        if entry.cls is not None:
            paper = getattr(entry.cls, "paper", None)
            row["paper"] = dataclasses.asdict(paper) if dataclasses.is_dataclass(paper) else None
            row["recipes"] = list(entry.cls.recipes)
            row["fields"] = {name: value for name, (_, value) in fields(entry.cls).items()}
        found.append(row)
    return found


def baselines_as_data() -> list[dict[str, Any]]:
    """Every baseline as JSON-able data; one that fails to load with its ``error``."""
    found = []
    for name in baselines.base.names():
        try:
            baseline = baselines.base.load(name)
            facts = {"budgets": list(baseline.budgets), "default_budget": baseline.default_budget}
            facts |= {"published": baseline.published, "source": baseline.source}
            found.append({"name": name, "error": None, **facts})
        except Exception as error:
            found.append({"name": name, "error": f"{type(error).__name__}: {error}"})
    return found


def listing() -> None:
    """Print every method by family, and every baseline."""
    table = _table("method", "paper", "venue", "recipes", title="Methods")
    family = None
    for row in methods_as_data():
        if row["family"] != family:
            family = row["family"]
            table.add_section()
            table.add_row(f"[bold]{family}[/bold]")
        if row["error"]:
            table.add_row(f"  {row['name']}", f"[red]broken:[/red] {_plain(row['error'])}")
        else:
            paper = row["paper"] or {"title": "", "venue": ""}
            table.add_row(f"  {row['name']}", _plain(paper["title"]), _plain(paper["venue"]), ", ".join(row["recipes"]))
    _console().print(table)
    table = _table("baseline", "budgets (default first)", "published accuracy", title="Baselines")
    for row in baselines_as_data():
        if row["error"]:
            table.add_row(row["name"], f"[red]broken:[/red] {_plain(row['error'])}")
            continue
        budgets = sorted(row["budgets"], key=lambda budget: budget != row["default_budget"])
        accuracy = ", ".join(f"{name} {value:g} %" for name, value in row["published"].items())
        table.add_row(row["name"], ", ".join(budgets), accuracy)
    _console().print(table)


def listing_json() -> None:
    """Print the lists as JSON."""
    print(json.dumps({"methods": methods_as_data(), "baselines": baselines_as_data()}, indent=1, default=str))


def structures(found: Iterable[Result]) -> None:
    """Print the published networks beside their recount and what papers print, with numbered footnotes."""
    counts = ((name, "right") for name in ("params", "MACs", "recount: params", "recount: MACs"))
    table = _table("network", *counts, "papers print", "result", title="Published structures")
    notes: list[str] = []
    for one in found:
        row = one.row
        notes += [note for note in one.notes if note not in notes]
        marks = "".join(f" [{notes.index(note) + 1}]" for note in dict.fromkeys(one.notes))
        counts = ("" if n is None else f"{n:,}" for n in (one.params, one.macs, row.params, row.macs))
        colour = {"exact": "green", "differs": "red"}.get(one.result, "yellow")
        result = f"[{colour}]{one.result}[/{colour}]"
        table.add_row(row.name, *counts, _plain("; ".join(map(str, row.prints)) + marks), result)
    _console().print(table)
    for number, note in enumerate(notes, 1):
        print(f"[{number}] {note}")


def structures_json(found: Iterable[Result]) -> None:
    """Print the same as JSON."""
    from repro.structures import as_data

    print(json.dumps([as_data(one) for one in found], indent=1))


def fields(cls: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of every field of a method."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = (hints[field.name], None if made is dataclasses.MISSING else made)
    return found


def options(without: Iterable[str] = ()) -> str:
    """The options of a run, one a line."""
    from repro.config import HELP

    return "\n".join(f"  {key + '=':22} {text}" for key, text in HELP.items() if key not in without)


def method_help(name: str) -> str:
    """The fields of a method with type and default, and its recipes; UserError where it cannot be used."""
    from repro.config import kind, recipes

    cls = registry.method_class(name)
    lines = [f"Fields of {name}:" if fields(cls) else f"{name} has no fields."]
    for field, (hint, value) in fields(cls).items():
        lines.append(f"  {'method.' + field + '=':30} {kind(hint)}; default {_short(value)}")
    own = [recipe for recipe, (method, *_) in recipes().items() if method == name]
    return "\n".join([*lines, *(["Recipes:", *(f"  recipe={recipe}" for recipe in own)] if own else [])])


def checked(name: str, results: Iterable[Any]) -> bool:
    """Print the checks of one method; whether all went as declared."""
    table = _table("check", "baseline", "result", "what to do", title=name)
    colours = {"passed": "green", "failed": "red"}
    good = True
    for result in results:
        good = good and result.status != "failed"
        colour = colours.get(result.status, "yellow")
        table.add_row(result.check, result.baseline, f"[{colour}]{result.status}[/{colour}]", _plain(result.sentence))
    _console().print(table)
    return good


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def _table(*columns: str | tuple[str, str], title: str | None = None) -> Table:
    """A table of columns named, or named and justified."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=title, title_justify="left", title_style="bold")
    for column in columns:
        name, justify = (column, "left") if isinstance(column, str) else column
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _short(value: Any) -> str:
    """A reported fact or a default in one line."""
    if isinstance(value, dict):
        parts = [f"{name} {_short(inner)}" for name, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [_short(inner) for inner in value]
    else:
        return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return ", ".join(parts[:SHOWN]) + (f", ... ({len(parts)} in all)" if len(parts) > SHOWN else "")
