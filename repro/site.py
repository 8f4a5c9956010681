"""The records as a folder of web pages that need no network: boards with plots, the printed tables with ours beside
them, the claims, a card per method, a page per run.

The same records give the same bytes. A folder that this module did not write is never replaced.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import os
import re
import shutil
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines import base
from baselines.errors import UserError
from repro import claims as claimed
from repro import leaderboard, registry, report, surveys
from repro.boards import NOT_RUN, Board, build, grouped, mean, remark
from repro.leaderboard import HEADER, NONE
from repro.planes import PLANES, costs, pareto_front
from repro.record import Record, canonical, plain
from repro.verdict import cell, deviation_texts, settings, structure, verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from baselines.base import Baseline
    from methods.base import Method, Reported
    from repro.registry import Entry

ASSETS = Path(__file__).with_name("assets")
MARKER = ".repro-site"  # holds the names of all files that were written
ID = re.compile("[0-9a-f]{12}")
NAME = re.compile("[a-z0-9][a-z0-9_]{0,79}")
EQUATION = re.compile(r"\bEqs?\. ?\(?\d")
FOLDED = 72  # characters from which the value of a recipe is folded
FIRST = ("rank", "compression", "MACs reduction", "params reduction", "runs")  # the essential columns, behind accuracy
GREY = "#7f8790"
COLOURS = (
    *("#3d85c6", "#cf6f12", "#2f9460", "#d84a41", "#9467c8", "#a06d4f", "#cf559c", "#84851d", "#1894a3", "#6d72e0"),
    *("#b8860b", "#c2536b"),
)
SHAPES = dict(
    zip(
        ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left"),
        "●■▲◆▼✚▶◀",
        strict=True,
    )
)


# ------------------------------------------------------------------------------------------------------- the folder


def write(
    records: Iterable[Record],
    out: str | Path,
    entries: Mapping[str, Entry] | None = None,
    baselines: Mapping[str, Baseline] | None = None,
) -> Path:
    """Write the site of all records but the smoke ones into the folder ``out``; the path of its first page.

    ``entries`` and ``baselines``: what there is, unless they are given. UserError where ``out`` is a file, or a folder
    that holds anything which this function did not write.
    """
    entries = registry.entries() if entries is None else entries
    baselines = {name: base.load(name) for name in base.names()} if baselines is None else baselines
    _ours(Path(out))
    place = Path(out).resolve()
    fresh, old = (place.with_name(f".{place.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    try:
        names = []
        for name, content in files(records, entries, baselines):
            names.append(name)
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_text(content, "utf-8", "replace", newline="\n")
        (fresh / MARKER).write_text("\n".join([*sorted(names), ""]), "utf-8", newline="\n")
        if place.exists():
            place.rename(old)
        fresh.rename(place)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}): give a folder in another place.") from error
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return Path(out, "index.html")


def _ours(out: Path) -> None:
    """UserError unless ``out`` can be replaced: it is not there, is empty, or holds nothing but an earlier site."""
    if not out.is_dir():
        if out.exists():
            raise UserError(f"out={out} is a file: give the name of a folder, such as out=site.")
        return
    here = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    known = set((out / MARKER).read_text("utf-8", "replace").split("\n")) | {MARKER} if MARKER in here else set()
    if strange := sorted(here - known):
        raise UserError(
            f"out={out} holds '{strange[0]}', which this command did not write: give another folder, or empty this one."
        )


def files(
    records: Iterable[Record], entries: Mapping[str, Entry], baselines: Mapping[str, Baseline]
) -> Iterator[tuple[str, str]]:
    """(name, content) of every file of the site, one after the other; UserError where a record has no usable name."""
    by_id = {record.id: record for record in records if record.budget != "smoke"}
    for record in by_id.values():
        _check(record)
    classes = {name: entry.cls for name, entry in entries.items() if entry.cls}
    built = build(by_id.values(), classes, baselines)
    boards, found = built.boards, claimed.evaluate(built, by_id.values(), classes)
    view = View(boards, by_id, entries, _looks(entries, boards), claimed.summary(found))
    yield from ((f"assets/{name}", (ASSETS / name).read_text("utf-8")) for name in ("site.css", "site.js"))
    yield "assets/vega.js", bundle()
    yield "index.html", _page("index.html.j2", "", view=view, cards=[_line(view, entry) for entry in entries.values()])
    printed = [_printed(one) for one in surveys.build(by_id.values(), built, classes, baselines)]
    yield "surveys.html", _tables(view, surveys.HEADER, printed)
    sheets = [_sheet("The claims", claimed.CLAIMS, view.claims)]
    sheets.append(_sheet("The comparisons", tuple(claimed.CELLS), claimed.comparisons(found)))
    yield "claims.html", _tables(view, claimed.HEADER, sheets)
    for name, of_baseline in grouped(boards, _baseline).items():
        yield f"boards/{name}.html", board_page(view, name, of_baseline, baselines.get(name))
    for name, cls in classes.items():
        yield f"methods/{name}.html", method_page(view, entries[name], cls)
    for board in boards:
        for run in (run for row in board.rows for run in row["ids"].split()):
            record = by_id[run]
            parent = by_id.get(record.parent or "")
            page = report.page(record, classes.get(record.method), baselines.get(record.baseline), parent)
            way = _page("way.html.j2", "../", view=view, record=record, board=board)
            yield f"runs/{run}.html", page.replace("<body>\n", f"<body>\n{way}\n", 1)


def _check(record: Record) -> None:
    """UserError where the words that name files and folders are no such names."""
    if not ID.fullmatch(record.id):
        raise UserError(f"The id '{record.id}' of a record is no file name: 12 digits (0-9, a-f) are expected.")
    for what, name in (("method", record.method), ("baseline", record.baseline)):
        if not NAME.fullmatch(name):
            raise UserError(
                f"The {what} '{name}' of record {record.id} is no file name: small letters, digits and underscores are "
                "expected."
            )


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package that carries them."""
    try:
        import vl_convert
    except ImportError as error:
        raise UserError(
            "The plots of the site need the package vl-convert-python: install it with `pip install -e '.[site]'`."
        ) from error
    return vl_convert.javascript_bundle()


# -------------------------------------------------------------------------------------------------------- the pages


@dataclass(frozen=True)
class View:
    """All that the pages show. ``looks``: colour, shape and sign of every family, the same on every board; ``claims``:
    the lines of ``repro.claims.summary``."""

    boards: list[Board]
    by_id: dict[str, Record]
    entries: Mapping[str, Entry]
    looks: dict[str, dict[str, str]]
    claims: list[list[str]]

    def has_card(self, method: str) -> bool:
        """Whether there is a page about the method."""
        return method in self.entries and self.entries[method].cls is not None

    def runs(self, row: dict) -> list[Record]:
        """The records of a row."""
        return [self.by_id[run] for run in row["ids"].split()]


def _baseline(board: Board) -> str:
    return board.rows[0]["baseline"]


def _looks(entries: Mapping[str, Entry], boards: Iterable[Board]) -> dict[str, dict[str, str]]:
    """The controls are grey discs; the other families take colours and shapes in the order of the alphabet."""
    families = {row["family"] for board in boards for row in board.rows} | {entry.family for entry in entries.values()}
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(SHAPES))
    found = {"controls": (GREY, "circle"), **dict(zip(sorted(families - {"controls"}), looks, strict=False))}
    return {name: {"colour": colour, "shape": shape, "sign": SHAPES[shape]} for name, (colour, shape) in found.items()}


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader, strict = FileSystemLoader(ASSETS), StrictUndefined
    env = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)
    env.filters |= {"prose": prose, "words": lambda name: name.replace("_", " ")}
    env.globals |= {"said": said, "measure": measure, "board_file": lambda board: f"boards/{_baseline(board)}.html"}
    env.globals |= {"FOLDED": FOLDED, "NONE": NONE, "GUIDE": _points(HEADER)}
    return env


def _points(header: str) -> list[str]:
    """The points of a page's head in Markdown, one a line, after what stands above them."""
    return [" ".join(point.split()) for point in header.replace("**", "`").split("\n* ")[1:]]


def _page(template: str, root: str, **what: Any) -> str:
    """A page made by a template; ``root`` is the way from its folder to that of the site."""
    return _environment().get_template(template).render(root=root, **what)


def prose(text: str) -> Markup:
    """A text with `code` marked up and all else escaped."""
    from markupsafe import Markup

    marks = itertools.cycle(("{}", "<code>{}</code>"))
    parts = text.replace("``", "`").split("`")
    return Markup("").join(Markup(mark).format(part) for mark, part in zip(marks, parts, strict=False))


def said(board: Board, row: dict) -> dict[str, str]:
    """The cells of a row by the titles of the board's columns, as the leaderboard writes them."""
    return {title: " ".join(form(row).split()) for title, form in leaderboard.columns(board).items()}


def measure(board: Board) -> str:
    """The title of the accuracy that the board goes by."""
    return next(title for title in leaderboard.columns(board) if title.startswith("Δ "))[2:]


# ---------------------------------------------------------------------------------------------------------- boards


def board_page(view: View, name: str, boards: Sequence[Board], baseline: Baseline | None) -> str:
    """The page of a baseline: every board of it with its remarks, plots and table, under common filters."""
    shown = [
        {
            "board": board,
            "label": f"{board.title.split(', budget ')[0].removeprefix(name)} budget {board.rows[0]['budget']}".strip(),
            "remarks": remarks(board),
            "table": table(view, board),
            "plot": plot(view, board),
        }
        for board in boards
    ]
    families = [family for family in view.looks if any(row["family"] == family for b in boards for row in b.rows)]
    return _page("board.html.j2", "../", view=view, name=name, shown=shown, families=families, baseline=baseline)


def remarks(board: Board) -> list[str]:
    """What has to be known before the table is read."""
    dense = [] if board.rows[0]["method"] == "dense" else [f"The dense net itself is {NOT_RUN}."]
    return [*dense, *board.remarks]


def table(view: View, board: Board) -> dict[str, Any]:
    """``columns`` but for method and setting, the essential ones first, as (title, whether it holds numbers), and
    ``rows`` of (title, whether it holds numbers, text; of the runs: the records); empty columns are left out."""
    lines = [{**said(board, row), "runs": view.runs(row)} for row in board.rows]
    titles = [t for t in lines[0] if t not in ("method", "setting") and any(line[t] != NONE for line in lines)]
    order = [*(t for t in titles if t.startswith(("top-1", "Δ"))), *(t for t in FIRST if t in titles)]
    titles = [*order, *(t for t in titles if t not in order)]
    columns = [(t, t != "runs" and any(re.match(r"[-+]?\d", line[t]) for line in lines)) for t in titles]
    return {"columns": columns, "rows": [[(t, numeric, line[t]) for t, numeric in columns] for line in lines]}


def plot(view: View, board: Board) -> dict[str, Any]:
    """What the plots of a board show: its points, and in which planes, with the rows on the Pareto front of each."""
    points = [_point(view, board, place, row) for place, row in enumerate(board.rows) if row["n"]]
    planes = []
    for plane in PLANES:
        known = [p for p in points if p[plane.key] is not None]
        if any(not p["dense"] for p in known):
            front = pareto_front([(p[plane.key], p["y"]) for p in known])
            facts = {"key": plane.key, "title": plane.title, "log": plane.log}
            planes.append(facts | {"front": [known[i]["row"] for i in front]})
    dense = mean(row["dense"] for row in board.rows)
    return {"slug": board.slug, "measure": f"{measure(board)}, %", "dense": dense, "points": points, "planes": planes}


def _point(view: View, board: Board, place: int, row: dict) -> dict[str, Any]:
    """A row as a point; it leads to the page of its first run that ended well."""
    run = next(record.id for record in view.runs(row) if record.status == "ok")
    y, std = row[board.metric], row[f"{board.metric}_std"] or 0.0
    return {
        **{key: row[key] for key in ("method", "setting", "family", "n")},
        **{f"latency{batch}_remark": remark(row, f"speedup_batch{batch}") for batch in (1, 64)},
        **costs(row),
        "row": place,
        "dense": row["method"] == "dense",
        "href": f"../runs/{run}.html",
        "y": y,
        "low": round(y - std, 4),
        "high": round(y + std, 4),
        "accuracy": said(board, row)[measure(board)],
    }


# ------------------------------------------------------------------------------------------- printed tables, claims


def _tables(view: View, header: str, sheets: list[dict[str, Any]]) -> str:
    """The page of some tables under one head, which is that of the same page in Markdown."""
    title, about = header.split("\n* ")[0].removeprefix("# ").split("\n\n", 1)
    about, guide = " ".join(about.split()), _points(header)
    return _page("tables.html.j2", "", view=view, title=title, about=about, guide=guide, sheets=sheets)


def _printed(table: surveys.Table) -> dict[str, Any]:
    return _sheet(table.survey.title, table.header, surveys.marked(table), table.survey.about, table.footnotes)


def _sheet(
    title: str, header: Sequence[str], rows: list[list[str]], about: str = "", notes: Sequence[str] = ()
) -> dict[str, Any]:
    """One table: its columns as (title, whether it holds numbers)."""
    numeric = [i > 0 and any(re.match(r"\(?[-+]?\d", row[i]) for row in rows) for i in range(len(header))]
    slug = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
    columns = list(zip(header, numeric, strict=True))
    return {"slug": slug, "title": title, "about": about, "columns": columns, "rows": rows, "notes": notes}


# ----------------------------------------------------------------------------------------------------- method cards


def method_page(view: View, entry: Entry, cls: type[Method]) -> str:
    """The card of a method: what its class and its file say, and its records beside the paper."""
    source = entry.path.read_text("utf-8")
    idea, ways = told(getattr(sys.modules.get(cls.__module__), "__doc__", None) or "")
    return _page(
        "method.html.j2",
        "../",
        view=view,
        entry=entry,
        paper=getattr(cls, "paper", None),
        summary=" ".join((cls.__doc__ or "").split()),
        idea=idea,
        ways=ways,
        equations=equations(source),
        deviations=deviation_texts(cls),
        recipes=recipes(cls),
        claims=claims(view, entry.name, cls),
        told=[line[2:] for line in view.claims if line[1] == entry.name],
        rows=[(board, row) for board in view.boards for row in board.rows if row["method"] == entry.name],
        failures=cls.expected_failures,
    )


def _line(view: View, entry: Entry) -> dict[str, Any]:
    """A method in the index."""
    deviations = deviation_texts(entry.cls) if entry.cls else None
    rows = [row for board in view.boards for row in board.rows if row["method"] == entry.name]
    return {
        "entry": entry,
        "paper": getattr(entry.cls, "paper", None),
        "deviations": None if deviations is None else len(deviations),
        "reported": len(entry.cls.reported) if entry.cls else 0,
        "runs": sum(len(row["ids"].split()) for row in rows),
    }


def told(doc: str) -> tuple[str, list[str]]:
    """The idea in a method file's docstring, and what it says on how things are done: all but title, citation and
    deviations."""
    parts = [part for part in re.split(r"\n\s*\n", doc.strip()) if part.strip()]
    ideas = [part for part in parts if part.startswith("Idea:")]
    ways = [part for part in parts[2:] if part not in ideas and not part.startswith("Deviations")]
    return " ".join("\n".join(ideas).removeprefix("Idea:").split()), [" ".join(part.split()) for part in ways]


def equations(source: str) -> list[tuple[int, str, str]]:
    """(line number, what is said, line) of every comment, and every paragraph of a function's or class's docstring,
    that names an equation; a comment on a line of its own goes with the next line."""
    lines, found = source.split("\n"), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and EQUATION.search(token.string):
            row, column = token.start
            code = lines[row - 1][:column].strip() or lines[min(row, len(lines) - 1)].strip()
            found.append((row, token.string.lstrip("# "), code))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for part in filter(EQUATION.search, (ast.get_docstring(node) or "").split("\n\n")):
                found.append((node.lineno, " ".join(part.split()), lines[node.lineno - 1].strip()))
    return sorted(found)


def recipes(cls: type[Method]) -> list[tuple[str, dict[str, str]]]:
    """(recipe, its values as JSON) of every recipe, after the defaults of all fields."""
    named = [(name, plain(values)) for name, values in cls.recipes.items()]
    listed = [("defaults", settings(cls, None) or {}), *named]
    return [(name, {field: canonical(value) for field, value in values.items()}) for name, values in listed]


def claims(view: View, name: str, cls: type[Method]) -> list[dict[str, Any]]:
    """Every row of the paper (and the published accuracy of a dense net) beside our rows: verdict and structure."""
    rows = [(board, row) for board in view.boards for row in board.rows if row["method"] == name]
    printed = dict.fromkeys([*cls.reported, *(rep for _, row in rows for rep in row["_printed"])])
    return [
        {
            "printed": rep,
            "text": cell(rep),
            "facts": facts(rep),
            "ours": [
                {"board": board, "row": row, "verdict": verdict(rep, row), "structure": structure(rep, view.runs(row))}
                for board, row in rows
                if rep in row["_printed"]
            ],
        }
        for rep in printed
    ]


def facts(printed: Reported) -> str:
    """The net, and what else the paper prints in that row."""
    known = (
        (printed.base_top1, "dense {:g} %"),
        (printed.params, "{:,.0f} params"),
        (printed.params_reduction, "{:g} % fewer params"),
        (printed.macs, "{:,.0f} MACs"),
        (printed.macs_reduction, "{:g} % fewer MACs"),
    )
    words = [form.format(value) for value, form in known if value is not None]
    words += [f"rule {printed.rule}"] if words[printed.base_top1 is not None :] else []
    return "; ".join([printed.baseline, *words])
