"""What Deep Compression's paper prints of every layer beside what our records hold, and what makes up the difference.

A record has the weights of every layer, how many are left and how many values they share, and the bits and bytes of the
whole net; its hyper-parameters are the bits of a value and of a distance before Huffman coding. The runs P, P+Q and
P+Q+H of a seed prune the same weights, so P tells how many entries are stored: each takes 32 bits and its distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from methods.base import Method
from repro.boards import Boards
from repro.record import Record, plain
from repro.structures import figure
from repro.survey_tables import Row, Survey
from repro.verdict import settings

STAGES = {"p": "/P", "pq": "/PQ", "pqh": ""}  # the variants of the recipe, by the stage that they end with
FULL = 32  # bits of a dense weight, of a bias and of a value that weights share
OWN = {"shared values": "values", "biases": "biases", "header": "header"}
Stages = dict[str, list[Record]]


def runs(survey: Survey, boards: Boards, by_id: Mapping[str, Record], methods: Mapping[str, type[Method]]) -> Stages:
    """The runs of each stage with the same seeds, of budget paper, else short; empty where a stage has none."""
    name = survey.rows[0].method
    wanted = {s: settings(methods[name], survey.layers + v) for s, v in STAGES.items()} if name in methods else {}
    for budget in ("paper", "short"):
        found: dict[str, dict[int, Record]] = {stage: {} for stage in STAGES}
        rows = [row for board in boards.boards for row in board.rows if not row["stale"]]
        for record in (by_id[i] for row in rows for i in row["ids"].split()):
            where = (record.method, record.baseline, record.budget, record.status)
            if where == (name, survey.layers, budget, "ok") and not (record.parent or record.options.get("holdout")):
                for stage, values in wanted.items():
                    if plain(record.hyperparameters) == values:
                        found[stage][record.seed] = record
        seeds = sorted(set.intersection(*(set(of_stage) for of_stage in found.values())))
        if seeds:
            return {stage: [of_stage[seed] for seed in seeds] for stage, of_stage in found.items()}
    return {}


def biases(record: Record) -> int:
    """Numbers of the net that are no weights of a layer: one for every output, never pruned."""
    return sum(layer["dense"][0] for layer in record.layers)


def weights(layer: dict) -> tuple[int, int]:
    """(weights of a layer, how many of them are left)."""
    return layer["params"][0] - layer["dense"][0], layer["nonzero"][1] - layer["dense"][0]


def bits_of(record: Record, layer: dict) -> tuple[int, int]:
    """Bits of (a weight, a distance) of a layer before Huffman coding; a convolution works at several positions."""
    kind = "conv" if layer["macs"][0] > weights(layer)[0] else "fc"
    return record.hyperparameters[f"{kind}_bits"], record.hyperparameters[f"{kind}_index_bits"]


def entries(record: Record) -> int:
    """Entries that a run of stage P stores, filler zeros among them: all layers with distances of the same length."""
    (index,) = {bits_of(record, layer)[1] for layer in record.layers}
    return (record.compressed.bits - FULL * biases(record)) // (FULL + index)  # what is over fills up bytes


def cells(survey: Survey, stages: Stages) -> dict[tuple[str, str], str]:
    """Our cells by (layer, column): of every layer and of the total, where the records hold them."""
    first, n = stages["pq"][0], len(stages["pq"])
    found = {}
    for layer in first.layers:
        of_net = [next(own for own in r.layers if own["name"] == layer["name"]) for r in stages["pq"]]
        dense, left = weights(layer)[0], fmean(weights(own)[1] for own in of_net)
        (value, index), books = bits_of(first, layer), [r.details["values"][layer["name"]] for r in stages["pq"]]
        least = (left * (value + index) + FULL * fmean(books)) / (FULL * dense)
        own = {"weights": f"{dense:,}", "density": f"{100 * left / dense:.1f}", "weight_bits_pq": f"{value}"}
        own |= {"index_bits_pq": f"{index}", "rate_pq": f"at least {100 * least:.2f}"}
        found |= {(layer["name"], field): text for field, text in own.items()}
    dense, left = total(first), fmean(kept(r) for r in stages["pq"])
    found["total", "weights"], found["total", "density"] = (
        f"{dense:,}",
        f"{100 * left / dense:.1f} ({dense / left:.1f}x)",
    )
    for stage in ("pq", "pqh"):
        share = fmean(size(r) for r in stages[stage])
        budget = "" if first.budget == "paper" else f"{first.budget}, "
        found["total", f"rate_{stage}"] = f"{100 * share:.2f} ({1 / share:.1f}x; {budget}n={n})"
    return found


def total(record: Record) -> int:
    """Weights of all layers."""
    return sum(weights(layer)[0] for layer in record.layers)


def kept(record: Record) -> int:
    """Weights that are left in all layers."""
    return sum(weights(layer)[1] for layer in record.layers)


def size(record: Record) -> float:
    """The compressed file as a share of the dense one."""
    return record.compressed.bytes / record.dense.bytes


def explained(survey: Survey, stages: Stages) -> list[str]:
    """Sentences that take our sizes and the printed ones apart, in percent of the dense net; the parts add up."""
    fillers = 100 * fmean(entries(r) / kept(r) - 1 for r in stages["p"])
    told = (
        "Our records hold the stored bits for the whole net, not for a layer: a layer's size leaves out the filler "
        f"zeros of gaps too long for a distance, of which there are {fillers:.1f} for 100 weights left in all."
    )
    return [told, *(_explained(survey, stages[stage], stage) for stage in ("pq", "pqh"))]


def _explained(survey: Survey, records: list[Record], stage: str) -> str:
    theirs, ours = printed(survey, stage), parts(records)
    over = theirs["size"] - theirs["density"] * theirs["bits"] / FULL
    density = (ours["density"] - theirs["density"]) * theirs["bits"] / FULL
    bits = ours["density"] * (ours["bits"] - theirs["bits"]) / FULL
    rest = ours["values"] + ours["biases"] + ours["header"] - over
    words = "filler zeros and Huffman tables" if stage == "pqh" else "filler zeros"
    sizes = [f"{100 * one['size']:.2f} % ({1 / one['size']:.1f}x)" for one in (ours, theirs)]
    shares = [f"{100 * one['density']:.2f} %" for one in (ours, theirs)]
    own = ", ".join(f"{name} {100 * ours[key]:.2f}" for name, key in OWN.items())
    points = [f"{100 * value:+z.2f}" for value in (ours["size"] - theirs["size"], density, bits, rest, over)]
    each = [f"{one['bits']:.2f}" for one in (ours, theirs)]
    return (
        f"{'+'.join(stage.upper())}: ours is {sizes[0]} of the dense file, the printed total is {sizes[1]}: "
        f"{points[0]} points. Of these {points[1]} are density ({shares[0]} of all numbers are weights that are "
        f"left, {shares[1]} by the printed rows), {points[2]} the bits of such a weight with its distance "
        f"({each[0]} with {words}, {each[1]} by the printed rows), {points[3]} the rest ({own}; the printed total is "
        f"{points[4]} over its rows)."
    )


def printed(survey: Survey, stage: str) -> dict[str, float]:
    """What the printed rows add up to: the share of weights left, the bits of one and its distance, the total size."""
    column = {c.field: i for i, c in enumerate(survey.columns)}

    def number(row: Row, field: str) -> float:
        return figure(row.cells[column[field]].split(" ")[0])[0]

    layers = [row for row in survey.rows if row.label != "total"]
    left = [number(row, "weights") * number(row, "density") / 100 for row in layers]
    bits = [number(row, f"weight_bits_{stage}") + number(row, f"index_bits_{stage}") for row in layers]
    (last,) = [row for row in survey.rows if row.label == "total"]
    return {
        "density": sum(left) / sum(number(row, "weights") for row in layers),
        "bits": sum(a * b for a, b in zip(left, bits, strict=True)) / sum(left),
        "size": number(last, f"rate_{stage}") / 100,
    }


def parts(records: list[Record]) -> dict[str, float]:
    """The same of our files, and what else is in them as shares of the dense file: shared values, biases, header."""
    found = []
    for record in records:
        dense, net = 8 * record.dense.bytes, record.compressed
        values, rest = FULL * sum(record.details["values"].values()), FULL * biases(record)
        found.append(
            {
                "size": size(record),
                "density": FULL * kept(record) / dense,
                "bits": (net.bits - values - rest) / kept(record),
                "values": values / dense,
                "biases": rest / dense,
                "header": (8 * net.bytes - net.bits) / dense,
            }
        )
    return {name: fmean(one[name] for one in found) for name in found[0]}
