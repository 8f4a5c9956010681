"""The printed comparison tables: what is printed, what of ours stands beside it, and what contradicts what."""

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracle import mutant
from test_records import a_record, measured

from baselines import base
from methods.base import Method, Reported
from methods.controls.dense import Dense
from methods.controls.scratch import Scratch
from methods.filter_pruning.hrank import HRank
from methods.filter_pruning.l1_filter import L1Filter
from methods.weight_sharing.deep_compression import DeepCompression
from repro import layer_tables, leaderboard, registry, structures, surveys
from repro.measure import layers
from repro.record import code_version, plain, stored_bits
from repro.survey_tables import NETS, SURVEYS, VERIFIED, Column, Survey, _columns
from repro.verdict import settings

BY_SLUG = {survey.slug: survey for survey in SURVEYS}
NET = "vgg16_cifar10"
HRANK = "vgg16_cifar10_hrank"
BASELINES = {name: base.load(name) for name in (NET, "resnet56_cifar10", "resnet56_cifar100", "resnet50_imagenet")}
METHODS = {"hrank": HRank, "dense": Dense}
CODE = {}  # the folder of a few lines that stand for the methods: staleness is found quickly
COUNTED = {"params": 2_640_000, "macs": 108_600_000, "dense_params": 14_980_000, "dense_macs": 313_730_000}


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    root = tmp_path_factory.mktemp("code")
    for name in ("methods/controls/dense.py", "methods/filter_pruning/hrank.py", "baselines/task.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("VERSION = 1\n\n\ndef compress():\n    pass\n")
    CODE["methods"] = root / "methods"


def a_run(top1=92.25, recipe=f"{NET}/HRank-1", **changes):
    """A record of HRank with the settings of ``recipe`` (None: others), made by the code in ``CODE``."""
    chosen = settings(HRank, recipe) if recipe else settings(HRank, None) | {"ratio": 0.123}
    fields = {
        "method": "hrank",
        "hyperparameters": plain(chosen),
        "compressed": measured(top1, params=500, macs=40_000, top5=99.0),
        "counted": {"hrank_out_only": COUNTED},
        "provenance": a_record().provenance | code_version("hrank", CODE["methods"]),
    }
    return a_record(**fields | changes)


def tables(records=(), methods=METHODS, chosen=SURVEYS, baselines=BASELINES):
    records = list(records)
    boards = leaderboard.build(records, methods, baselines, CODE["methods"])
    return surveys.build(records, boards, methods, baselines, chosen)


def line(records, label, slug=HRANK, **more):
    """A line of one table, by the titles of its columns."""
    (table,) = tables(records, chosen=[BY_SLUG[slug]], **more)
    (found,) = [line for line in table.lines if line[0] == label]
    return dict(zip(table.header, found, strict=True))


@pytest.fixture(scope="module")
def nothing_run():
    """All tables without a record, with all methods and baselines that there are."""
    classes = {name: entry.cls for name, entry in registry.entries().items() if entry.cls}
    return tables([], classes, baselines={name: base.load(name) for name in base.names()})


# --------------------------------------------------------------------------------------------------- what is printed

PRINTED = {  # read again from the papers' tables: rows, and some rows as printed
    "vgg16_cifar10_combination": (6, "3σ threshold, whole net|99.05|-6.11", "Entropy-based|43.00|-2.06"),
    HRANK: (11, "HRank-2|92.34|-|2.64M|82.1|108.61M|65.3", "SSS|93.02|-|3.93M|73.8|183.13M|41.6"),
    "vgg16_cifar10_abcpruner": (1, "ABCPruner-80%|93.02|93.08|1.67M|88.68|82.81M|73.68|1639/4224|61.20"),
    "vgg16_cifar10_l1": (3, "VGG-16-pruned-A|6.60|5.4e6|64.0|2.06e8|34.2", "VGG-16|6.75|1.5e7|-|3.13e8|-"),
    "vgg16_cifar10_others": (22, "SWP|-|-|+0.40|-|92.66|-|71.16", "Ghost-VGG-16, s=4|-|93.0|-|4.0M|-|80M|-"),
    "vgg19_cifar10_slimming": (2, "VGG-19, 70 % pruned|6.20|2.30M|88.5|3.91e8 2/MAC|51.0"),
    "resnet56_cifar100_combination": (6, "APoZ|80|58.89|-", "Threshold μ+3σ on the FC|-|-|-35.61"),
    "resnet56_cifar100_mfmi": (4, "Network Slimming (run by MFMI)|70.51|0.60M|62.82M"),
    "resnet56_cifar10_hrank": (13, "GAL-0.8|91.58|0.29M|65.9|49.99M|60.2", "HRank-3|90.72|0.27M|68.1|32.52M|74.1"),
    "resnet56_cifar10_abcpruner": (1, "ABCPruner-70%|93.26|93.23|0.39M|54.20|58.54M|54.13|1482/2032|27.07"),
    "resnet56_cifar10_others": (24, "L1 pruned-A|-|93.10|-|7.7e5|9.4|1.12e8|10.4", "SWP|-|-|-0.12|-|77.7|-|75.6"),
    "resnet50_imagenet_combination": (1, "Combination pruning|76.02|92.94|74.16|91.96|-1.86|80.9"),
    "resnet50_imagenet_hrank": (14, "ThiNet-50|68.42|88.30|1.10B|8.66M", "SSS-26|71.82|90.79|2.33B|15.60M"),
    "resnet50_imagenet_abcpruner": (6, "ABCPruner-30%|70.289|89.631|944.85M|7.35M|20576"),
    "resnet50_imagenet_others": (32, "ThiNet-70|-|-|72.04|90.67|4.88B 2/MAC|-|16.94M|-",
                                 "DCP 30 %|76.01|92.93|76.40|93.07|-|-|-|-"),
    "resnet50_imagenet_scratch": (8, "ThiNet-70, Scratch-B|75.14", "Channel pruning 2x, Scratch-E|71.26"),
    "distillation_cifar100_same": (15, "FSP|72.91|n/a|69.95|70.11|71.89|72.62|70.23",
                                   "KD|74.92|73.54|70.66|70.67|73.08|73.33|72.98"),
    "distillation_cifar100_other": (14, "AT|59.40|58.58|71.84|71.73|72.73|73.32"),
    "low_bit_cifar10": (21, "TWN|VGG-7|2/32|-|92.56", "BinaryConnect, stochastic|BNN ConvNet|1/32|-|91.73"),
    "low_bit_imagenet_alexnet": (6, "XNOR-Net|1/1|44.2|69.2", "BNN (run by XNOR-Net's authors)|1/1|27.9|50.42"),
    "low_bit_imagenet_resnet18": (37, "TWN|2/32|65.4|86.76|61.8|84.2", "BNAS-H (searched)|1/1|-|-|63.51|83.91"),
    "deep_compression_lenet300": (4, "ip1|235K|8|6|4.4|5|3.7|3.1|2.32",
                                  "total|266K|8 (12x)|6|5.1|5|3.7|3.1 (32x)|2.49 (40x)"),
    "deep_compression_lenet5": (5, "conv1|0.5K|66|8|7.2|5|1.5|78.5|67.45", "ip2|5K|19|5|5.2|5|3.7|6.9|6.13"),
    "compact_imagenet": (60, "GhostNet 1.0x|73.9|91.4|5.2M|141M", "MobileNetV1 1.0 @160|67.2|-|4.2M|290M"),
}  # fmt: skip


def test_every_table_has_its_rows_as_an_independent_reading_has_them():
    assert {slug: (len(survey.rows),) for slug, survey in BY_SLUG.items()} == {k: v[:1] for k, v in PRINTED.items()}
    for slug, (_, *rows) in PRINTED.items():
        known = {"|".join((row.label, *row.cells)) for row in BY_SLUG[slug].rows}
        assert set(rows) <= known, slug


def test_every_row_is_whole():
    built = {row.name for row in structures.STRUCTURES}
    for survey in SURVEYS:
        assert survey.question.endswith(("?", ".", ")")) and set(survey.nets) <= set(base.names())
        assert len({row.label for row in survey.rows}) == len(survey.rows)
        assert set(survey.notes) <= {"", *(row.label for row in survey.rows)}
        assert {column.net for column in survey.columns} <= {None, "", *base.names()}
        for row in survey.rows:
            assert len(row.cells) == len(survey.columns) and all(row.cells), row
            assert len(row.source) > 10 and row.verified and not set(row.verified.split("; ")) & set(VERIFIED), row
            assert re.fullmatch(r"[a-z0-9_]+(:[\w/]+)?", row.method) and row.structure in {"", *built}, row
    assert {net for nets in NETS.values() for net in nets} <= set(base.names())


def test_the_citations_are_for_readers():
    text = Path(surveys.__file__).with_name("survey_tables.py").read_text()
    assert "/work" not in text and str(Path.home()) not in text
    assert not re.search(r"seed\d+|_readme|_md\b", text)


QUOTED = {  # where a table quotes a row of another paper, and differs from that paper
    (HRANK, "L1"): {"base_top1", "macs_reduction"},
    ("vgg16_cifar10_others", "L1 (in SWP)"): {"macs_reduction"},
    ("vgg16_cifar10_others", "L1 A, fine-tuned"): {"base_top1", "top1"},
    ("resnet56_cifar10_others", "L1 A, fine-tuned"): {"base_top1", "top1"},
    ("resnet56_cifar10_others", "L1 B, fine-tuned"): {"base_top1", "top1"},
    ("resnet56_cifar10_hrank", "L1"): {"base_top1", "params_reduction"},
    ("resnet50_imagenet_hrank", "He et al. (channel pruning)"): {"base_top5"},
    ("resnet50_imagenet_hrank", "ThiNet-50"): {"base_top1", "base_top5", "macs"},
}


def linked():
    """Every claim with the reported rows of its method that it is one of."""
    for name, entry in registry.entries().items():
        for survey in SURVEYS if entry.cls and name != "dense" else ():
            for claim in (claim for row in surveys.claims(survey) for claim in row if claim.method == name):
                yield claim, surveys.reported(claim, entry.cls)


def test_what_a_method_also_reports_is_the_same_number():
    differing = {}
    for claim, rows in linked():
        names = {
            name
            for row in rows
            for name in surveys.AS_REPORTED
            if None not in (pair := (getattr(claim.printed, name), getattr(row, name)))
            and pair[0] != pytest.approx(pair[1])
        }
        if names:
            differing[claim.survey.slug, claim.row.label] = names
    assert differing == QUOTED


def test_the_rows_of_the_compared_methods_are_all_found():
    found = {(claim.method, row) for claim, rows in linked() for row in rows}
    names = "scratch hrank gal abcpruner thinet channel_pruning amc network_slimming l1_filter kd combination_pruning"
    for name in names.split():
        missing = [row.label for row in registry.method_class(name).reported if (name, row) not in found]
        assert not missing, (name, missing)


def test_one_accuracy_at_two_sizes_is_two_rows():
    rows = [Reported(NET, label, "Table 1", top1=93.4, params=params) for label, params in (("a", 5.2e6), ("b", 7.7e6))]

    class Two(Method):
        reported = tuple(rows)

    claims = [claim for (claim,) in surveys.claims(BY_SLUG["vgg16_cifar10_others"])]
    (ghost,) = [claim for claim in claims if claim.row.label == "Ghost-VGG-16, s=3"]
    assert surveys.reported(ghost, Two) == rows[:1]


# -------------------------------------------------------------------------------------------------------- what is ours


def test_records_fill_the_row_of_their_recipe_and_no_other():
    records = [a_run(top1, seed=seed) for seed, top1 in enumerate((92.0, 93.0))]
    found = line(records, "HRank-1")
    assert (found["top-1 (%) ↑"], found["top-1, ours"]) == ("93.43", "92.50 ± 0.71 (short, n=2)")
    assert (found["Δ top-1 (points) ↑"], found["Δ top-1, ours"]) == ("(-0.53)", "-1.00 ± 0.71 (short, n=2)")
    assert (found["params ↓"], found["params, ours"], found["MACs, ours"]) == ("2.51M", "2,640,000", "108,600,000")
    assert (found["params reduction, ours"], found["MACs reduction, ours"]) == ("82.4", "65.4")
    assert found["verdict"] == "reduced budget"
    assert found["structure"] == "run: params differ by +5.2 %, MACs differ by -25.4 %"
    for label in ("HRank-2", "HRank-3"):
        assert line(records, label)["top-1, ours"] == "not run yet"
    assert line([a_run(recipe=None)], "HRank-1")["top-1, ours"] == "not run yet"


def test_the_full_budget_comes_before_the_short_one_and_only_it_can_reproduce():
    records = [*(a_run(seed=seed) for seed in range(3)), a_run(93.0, budget="paper")]
    found = line(records, "HRank-1")
    assert (found["top-1, ours"], found["verdict"]) == ("93.00 (n=1)", "reproduced")
    assert line([a_run(90.0, budget="paper")], "HRank-1")["verdict"] == "not reproduced"
    assert line([a_run(budget=b) for b in ("smoke", "zero")], "HRank-1")["top-1, ours"] == "not run yet"


def test_what_cannot_stand_beside_a_printed_row_does_not():
    held = {"options": {"data": "cifar10", "holdout": True}}
    part = {"options": {"data": "cifar10[2x50]", "holdout": False}}
    for changes in (held, part, {"baseline": "resnet56_cifar10"}):
        assert line([a_run(**changes)], "HRank-1")["top-1, ours"] == "not run yet"
    told = "not comparable: it starts from run 000000000000, the printed row from the dense net"
    assert line([a_run(parent="0" * 12)], "HRank-1")["top-1, ours"] == told


def from_scratch(pruned, label):
    """Our cell of the row ``label`` where Scratch-B starts from a run of l1_filter with a recipe (None: others)."""
    net = "resnet56_cifar10"
    chosen = settings(L1Filter, pruned and net + pruned.removeprefix("-")) | ({} if pruned else {"ratio": 0.123})
    before = a_record(method="l1_filter", baseline=net, hyperparameters=plain(chosen))
    mode = plain(settings(Scratch, f"{net}/B"))
    after = a_record(method="scratch", baseline=net, hyperparameters=mode, parent=before.id, compressed=measured(91.0))
    made = {"scratch": Scratch, "l1_filter": L1Filter}
    return line([before, after], label, slug=f"{net}_others", methods=made)["top-1, ours"]


def test_a_structure_from_scratch_stands_beside_the_row_of_its_own_structure():
    for pruned, own, other in (("-", "L1 B", "L1 A"), ("/A", "L1 A", "L1 B")):
        assert from_scratch(pruned, f"{own}, Scratch-B").startswith("91.00 (short, n=1")
        assert from_scratch(pruned, f"{other}, Scratch-B") == "not run yet"
        assert from_scratch(pruned, f"{own}, Scratch-E") == "not run yet"
    found = from_scratch(None, "L1 B, Scratch-B")
    assert found.startswith("not comparable: it starts from l1_filter (ratio=0.123, budget short)")


def test_what_is_to_be_said_of_a_figure_stands_in_its_cell():
    dead = {"status": "diverged", "compressed": measured(None, params=500, macs=40_000)}
    assert line([a_run(**dead)], "HRank-1")["top-1, ours"] == "diverged"
    old = a_run(provenance=a_record().provenance)
    assert line([old], "HRank-1")["top-1, ours"] == "92.25 (short, n=1, stale)"
    shared = [a_run(seed=seed, given_weights=True) for seed in range(2)]
    assert line(shared, "HRank-1")["top-1, ours"] == "92.25 ± 0.00 (short, n=2, one dense net)"
    assert line([a_run(counted={})], "HRank-1")["MACs, ours"] == "not counted by hrank_out_only"


def test_errors_and_the_dense_net_are_compared_too():
    made = a_record().provenance | code_version("dense", CODE["methods"])
    dense = a_record(method="dense", family="controls", hyperparameters={}, compressed=measured(93.5), provenance=made)
    found = line([dense], "VGG-16", slug="vgg16_cifar10_l1")
    assert (found["top-1 error (%) ↓"], found["top-1 error, ours"]) == ("6.75", "6.50 (short, n=1)")
    assert line([dense], "VGG-16")["top-1, ours"] == "93.50 (short, n=1)"


def test_a_column_of_another_net_has_cells_of_its_own():
    @dataclass
    class Student(Method):
        reported = (Reported("resnet56_cifar100", "KD", "Table 1", top1=70.66, base_top1=72.34),)
        compress = None

    Student.__abstractmethods__ = frozenset()
    kd = a_record(method="kd", baseline="resnet56_cifar100", hyperparameters={}, options={"data": "cifar100"})
    found = line([kd], "KD", slug="distillation_cifar100_same", methods={"kd": Student})
    ours = {title: cell for title, cell in found.items() if title.endswith(", ours")}
    assert ours.pop("r56 → r20, ours").startswith("92.25 (short, n=1")
    assert set(ours.values()) == {"net not in the suite"} and len(ours) == 6


def test_why_there_is_nothing_of_ours_is_said():
    assert line([], "SSS")["top-1, ours"] == "not in the suite yet"
    assert line([], "HRank-1")["top-1, ours"] == "not run yet"
    assert line([], "HRank (in SWP)", slug="vgg16_cifar10_others")["Δ top-1, ours"] == "no recipe for this row yet"
    assert line([], "XNOR-Net", slug="low_bit_imagenet_alexnet")["top-1, ours"] == "net not in the suite"


def test_no_cell_is_empty_and_none_says_zero(nothing_run):
    for table in nothing_run:
        for row in table.lines:
            assert len(row) == len(table.header) and all(cell.strip() for cell in row)
            ours = [cell for title, cell in zip(table.header, row, strict=True) if title.endswith(", ours")]
            assert ours and not any(re.match(r"[-+\d]", cell) for cell in ours)


def test_printed_sizes_stand_against_the_structure(nothing_run):
    nets = [table for table in nothing_run if not table.survey.layers]
    found = {(t.survey.slug, row[0]): row[t.header.index("structure")] for t in nets for row in t.lines}
    assert found["resnet56_cifar10_hrank", "HRank-2"] == "recount: params exact, MACs exact"
    assert found[HRANK, "HRank-2"] == "recount: params differ by +82.1 %, MACs differ by +7.4 %"
    assert found["resnet50_imagenet_others", "ThiNet-50"] == "recount: params exact, MACs exact"
    assert found["compact_imagenet", "Xception @299"].startswith("recount: params exact, MACs exact")
    assert found["resnet56_cifar10_hrank", "L1"] == "recount: params exact (weights alone), MACs differ by +0.008 %"
    assert found["compact_imagenet", "ShuffleNetV1 1x g=3"].startswith("recount: MACs 137,")  # printed: "~140M"
    waiting = line([], "SENet-154 (Caffe release)", slug="compact_imagenet")
    assert waiting["structure"] == "recount: params exact (not built here yet)"


def test_what_the_released_rates_give_is_told_as_it_was_recounted(nothing_run):
    (table,) = (table for table in nothing_run if table.survey.slug == HRANK)
    sizes = {row.name: (row.params / 1e6, row.macs / 1e6) for row in structures.STRUCTURES}
    (note,) = (note for note in table.footnotes if note.startswith("The released rates"))
    for name in ("hrank_vgg16_by_rule", "hrank_vgg16"):
        assert all(f"{size:.2f}M" in note for size in sizes[name])


def test_what_is_said_to_be_recounted_has_its_recount_beside_it(nothing_run):
    told = [
        (table.survey.slug, row[0], row[table.header.index("structure")])
        for table in nothing_run
        for row in table.lines
        if "recounted" in row[-1]
    ]
    assert len(told) > 50 and [one for one in told if not one[2].startswith("recount: ")] == []


# -------------------------------------------------------------------------------------------------- what contradicts


def a_survey(rows, columns="top1 delta params params_reduction macs macs_reduction", nets=(NET,)):
    return Survey("planted", "Planted", "Which?", nets, _columns(columns), rows)


def planted(rows, module=surveys, **more):
    """The columns that contradict the rest of their row, for every row."""
    survey = a_survey(rows, **more)
    return [set(module.contradictions(survey, row)) for row in survey.rows]


DENSE = "@ A table\nnet | 93.96 | - | 14.98M | - | 313.73M | - | x | dense\n"


def test_a_planted_contradiction_is_flagged_and_rounding_is_not():
    rows = DENSE + "a | 93.40 | -0.56 | 5.40M | 64.0 | 206.00M | 34.3 | x | a\n"
    rows += "b | 93.40 | +0.56 | 5.40M | 46.0 | 206.00M | 43.3 | x | b\n"
    rows += "c | 93.4 | -0.6 | 5M | 69.9 | 2.1e8 | 35 | x | c\n"  # 67 +- 4 % and 33 +- 2 % by the digits that are there
    assert planted(rows) == [set(), set(), {"delta", "params_reduction", "macs_reduction"}, set()]
    assert planted("@ A table\na | - | -9 | 5.40M | 64.0 | - | - | x | a\n") == [set()]
    two = "@ A table\nnet | 7.97e8 2/MAC | - | x | dense\na | 3.91e8 2/MAC | {} | x | a\n"
    found = [planted(two.format(share), columns="macs macs_reduction")[1] for share in ("51.0", "15.0")]
    assert found == [set(), {"macs_reduction"}]
    channels = "@ A table\na | 1639/4224 | {} | x | a\n"
    shares = [planted(channels.format(share), columns="channels channels_reduction") for share in ("61.20", "60.12")]
    assert shares == [[set()], [{"channels_reduction"}]]


@pytest.mark.parametrize(
    ("line_of_code", "mutated"),
    [
        ("high = 100 * (1 - (new[0] - new[1]) / (old[0] + old[1]))", "high = 100 * (1 - new[0] / old[0])"),
        ("low - SLACK <= share[0] + share[1] and share", "share"),
    ],
)
def test_the_check_of_rounding_catches_mutants(line_of_code, mutated):
    changed = mutant(surveys, line_of_code, mutated)
    rows = DENSE + "a | - | - | 5M | 69.9 | - | - | x | a\nb | - | - | 1.78M | 80.1 | - | - | x | b\n"
    assert planted(rows) == [set(), set(), {"params_reduction"}]
    assert planted(rows, changed) != [set(), set(), {"params_reduction"}]


def test_two_accuracies_of_one_method_at_one_size_are_told():
    same = "b | 92.30 | - | 5.4e6 | - | - | - | x | m\n"
    other = same.replace("5.4e6", "5.6e6")
    for second, told in ((same, 1), (other, 0), (same.replace("92.30", "93.40"), 0), (same.replace("| m", "| n"), 0)):
        survey = a_survey("@ A table\na | 93.40 | - | 5.40M | - | - | - | x | m\n@ Another\n" + second)
        (table,) = tables(chosen=[survey])
        assert len(table.footnotes) == told and len(table.notes) == 2 * told
    assert "93.4 (a; A table), 92.3 (b; Another)" in tables(chosen=[a_survey(
        "@ A table\na | 93.40 | - | 5.40M | - | - | - | x | m\n@ Another\n" + same)])[0].footnotes[0]  # fmt: skip


def test_the_known_contradictions_of_the_papers_have_footnotes(nothing_run):
    by_slug = {table.survey.slug: table for table in nothing_run}

    def of(slug, label, title):
        table = by_slug[slug]
        place = [row[0] for row in table.lines].index(label), table.header.index(title)
        return " ".join(table.footnotes[number - 1] for number in table.notes.get(place, []))

    share = "params reduction (%) ↑"
    assert "prints 92.0 % fewer params, but its 1.78M of 14.98M are 88.1 % fewer" in of(HRANK, "HRank-3", share)
    assert "82.4 % fewer" in of(HRANK, "HRank-2", share) and not of(HRANK, "L1", share)
    assert "ThiNet-30 of the ThiNet paper" in of("resnet50_imagenet_hrank", "ThiNet-50", "method")
    assert "ThiNet-30; ThiNet (ICCV 2017), Table 3" in of("resnet50_imagenet_hrank", "ThiNet-50", "method")
    for slug, label in ((HRANK, "GAL-0.05"), (HRANK, "GAL-0.1"), ("resnet56_cifar10_hrank", "GAL-0.6")):
        assert "not the fine-tuned one" in of(slug, f"{label}, not fine-tuned", "method")
        assert f"({label}, not fine-tuned;" in of(slug, label, "method")
    assert "71.89" in of("resnet50_imagenet_hrank", "GDP-0.6", "method")
    assert not any(table.notes for table in nothing_run if table.survey.slug == "resnet56_cifar10_abcpruner")


# ------------------------------------------------------------------------------------------------- layer by layer

DEEP = "lenet300_mnist"
LEFT = {  # weights; outputs; left; filler zeros; shared values; bits of a weight and of a distance as Huffman words
    "ip1": (235_200, 300, 18_816, 3_000, 50, 4.5, 3.75),
    "ip2": (30_000, 100, 2_700, 300, 45, 4.75, 4.25),
    "ip3": (1_000, 10, 260, 0, 40, 5.0, 3.0),
}
HEADER = 1_600  # bits


def parts(name, huffman):
    """Where the bits of a layer are: 6 and 5 a weight and a distance, then Huffman words with a table of 300."""
    _, _, left, fillers, shared, value, distance = LEFT[name]
    entries = left + fillers
    found = {"entries": entries, "codebook": [32 * shared] * 2, "tables": [0, 300 * huffman], "padding": [4, 4]}
    for part, before, after in (("values", 6, value), ("positions", 5, distance)):
        found[part] = [before * entries, int(after * entries) if huffman else before * entries]
    return found


def stored(variant, seed=0, told=True, **changes):
    """A run of Deep Compression on LeNet-300-100, whose record says where the bits of its file are if ``told``."""
    layers = [
        {"name": name, "dense": [out, 1], "compressed": [out, 1], "params": [every + out] * 2, "bit_ops": [1, 1]}
        | {"nonzero": [every + out, left + out], "macs": [every] * 2}
        for name, (every, out, left, *_) in LEFT.items()
    ]
    tensors = {f"{name}.weight": parts(name, variant == "") for name in LEFT}
    file = {"header": HEADER, "plain": 32 * 410, "tensors": tensors}
    file["header"] += -stored_bits(file) % 8
    compressed = measured(97.0, bytes=stored_bits(file) // 8)
    nets = {"dense": measured(98.0, bytes=1_066_440), "compressed": compressed, "stored": file if told else None}
    made = a_record().provenance | code_version("deep_compression", registry.ROOT)
    fields = {"method": "deep_compression", "baseline": DEEP, "layers": layers, "seed": seed, "provenance": made}
    chosen = {"hyperparameters": plain(settings(DeepCompression, DEEP + variant)), "options": {"data": "mnist"}}
    return a_record(**fields | chosen | nets | changes)


def stages(**changes):
    """The two stages of one seed."""
    return [stored(variant, **changes) for variant in ("/PQ", "")]


def layered(records, label, classes=None):
    """(a line of the table of LeNet-300-100 by its titles, its footnotes)."""
    known = {"deep_compression": DeepCompression} if classes is None else classes
    boards = leaderboard.build(records, known, {}, registry.ROOT)
    (table,) = surveys.build(records, boards, known, {DEEP: base.load(DEEP)}, [BY_SLUG["deep_compression_lenet300"]])
    (at,) = [i for i, line in enumerate(table.lines) if line[0] == label]
    return dict(zip(table.header, table.lines[at], strict=True)), [table.footnotes[i - 1] for i in table.notes[at, 0]]


def test_layers_stand_beside_the_printed_ones():
    found, _ = layered(stages(), "ip2")
    assert (found["weights left (P) (%) ↓"], found["weights left (P), ours"]) == ("9", "9.0")
    assert (found["weight bits (P+Q), ours"], found["index bits (P+Q), ours"]) == ("6", "5")
    assert (found["weight bits (P+Q+H), ours"], found["index bits (P+Q+H), ours"]) == ("4.8", "4.2")
    assert found["size (P+Q), ours"] == f"{100 * (3_000 * 11 + 45 * 32 + 4) / (32 * 30_000):.2f}"
    assert found["size (P+Q+H), ours"] == f"{100 * (3_000 * 9 + 45 * 32 + 300 + 4) / (32 * 30_000):.2f}"
    found, _ = layered(stages(), "total")
    assert found["weights, ours"] == "266,200" and found["weights left (P), ours"] == "8.2 (12.2x)"
    bits = 8 * stored("/PQ").compressed.bytes
    assert found["size (P+Q), ours"] == f"{100 * bits / 8 / 1_066_440:.2f} ({8 * 1_066_440 / bits:.1f}x; short, n=1)"
    entries, words = 21_816 + 3_000 + 260, 21_816 * 4.5 + 3_000 * 4.75 + 260 * 5
    assert (found["weight bits (P+Q), ours"], found["weight bits (P+Q+H), ours"]) == ("6", f"{words / entries:.1f}")


def test_cells_are_means_over_the_seeds():
    other = stages(seed=1)
    for record in other:
        record.stored["tensors"]["ip3.weight"]["positions"][1] += 8 * 26
        record.compressed.bytes += 26
    found, (told, _) = layered([*stages(), *other], "ip3")
    assert found["index bits (P+Q), ours"] == "5.4" and "11.40 bits each" in told
    assert "n=2" in layered([*stages(), *other], "total")[0]["size (P+Q), ours"]


def test_records_that_hold_no_parts_give_the_sizes_of_the_whole_files():
    for records in (stages(told=False), [stored("/PQ"), stored("", told=False)]):
        found, notes = layered(records, "ip1")
        assert (found["weights left (P), ours"], found["size (P+Q+H), ours"]) == ("8.0", "not in the records")
        assert found["index bits (P+Q+H), ours"] == "not in the records" and notes == []
        told = layered(stages(), "total")[0]["size (P+Q+H), ours"]
        assert layered(records, "total")[0]["size (P+Q+H), ours"] == told


def taken_apart(module):
    """Whether the differences of every row add up to its own, and are those that its parts and printed cells give."""
    (survey,) = [survey for survey in SURVEYS if survey.slug == "deep_compression_lenet300"]
    by_stage = {"pq": [stored("/PQ")], "pqh": [stored("")]}
    told = module.explained(survey, by_stage)
    for label, sentences in told.items():
        for text in sentences:
            whole, *points = (float(point) for point in re.findall(r" ([+-]\d+\.\d\d)(?= points:|;| \()", text))
            if len(points) != (5 if label == "total" else 3) or abs(whole - sum(points)) > 0.031:
                return False
    ip3, total = told["ip3"][1], told["total"][1]
    rest = (
        12.70 - 26 * 7.5 / 32 - 100 * 64 * 32 / (32 * 1_000)
    )  # of the printed size; 4.3 + 3.2 bits, 2^6 shared values
    share = 100 / (32 * 1_000)
    outside = 100 * (32 * 410 + stored("").stored["header"]) / (8 * 1_066_440)
    return (
        f"printed 12.70 % (7.9x), {share * (260 * 8 + 40 * 32 + 304) - 12.7:+.2f} points" in ip3
        and f"weights left {260 * share * 8 - 26 * 7.5 / 32:+.2f} (8.00 bits each" in ip3
        and f"shared values {share * 32 * (40 - 64):+.2f};" in ip3
        and f"(filler zeros 0.00, 0.0 for 100 weights, Huffman tables and unused bits {304 * share:.2f}; " in ip3
        and f"the printed size leaves {rest:.2f})" in ip3
        and f"(filler zeros {100 * 300 * 9 / (32 * 30_000):.2f}, {100 * 300 / 2_700:.1f} for 100 weights"
        in told["ip2"][1]
        and f"biases and header {outside:+.2f}" in total
        and f"{100 * 3_300 / 21_776:.1f} for 100 weights" in total
        and "printed rows over their total -0.05 (they add up to 2.44 % (41.0x))" in total
        and "rounded by ±0.13)" in total
    )


def test_the_difference_of_the_sizes_is_taken_apart_and_the_parts_add_up():
    assert taken_apart(layer_tables)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('2 ** number(row, "weight_bits_pq")', '2 ** number(row, f"weight_bits_{stage}")'),
        ("inside = sum(found[part] for part in PARTS)", "inside = found['values'] + found['positions']"),
        ('share["left"] * each', 'share["entries"] * each'),
        ('theirs["rows"] - theirs["left"] - theirs["shared"]', 'theirs["size"] - theirs["left"] - theirs["shared"]'),
        ('"rounding": dense * half * each', '"rounding": dense * share * each'),
        ('share["tables"] + share["padding"]', 'share["tables"]'),
    ],
    ids=["words of shared values", "outside", "fillers are weights", "other rows", "rounding", "unused bits"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not taken_apart(mutant(layer_tables, old, new))


@pytest.mark.parametrize(
    "records",
    [
        [],
        stages()[:1],
        [stages()[0], stages(seed=1)[1]],
        stages(options={"data": "mnist", "holdout": True}),
        stages(parent="0" * 12),
        stages(provenance=a_record().provenance),
    ],
    ids=["none", "a stage less", "other seeds", "held out", "after another", "stale"],
)
def test_layers_need_all_stages_of_a_seed(records):
    found, told = layered(records, "ip1")
    assert {cell for title, cell in found.items() if title.endswith(", ours")} == {"not run yet"} and told == []
    assert set(layered(stages(), "ip1", {})[0].values()) >= {"not run yet"}


def test_the_layers_of_the_nets_have_a_bias_for_every_output():
    for survey in (survey for survey in SURVEYS if survey.layers):
        found = measure_layers(survey.layers)
        net = base.load(survey.layers).net(10)
        assert [*(layer["name"] for layer in found), "total"] == [row.label for row in survey.rows]
        for layer in found:
            assert layer_tables.weights(layer)[0] == net.get_submodule(layer["name"]).weight.numel()


def measure_layers(name):
    """The layers of an untrained net, as a record has them."""
    net = base.load(name).net(10).eval()
    return layers(net, net, torch.zeros(1, 1, 28, 28))


# ------------------------------------------------------------------------------------------------------ the files


def of_markdown(text, title):
    """The table under a heading, as pandas reads it."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    table = io.StringIO("\n".join(line for line in part.splitlines() if line[:1] == "|"))
    frame = pd.read_csv(table, sep=r"\s*\|\s*", engine="python", dtype=str, keep_default_na=False)
    return frame.iloc[1:, 1:-1].reset_index(drop=True)


def of_latex(text):
    """The first tabular, without the commands that stand for characters."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
    for command, character in {value: key for key, value in surveys.LATEX.items() if key != "–"}.items():
        body = body.replace(command, character)
    body = body.replace(r"\textasciitilde{}", "~")
    body = re.sub(r"\\([%&$#_{}])", lambda found: "\0" if found[1] == "&" else found[1], body)
    lines = [[cell.strip().replace("\0", "&") for cell in row.split("&")] for row in body.split(r"\\") if row.strip()]
    return pd.DataFrame(lines[1:], columns=lines[0]).replace("--", "–")


def test_all_three_files_say_the_same_numbers():
    made = tables([a_run(top1, seed=seed) for seed, top1 in enumerate((92.0, 93.0))])
    files = surveys.files(made)
    assert set(files) == {"surveys.md", *(f"surveys/{slug}.{kind}" for slug in BY_SLUG for kind in ("csv", "tex"))}
    for table in made:
        slug = table.survey.slug
        frame = pd.read_csv(io.StringIO(files[f"surveys/{slug}.csv"]), dtype=str, keep_default_na=False)
        assert list(frame.columns) == [*table.header, "notes"] and (frame != "").all(axis=None)
        for i, column in enumerate(table.survey.columns):
            for shown, row in zip(frame[column.title], table.survey.rows, strict=True):
                assert shown == row.cells[i] or (row.cells[i] == "-" and re.fullmatch(r"–|\(.+\)", shown))
        for other in (of_markdown(files["surveys.md"], table.survey.title), of_latex(files[f"surveys/{slug}.tex"])):
            assert list(other.columns) == table.header
            assert other.replace(r" \[\d+\]", "", regex=True).equals(frame[table.header])
        assert files[f"surveys/{slug}.tex"].isascii()
    assert "92.50 ± 0.71 (short, n=2)" in files["surveys.md"]


def test_footnotes_are_in_every_file():
    (table,) = tables(chosen=[BY_SLUG[HRANK]])
    files = surveys.files([table])
    notes = pd.read_csv(io.StringIO(files[f"surveys/{HRANK}.csv"])).set_index("method")["notes"]
    assert "are 88.1 % fewer" in notes["HRank-3"] and notes["VGG-16"] == "–"
    starts = [line.strip()[:1] for line in files[f"surveys/{HRANK}.tex"].splitlines()]
    assert "[" not in starts  # LaTeX reads it as the argument of the rule or the line break before it
    assert "| 92.0 [" in files["surveys.md"] and r"are 88.1 \% fewer" in files[f"surveys/{HRANK}.tex"]


def test_the_same_records_give_the_same_bytes_in_any_order():
    records = [a_run(top1, seed=seed) for seed, top1 in enumerate((92.0, 93.0, 91.0))]
    chosen = [BY_SLUG[HRANK]]
    assert surveys.files(tables(records, chosen=chosen)) == surveys.files(tables(records[::-1], chosen=chosen))


def test_columns_say_their_unit_and_direction():
    assert Column("error", "top-1 error", "%", False).title == "top-1 error (%) ↓"
    assert replace(BY_SLUG[HRANK].columns[0], higher=None).title == "top-1 (%)"
