"""What Deep Compression's paper prints of every layer beside what our files hold, and what makes up the difference.

A record's ``stored`` says where the bits of the file are. An entry is a stored weight, or a filler zero of a gap too
long for a distance. Bits of a weight and of a distance are means over the entries of a layer; its size is all that the
file holds of its weights: entries, shared values, Huffman tables and what fills up bytes. Biases and the header are of
the whole net. Of records that do not hold it, only the whole files are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from methods.base import Method
from repro.boards import Boards
from repro.record import PARTS, Record, plain
from repro.structures import figure
from repro.survey_tables import Row, Survey
from repro.verdict import settings

STAGES = {"pq": "/PQ", "pqh": ""}  # the variants of the recipe, by the stage that they end with
FULL = 32  # bits of a dense weight and of a value that weights share
TOTAL = "total"
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


def cells(stages: Stages) -> dict[tuple[str, str], str]:
    """Our cells by (layer, column): of every layer and of the total, where the records hold them."""
    found, first = {}, stages["pq"][0]
    budget = "" if first.budget == "paper" else f"{first.budget}, "
    for stage, records in stages.items():
        for label in (*(layer["name"] for layer in first.layers), TOTAL):
            own, more = ours(records, label), label == TOTAL
            times = own["weights"] / own["left"]
            found[label, "weights"] = f"{own['weights']:,.0f}"
            found[label, "density"] = f"{100 / times:.1f}" + f" ({times:.1f}x)" * more
            if "entries" in own:
                found[label, f"weight_bits_{stage}"] = _bits(own["values"] / own["entries"])
                found[label, f"index_bits_{stage}"] = _bits(own["positions"] / own["entries"])
            if "bits" in own:
                share = own["bits"] / own["dense"]
                text = f" ({1 / share:.1f}x; {budget}n={len(records)})" * more
                found[label, f"rate_{stage}"] = f"{100 * share:.2f}{text}"
    return found


def _bits(mean: float) -> str:
    return f"{mean:.0f}" if mean.is_integer() else f"{mean:.1f}"


def ours(records: list[Record], label: str) -> dict[str, float]:
    """Means over ``records`` of what ``of_layers`` finds in all of them."""
    found = [of_layers(record, label) for record in records]
    return {key: fmean(one[key] for one in found) for key in found[0] if all(key in one for one in found)}


def of_layers(record: Record, label: str) -> dict[str, int]:
    """Weights of a layer or of all, those left, and bits: of the dense net, of the file, and of its parts.

    "entries" and the parts are there where the record tells them: those of ``PARTS``, and "outside" of the layers,
    biases and the header, of the total alone. The total is of the dense file, a layer of its weights in 32 bits.
    """
    layers = [layer for layer in record.layers if label in (layer["name"], TOTAL)]
    counts = [weights(layer) for layer in layers]
    found = {"weights": sum(every for every, _ in counts), "left": sum(left for _, left in counts)}
    found["dense"] = 8 * record.dense.bytes if label == TOTAL else FULL * found["weights"]
    if label == TOTAL:
        found["bits"] = 8 * record.compressed.bytes
    if record.stored:
        tensors = [record.stored["tensors"][f"{layer['name']}.weight"] for layer in layers]
        found["entries"] = sum(tensor["entries"] for tensor in tensors)
        found |= {part: sum(tensor[part][1] for tensor in tensors) for part in PARTS}
        inside = sum(found[part] for part in PARTS)
        found["outside"] = found.setdefault("bits", inside) - inside
    return found


def weights(layer: dict) -> tuple[int, int]:
    """(weights of a layer, how many of them are left); its biases, one for every output, are never pruned."""
    return layer["params"][0] - layer["dense"][0], layer["nonzero"][1] - layer["dense"][0]


def explained(survey: Survey, stages: Stages) -> dict[str, list[str]]:
    """Sentences by row that take our sizes and the printed ones apart; none where a record does not tell the parts."""
    if not all(record.stored for records in stages.values() for record in records):
        return {}
    found: dict[str, list[str]] = {row.label: [] for row in survey.rows}
    for stage, records in stages.items():
        for label, theirs in printed(survey, stage).items():
            found[label].append(_explained(label, stage, ours(records, label), theirs))
    return found


def _explained(label: str, stage: str, own: dict[str, float], theirs: dict[str, float]) -> str:
    """One size: differences in percentage points, which add up to that of ours and the printed one."""
    share = {key: 100 * (value / own["dense"]) for key, value in own.items()}
    each, size = (own["values"] + own["positions"]) / own["entries"], share["bits"]
    left, coding = share["left"] * each, share["tables"] + share["padding"]
    fillers = share["values"] + share["positions"] - left
    rest = theirs["rows"] - theirs["left"] - theirs["shared"]
    told = [
        f"{label}, {'+'.join(stage.upper())}: ours {_size(size)}, printed {_size(theirs['size'])}, "
        f"{size - theirs['size']:+z.2f} points: weights left {left - theirs['left']:+z.2f} ({each:.2f} bits each with "
        f"the distance, printed {theirs['each']:.2f}, and their share rounded by ±{theirs['rounding']:.2f})",
        f"shared values {share['codebook'] - theirs['shared']:+z.2f}",
        f"rest of the layers {fillers + coding - rest:+z.2f} (filler zeros {fillers:.2f}, "
        f"{100 * (own['entries'] / own['left'] - 1):.1f} for 100 weights, Huffman tables and unused bits {coding:.2f}; "
        f"the printed size leaves {rest:.2f})",
    ]
    if label == TOTAL:
        told += [
            f"biases and header {share['outside']:+z.2f} (without them ours is {_size(size - share['outside'])})",
            f"printed rows over their total {theirs['rows'] - theirs['size']:+z.2f} (they add up to "
            f"{_size(theirs['rows'])})",
        ]
    return f"{'; '.join(told)}."


def _size(percent: float) -> str:
    return f"{percent:.2f} % ({100 / percent:.1f}x)"


def printed(survey: Survey, stage: str) -> dict[str, dict[str, float]]:
    """By row, in percent of its dense weights, what the printed figures give for weights left and for shared values.

    "rows" and "size": what the rows add up to, and what is printed; "each": bits of a weight with its distance;
    "rounding": half a unit of the printed share of weights left.
    """
    column = {c.field: i for i, c in enumerate(survey.columns)}

    def number(row: Row, field: str) -> float:
        return figure(row.cells[column[field]].split(" ")[0])[0]

    bits: dict[str, dict[str, float]] = {}
    for row in (row for row in survey.rows if row.label != TOTAL):
        share, half = (x / 100 for x in figure(row.cells[column["density"]]))
        dense, each = number(row, "weights"), number(row, f"weight_bits_{stage}") + number(row, f"index_bits_{stage}")
        bits[row.label] = {
            "dense": FULL * dense, "kept": dense * share, "left": dense * share * each,
            "rounding": dense * half * each, "shared": FULL * 2 ** number(row, "weight_bits_pq"),
            "rows": FULL * dense * number(row, f"rate_{stage}") / 100,
        }  # fmt: skip
    bits[TOTAL] = {key: sum(of_row[key] for of_row in bits.values()) for key in next(iter(bits.values()))}
    sizes = {row.label: number(row, f"rate_{stage}") for row in survey.rows}
    return {
        label: {key: 100 * value / own["dense"] for key, value in own.items()}
        | {"size": sizes[label], "each": own["left"] / own["kept"]}
        for label, own in bits.items()
    }
