"""The pictures of the boards: what is drawn where, on which front, and that the same rows give the same bytes."""

import functools
import json
import random

import numpy as np
import pytest
from matplotlib.text import Text
from oracle import mutant
from test_leaderboard import a_run, dense, only, seeds, timed
from test_records import measured

from repro import figures
from repro.planes import PLANES

FAMILIES = ["controls", "filter_pruning", "search"]


def net(top1, cost):
    """A network whose bytes and MACs go with ``cost``."""
    return measured(top1, params=10 * cost, macs=1_000 * cost, bytes=100 * cost)


def dialled(ratio, *top1, cost=40, **changes):
    """The runs of one setting, a seed each."""
    settings = {"hyperparameters": {"ratio": ratio, "lr": 0.1}, "latency": timed(loaded=True), **changes}
    return [a_run(seed=seed, compressed=net(value, cost), **settings) for seed, value in enumerate(top1)]


@functools.cache
def board():
    """Three settings of one method, the same at another rate, a control, and a row far below all of them."""
    runs = [*dialled(0.2, 93.0, 93.4, cost=80), *dialled(0.5, 92.0, 92.4, 92.8), *dialled(0.8, 90.5, cost=5)]
    runs += dialled(0.5, 91.0, cost=41, hyperparameters={"ratio": 0.5, "lr": 1.0})
    runs += dialled(0.5, 91.5, cost=39, method="random_filter", latency=None)
    runs += dialled(0.5, 20.0, cost=38, method="other", family="search", latency=None)
    return only([*runs, dense()])


@functools.cache
def pictured():
    return figures.curves(board(), FAMILIES)


def places(**wanted):
    return [i for i, row in enumerate(board().rows) if all(row[key] == value for key, value in wanted.items())]


def as_drawn(module=figures):
    """Whether points, bars, curves and front of the panels of bytes and latency are the rows'."""
    fig, rows = module.draw(board(), FAMILIES), board().rows
    for index, key in ((0, "bytes"), (1, "macs"), (4, "latency1")):
        axes, plane = fig.axes[index], next(p for p in PLANES if p.key == key)
        costs = {i: plane.cost(row) for i, row in enumerate(rows)}
        known = [(costs[i], row["top1"], row["top1_std"] or 0.0) for i, row in enumerate(rows) if costs[i] is not None]
        drawn = []
        for bars in axes.containers:
            ends = bars[2][0].get_segments()
            drawn += [
                (x, y, (end[1, 1] - end[0, 1]) / 2) for (x, y), end in zip(bars[0].get_xydata(), ends, strict=True)
            ]
        inside = sorted(one for one in known if one[1] > 50)
        if len(drawn) != len(inside) or not np.allclose(sorted(drawn), inside, atol=1e-4):
            return False
        below = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_gid() == "below"]
        if below != [(one[0], axes.get_ylim()[0]) for one in known if one[1] < 50]:
            return False
        lines = [[tuple(xy) for xy in line.get_xydata()] for line in axes.lines if line.get_gid() == "curve"]
        dial = sorted(
            (costs[i], rows[i]["top1"]) for i in places(method="fake") if rows[i]["_first"].hyperparameters["lr"] < 1
        )
        if lines != ([dial] if key != "latency1" else []):  # one latency for all: there is no dial to be seen
            return False
        best = [o for o in known if not any(p[0] <= o[0] and p[1] >= o[1] and p[:2] != o[:2] for p in known)]
        (front,) = [line for line in axes.lines if line.get_gid() == "front"]
        xs, ys = front.get_data()
        if list(zip(xs, ys, strict=True))[:-1] != sorted(one[:2] for one in best) or ys[-1] != max(ys):
            return False
    return True


def test_what_is_drawn_is_what_the_rows_say():
    assert as_drawn()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('place["row"][f"{metric}_std"] or 0.0', "0.1"),
        ("name not in DIALS", 'name not in ("ratio", "lr")'),
        ("[places[i] for i in front]", "places[:3]"),
    ],
)
def test_a_changed_line_is_seen(old, new):
    assert not as_drawn(mutant(figures, old, new))


def test_the_same_rows_give_the_same_bytes_and_no_date():
    again = figures.curves(board(), FAMILIES)
    assert again == pictured() and pictured().keys() == {"png", "svg"}
    assert b"<dc:date>" not in again["svg"] and len(again["svg"]) < 300_000 and len(again["png"]) < 200_000


def test_what_differs_in_the_rows_differs_in_the_facts():
    facts = json.dumps(figures.facts(board()))
    for changed in (dialled(0.5, 92.0), dialled(0.5, 92.1), dialled(0.5, 92.0, cost=41), dialled(0.4, 92.0)):
        assert json.dumps(figures.facts(only([*changed, dense()]))) != facts
        facts = json.dumps(figures.facts(only([*changed, dense()])))


def test_a_plane_in_which_no_method_has_a_cost_says_so():
    fig = figures.draw(only([*seeds(92.0, 92.5, method="other"), dense()]), FAMILIES)
    said = ["not known for any row" in [text.get_text() for text in axes.texts] for axes in fig.axes]
    assert dict(zip([p.key for p in PLANES], said, strict=True)) == {
        **dict.fromkeys(("bytes", "macs"), False),
        **dict.fromkeys(("rule", "bit_ops", "latency1", "latency64"), True),
    }


def test_the_names_on_a_crowded_front_do_not_overlap():
    chance = random.Random(0)
    runs = [dense()]
    for i in range(1, 31):
        runs += dialled(
            i / 31, 88.0 + 5 * (i / 31) ** 0.5 + chance.random() / 2, cost=3 * i, method="other", latency=None
        )
    fig = figures.draw(only(runs), FAMILIES)
    renderer = fig.canvas.get_renderer()
    texts = [text for text in fig.axes[0].texts if "ratio" in text.get_text()]
    # an annotation's extent holds its arrow too: the text alone is asked for
    for text in texts:
        text.update_positions(renderer)
    boxes = [Text.get_window_extent(text, renderer) for text in texts]
    assert len(boxes) > 5 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    panel = fig.axes[0].bbox.padded(3)
    assert all(panel.contains(x, y) for box in boxes for x, y in box.corners())


def names_of_curves(module=figures):
    """What is written beside three curves, one above the other, in the first two panels."""
    runs = [dense()]
    for i, ratio in enumerate((0.2, 0.5, 0.8)):
        runs += dialled(ratio, 92.0 - i, cost=60 - 20 * i, method="other", latency=None)
        runs += dialled(ratio, 85.0 - i, cost=61 - 20 * i, latency=None)
        runs += dialled(ratio, 78.0 - i, cost=62 - 20 * i, method="random_filter", latency=None)
    return [[text.get_text() for text in axes.texts] for axes in module.draw(only(runs), FAMILIES).axes[:2]]


def test_a_curve_off_the_front_has_the_name_of_its_method_once():
    for texts in names_of_curves():
        assert texts.count("fake") == texts.count("random_filter") == 1


def test_a_name_that_is_not_needed_is_left_out_in_a_crowd():
    assert [texts.count("fake") for texts in names_of_curves(mutant(figures, "COVER + 2", "0"))] == [0, 0]


def test_the_legend_of_a_search_hides_no_episode():
    from matplotlib.figure import Figure

    axes = Figure(layout="constrained").subplots()
    figures._draw_rewards(axes, [figures.Search({"a": 0.5}, {"a": 0.5}, [0.0, -0.1, -0.2, 0.0])])
    axes.figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    assert not any(box.contains(*axes.transData.transform(xy)) for line in axes.lines for xy in line.get_xydata())
