"""The pictures of the boards: accuracy against every cost, what searches found. The same rows give the same bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repro.boards import Board, Search, grouped, mean
from repro.planes import PLANES, Plane, costs, pareto_front
from repro.record import canonical, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

__all__ = ["COLOURS", "DIALS", "SHAPES", "curves", "draw", "drawable", "facts", "scene", "search_figure"]

# The fields that say how much is taken away: rows that differ in nothing else are one curve.
DIALS = {
    *("ratio", "ratios", "macs_reduction", "params_reduction", "compression", "sparsity", "sparsities", "densities"),
    *("quality", "qualities", "width", "rank", "ranks", "bits"),
}
# P. Tol, "Colour schemes", muted, and an orange: they differ for the colour-blind too. The controls are grey discs.
COLOURS = ("#882255", "#ddaa22", "#117733", "#3377bb", "#aa4499", "#332288", "#ee7733", "#44aa99", "#999933", "#cc6677")
SHAPES = "s^DvPX<>ph"
GREY, INK = "#7f8790", "#222222"
REACHES = (7, 14, 24, 36, 52, 72, 96)  # points between a mark and its label
SIDES = (
    *((0, 1), (0.6, 1), (-0.6, 1), (1, 1), (-1, 1), (1, 0), (-1, 0)),
    *((1, -1), (-1, -1), (0, -1), (0.6, -1), (-0.6, -1)),
)
OVERLAP, COVER = 100.0, 8.0  # how bad it is to write over another label, and over a mark
CROWD = COVER + 2  # from where on what need not be written is left out
LOG = 10.0  # an axis is logarithmic where its greatest cost is at least this many times its least
LONGEST = 28  # characters of what tells a row from others
FENCE = 4.0  # interquartile ranges below the lower quartile under which a row is written at the edge instead
BESIDE = 40.0  # points, closer than which rows at the edge have their values above one another
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "repro",
}


@dataclass(frozen=True)
class Panel:
    """What one plane shows: ``at``, the costs by the places of the rows on the board; ``front``, the places on the
    Pareto front, and ``lines``, those of every curve, both by cost."""

    plane: Plane
    at: dict[int, float]
    front: list[int]
    lines: list[list[int]]


def drawable(board: Board) -> bool:
    """Whether a method's run on the board has ended well."""
    return any(row["n"] and row["method"] != "dense" for row in board.rows)


def scene(board: Board) -> list[Panel]:
    """The panels of a board, one for each plane; a row that has no cost in a plane is not in that panel."""
    known = {place: costs(row) for place, row in enumerate(board.rows) if row["n"]}
    found = []
    for plane in PLANES:
        at = {place: cost for place, by_plane in known.items() if (cost := by_plane[plane.key]) is not None}
        at = at if any(board.rows[place]["method"] != "dense" for place in at) else {}
        places = list(at)
        front = pareto_front([(at[place], board.rows[place][board.metric]) for place in places])
        lines = [sorted((p for p in line if p in at), key=lambda p: (at[p], p)) for line in _lines(board)]
        lines = [line for line in lines if len({at[p] for p in line}) > 1]
        found.append(Panel(plane, at, [places[i] for i in front], lines))
    return found


def _lines(board: Board) -> list[list[int]]:
    """The places of the rows that differ in their dial alone, curve by curve."""

    def key(place: int) -> str:
        row = board.rows[place]
        first = row["_first"]
        others = {name: value for name, value in first.hyperparameters.items() if name not in DIALS}
        return canonical(plain([row["method"], others, first.options, first.parent, row["starts_from"]]))

    ended = (place for place, row in enumerate(board.rows) if row["n"] and row["method"] != "dense")
    return [line for line in grouped(ended, key).values() if len(line) > 1]


def curves(board: Board, families: Sequence[str]) -> dict[str, bytes]:
    """The board as a PNG and an SVG, by suffix: a panel for each plane, ``families`` fixes colours and shapes.

    Their Description is ``facts``, as JSON.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        fig = draw(board, families)
        return {"png": _image(fig, "png", facts(board)), "svg": _image(fig, "svg", facts(board))}


def facts(board: Board) -> dict[str, Any]:
    """All that the figure of a board is drawn from; its files say so in their Description."""
    rows = [
        [r[k] for k in ("method", "setting", "family", "n", board.metric, f"{board.metric}_std")] for r in board.rows
    ]
    panels = {p.plane.key: [list(p.at.items()), p.front, p.lines] for p in scene(board)}
    return {"dense": mean(row["dense"] for row in board.rows), "rows": rows, "panels": panels}


# ---------------------------------------------------------------------------------------------------- accuracy, cost


def draw(board: Board, families: Sequence[str]) -> Figure:
    """The figure: two columns of panels that share the axis of accuracy, and the legend under them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 12), dpi=100, layout="constrained")
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    panels, looks = scene(board), _looks(families)
    low, high = _limits(board)
    for panel, axes in zip(panels, fig.subplots(-(-len(panels) // 2), 2, sharey=True).flat, strict=False):
        axes.set(ylim=(low, high))
        axes.set_title(panel.plane.title, loc="left")
        axes.yaxis.set_tick_params(labelleft=True)
        if panel.at:
            _draw_panel(axes, board, panel, looks)
        else:
            axes.text(0.5, 0.5, "not known for any row", ha="center", color=GREY, transform=axes.transAxes)
            axes.set_xticks([])
    name = f"{board.title.split(' - ')[0]}: top-1 on the test set, %"
    fig.suptitle(name + (" (among the subset's classes)" if board.metric == "subset_top1" else ""), fontsize=12)
    _legend(fig, board, panels, looks)
    fig.draw_without_rendering()  # the panels have their places from here on
    fig.set_layout_engine("none")
    words = _words(board)
    for panel, axes in zip(panels, fig.axes, strict=False):
        _write_labels(axes, board, panel, words)
    return fig


def _looks(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of every family."""
    others = (family for family in families if family != "controls")
    return {
        "controls": (GREY, "o"),
        **dict(zip(others, zip(itertools.cycle(COLOURS), itertools.cycle(SHAPES)), strict=False)),
    }


def _limits(board: Board) -> tuple[float, float]:
    """The ends of the axis of accuracy; rows far below all others do not stretch it."""
    import numpy as np

    ended = [row for row in board.rows if row["n"]]
    values = np.array([row[board.metric] for row in ended])
    stds = np.array([row[f"{board.metric}_std"] or 0.0 for row in ended])
    lower, upper = np.quantile(values, [0.25, 0.75])
    inside = values >= lower - FENCE * max(upper - lower, 0.25)
    low, high = values[inside].min(), values.max()
    room = max(high - low, 0.5)
    low, high = max(low - room / 4, (values - stds)[inside].min()), min(high + room / 4, (values + stds).max())
    return float(low - 0.08 * room), float(high + 0.12 * room)


def _draw_panel(axes: Axes, board: Board, panel: Panel, looks: Mapping[str, tuple[str, str]]) -> None:
    """The points with their deviations, the curves, the Pareto front and the dense net's accuracy as a line."""
    _scale(axes, panel)
    metric, low = board.metric, axes.get_ylim()[0]
    front = set(panel.front)
    for line in panel.lines:
        rows = [board.rows[place] for place in line]
        colour = looks[rows[0]["family"]][0]
        axes.plot([panel.at[p] for p in line], [r[metric] for r in rows], color=colour, lw=1.0, alpha=0.5, gid="curve")
    ys = [board.rows[place][metric] for place in panel.front]
    xs = [panel.at[place] for place in panel.front]
    right = axes.get_xlim()[1]
    axes.step([*xs, right], [*ys, ys[-1]], where="post", color=INK, lw=1.0, ls=(0, (4, 2)), gid="front", zorder=1.5)
    places = [{"row": board.rows[p], "best": p in front, "x": x} for p, x in panel.at.items()]
    below: list[float] = []
    for place in (place for place in places if place["row"][metric] < low):
        row, x = place["row"], place["x"]
        at = axes.transData.transform((x, low))[0] * 72 / axes.figure.dpi
        crowd = sum(abs(at - other) < BESIDE for other in below)
        below.append(at)
        colour, shape = looks[row["family"]]
        axes.plot(x, low, shape, color=colour, ms=7, clip_on=False, gid="below")
        text, where = f"↓ {row[metric]:.1f}", {"xytext": (6, 3 + 9 * crowd), "textcoords": "offset points"}
        axes.annotate(text, (x, low), **where, fontsize=8, color=colour, parse_math=False)
    shown = (place for place in places if place["row"][metric] >= low)
    for (dense, family, best, hollow), same in grouped(shown, lambda place: _style(panel, place)).items():
        colour, shape = (INK, "*") if dense else looks[family]
        axes.errorbar(
            [place["x"] for place in same],
            [place["row"][metric] for place in same],
            [place["row"][f"{metric}_std"] or 0.0 for place in same],
            ls="none",
            marker=shape,
            color=colour,
            ms=13 if dense else 7,
            mfc="white" if hollow else colour,
            mec=INK if best else colour if hollow else "white",
            mew=1.2 if best else 1.0 if hollow else 0.5,
            elinewidth=0.9,
            alpha=1.0 if best or dense else 0.75,
            zorder=4 if best else 3,
        )
    if missing := sum(bool(row["n"]) for row in board.rows) - len(panel.at):
        note = f"not known for {missing} of {missing + len(panel.at)} rows"
        axes.text(0.99, 0.015, note, ha="right", fontsize=7, color=GREY, transform=axes.transAxes)


def _style(panel: Panel, place: dict) -> tuple[bool, str, bool, bool]:
    """What the look of a point depends on: dense, family, on the front, measured beside other work."""
    row = place["row"]
    return row["method"] == "dense", row["family"], place["best"], _loaded(panel, row)


def _loaded(panel: Panel, row: dict) -> bool:
    """Whether the cost was measured beside other work."""
    return panel.plane.key.startswith("latency") and row["method"] != "dense" and "loaded" in row["latency"]


def _scale(axes: Axes, panel: Panel) -> None:
    """The axis of costs: logarithmic where they are far apart, with some room on both sides."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(panel.at.values()), max(panel.at.values())
    axis: Axis = axes.xaxis
    if low > 0 and high >= LOG * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.08)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 150 * low else (1,), numticks=20))
        axis.set_minor_locator(NullLocator())
    else:
        room = (high - low) or high or 1.0
        axes.set_xlim(max(low - 0.08 * room, min(low, 0.0) - 0.02 * room), high + 0.08 * room)
        axis.set_major_locator(MaxNLocator(6))
    unit = panel.plane.unit
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %") if unit == "%" else EngFormatter(unit))


def _legend(fig: Figure, board: Board, panels: Sequence[Panel], looks: Mapping[str, tuple[str, str]]) -> None:
    """What colours, shapes and lines mean, for all panels."""
    from matplotlib.lines import Line2D

    ended = [row for row in board.rows if row["n"]]
    families = {row["family"] for row in ended if row["method"] != "dense"}

    def mark(shape: str, colour: str, label: str, **style: Any) -> Line2D:
        return Line2D([], [], ls="none", marker=shape, color=colour, ms=12 if shape == "*" else 8, label=label, **style)

    dense = any(row["method"] == "dense" for row in ended)
    handles = [mark("*", INK, "dense net")] if dense else []
    handles += [mark(s, c, family.replace("_", " ")) for family, (c, s) in looks.items() if family in families]
    handles.append(Line2D([], [], color=INK, lw=1.0, ls=(0, (4, 2)), label="Pareto front (its points are outlined)"))
    if any(panel.lines for panel in panels):
        handles.append(Line2D([], [], color=GREY, lw=1.1, label="one method, by its dial"))
    if any(row[f"{board.metric}_std"] is not None for row in ended):
        bar = Line2D([], [], ls="none", marker="|", ms=11, color=GREY, label="± sample deviation over the seeds")
        handles.append(bar)
    if any(_loaded(panel, board.rows[p]) for panel in panels for p in panel.at):
        handles.append(mark("o", GREY, "timed on a loaded machine", mfc="white"))
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


# ------------------------------------------------------------------------------------------------------------ labels


def _words(board: Board) -> list[tuple[str, str]]:
    """(method, what tells the row from the method's other rows in few words) of every row."""
    found = []
    by_method = grouped(board.rows, lambda row: row["method"])
    for row in board.rows:
        parts = row["setting"].split(", ")
        others = [other["setting"].split(", ") for other in by_method[row["method"]]]
        alike = [part for part in parts if len(others) > 1 and all(part in other for other in others)]
        parts = [part for part in parts if part not in (*alike, "recipe", "defaults") and "(" not in part]
        parts = [part for part in parts if part.startswith("after ")] or parts
        while len(", ".join(parts)) > LONGEST and len(parts) > 1:
            parts = parts[1:]
        found.append((row["method"], ", ".join(parts).removeprefix("recipe ")[:LONGEST]))
    return found


def _write_labels(axes: Axes, board: Board, panel: Panel, words: Sequence[tuple[str, str]]) -> None:
    """A name at every method on the front, where it hides least; on a curve the method is named once. Off the front,
    where there is room, curves have the name of their method, at the point that is farthest from all others, and other
    methods theirs, at their best point."""
    import numpy as np

    low = axes.get_ylim()[0]
    spots = {p: axes.transData.transform((x, max(board.rows[p][board.metric], low))) for p, x in panel.at.items()}
    hidden = np.array(list(spots.values()) or np.empty((0, 2)))
    taken: list[Bbox] = []
    named: set[int] = set()
    for place in panel.front:
        if board.rows[place]["method"] == "dense":
            continue
        method, setting = words[place]
        line = next((i for i, line in enumerate(panel.lines) if place in line), None)
        text = setting if line in named and setting else f"{method} {setting}".strip()
        named |= set() if line is None else {line}
        taken += _write(axes, text, spots[place], taken, hidden)
    for line in (line for i, line in enumerate(panel.lines) if i not in named):
        others = np.array([spot for place, spot in spots.items() if place not in line] or [(np.inf, np.inf)])
        lonely = max(line, key=lambda place: np.linalg.norm(others - spots[place], axis=1).min())
        taken += _write(axes, words[lonely][0], spots[lonely], taken, hidden, needed=False)
    known = {words[place][0] for place in (*panel.front, *itertools.chain(*panel.lines))} | {"dense"}
    for place in sorted(spots, key=lambda place: -board.rows[place][board.metric]):
        if words[place][0] not in known:
            known.add(words[place][0])
            taken += _write(axes, words[place][0], spots[place], taken, hidden, needed=False)


def _write(
    axes: Axes, text: str, spot: Any, taken: Sequence[Bbox], marks: Any, needed: bool = True
) -> tuple[Bbox, ...]:
    """Write ``text`` beside ``spot``, at the best of some positions; the box that it takes, none where it is not
    ``needed`` and would be far off or hide much. All in pixels."""
    import numpy as np
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    pixels = axes.figure.dpi / 72
    label = axes.annotate(
        text, axes.transData.inverted().transform(spot), (0, 0), textcoords="offset points", va="bottom",
        fontsize=8, color=INK, zorder=5, annotation_clip=False, parse_math=False,
        bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6},
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
    )  # fmt: skip
    # an annotation's own extent holds its arrow too
    half = Text.get_window_extent(label, axes.figure.canvas.get_renderer()).size / 2
    best = None
    for reach, side in itertools.product(REACHES if needed else REACHES[:2], SIDES):
        offset = np.array(side) * (pixels * reach + half)
        box = Bbox.from_extents(*(spot + offset - half), *(spot + offset + half))
        cost = _cost(box, taken, marks, axes.bbox) + reach / 10
        if best is None or cost < best[0]:
            best = cost, offset, box, reach
    if best[0] >= CROWD and not needed:
        label.remove()
        return ()
    label.set_position((best[1] - half) / pixels)
    label.arrow_patch.set_visible(best[3] > REACHES[1])
    return (best[2],)


def _cost(box: Bbox, taken: Sequence[Bbox], marks: Any, panel: Bbox) -> float:
    """How bad a box for a label is: on another label, off the panel, on marks."""
    centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    covered = (abs(marks - centre) < (box.width / 2 + 6, box.height / 2 + 6)).all(axis=1).sum()
    off = box.x0 < panel.x0 + 2 or box.x1 > panel.x1 or box.y0 < panel.y0 + 14 or box.y1 > panel.y1 + 2
    return OVERLAP * sum(box.padded(2).overlaps(other) for other in taken) + 200.0 * off + COVER * float(covered)


# ---------------------------------------------------------------------------------------------------------- searches


def search_figure(row: dict) -> bytes:
    """A PNG of what the searches of a row's runs found: shares that stay, layer by layer, and rewards by episode."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    left, right = fig.subplots(1, 2)
    _draw_policy(left, row["_searches"])
    _draw_rewards(right, row["_searches"])
    fig.suptitle(f"{row['method']}, {row['setting']}", fontsize="medium", parse_math=False)
    return _image(fig, "png", [vars(search) for search in row["_searches"]])


def _draw_policy(axes: Axes, searches: list[Search]) -> None:
    """Bars of the shares that stay (means over the seeds, each of which is a dot), and the uniform ones as steps."""
    names = list(searches[0].policy)
    places = range(len(names))

    def means(kind: str) -> list[float | None]:
        return [mean(getattr(search, kind).get(name) for search in searches) for name in names]

    axes.bar(places, means("policy"), color="C0", label="found")
    ends = [[place + side for place in places] for side in (-0.5, 0.5)]
    axes.hlines(means("uniform"), *ends, color="black", label="all layers alike, at the same cost")
    for search in searches if len(searches) > 1 else []:
        axes.plot(places, [search.policy.get(name) for name in names], "k.", markersize=3)
    axes.set(ylabel="share that stays", ylim=(0, 1.15))
    axes.set_xticks(places, names, rotation=90, fontsize=6, parse_math=False)
    axes.legend(fontsize="small", loc="upper center", ncols=2)


def _draw_rewards(axes: Axes, searches: list[Search]) -> None:
    """A dot for each episode, and a line of the best so far; a colour for each seed."""
    for i, search in enumerate(searches):
        episodes, first = range(1, len(search.rewards) + 1), i == 0
        axes.plot(episodes, search.rewards, ".", color=f"C{i}", alpha=0.3, label="an episode" if first else None)
        axes.plot(episodes, search.best, color=f"C{i}", label="the best so far" if first else None)
    low, high = axes.get_ylim()
    axes.set(xlabel="episode", ylabel="reward", ylim=(low, high + (high - low) / 7))  # room for the legend
    axes.legend(fontsize="small", loc="upper center", ncols=2)


def _image(fig: Figure, kind: str, shown: Any) -> bytes:
    """The picture, which depends on nothing but the figure; its Description is what it shows, as JSON."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    buffer, text = io.BytesIO(), canonical(shown)
    if kind == "svg":
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": text})
        return buffer.getvalue()
    fig.savefig(buffer, format="png")
    info, small = PngInfo(), io.BytesIO()
    info.add_text("Description", text)
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            small, "png", pnginfo=info, optimize=True
        )
    return small.getvalue()
