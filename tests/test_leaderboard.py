"""The leaderboard: what is put together, what is kept apart, and what it refuses to claim."""

import csv
import functools
import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from oracle import mutant
from scipy import stats
from test_records import CELL, LATENCY, a_record, measured

import methods
from baselines import base
from methods.base import Method, Reported
from repro import claims, figures, leaderboard, registry, surveys, verdict
from repro.boards import search_of
from repro.record import canonical, load_all

NET = "vgg16_cifar10"
PUBLISHED = SimpleNamespace(published={"top1": 93.96}, source="Table 0")
LARGE = SimpleNamespace(published={"top1": 76.15, "top5": 92.87}, source="Table 6")
BASELINES = {NET: PUBLISHED, "resnet50_imagenette": LARGE, "resnet50_imagenet": LARGE}


@dataclass
class Fake(Method):
    """A method with a paper.

    Deviations:
    - the first one,
      told at length
    - the second one

    - not a deviation
    """

    ratio: float = 0.5
    reported = (
        Reported(NET, "Fake-A", "Table 1", top1=93.40, base_top1=93.96, params=5.0e2, macs=40_000),
        Reported(
            NET,
            "Fake-B",
            "Table 1",
            f"{NET}/b",
            92.0,
            99.1,
            93.96,
            macs=90_000,
            macs_reduction=55.0,
            rule="two_per_mac",
        ),
        Reported("resnet56_cifar10", "Fake-C", "Table 2", top1=90.0),
    )
    recipes = {f"{NET}/b": {"ratio": 0.25}, "resnet56_cifar10": {"ratio": 0.1}}

    def compress(self, model, task):
        return model


@dataclass
class Control(Method):
    """A control without a paper."""

    ratio: float = 0.5

    def compress(self, model, task):
        return model


METHODS = {"fake": Fake, "dense": Control, "random_filter": Control, "other": Control}


def a_run(top1=92.25, **changes):
    """A record whose compressed net has ``top1``; controls are put into their family."""
    control = changes.get("method", "fake") in ("dense", "random_filter")
    net = measured(top1, params=500, macs=40_000, bytes=2_050)
    return a_record(
        **{"compressed": net, "family": "controls" if control else "filter_pruning", "details": {}} | changes
    )


def dense(top1=93.5, **changes):
    fields = {"method": "dense", "dense": measured(top1, bytes=4_100), "compressed": measured(top1, bytes=4_100)}
    return a_run(**{**fields, "after_compression": None, "hyperparameters": {}, **changes})


def seeds(*top1, **changes):
    return [a_run(value, seed=seed, **changes) for seed, value in enumerate(top1)]


def built(records):
    return leaderboard.build(records, METHODS, BASELINES)


def only(records):
    """The one board that the records make."""
    (board,) = built(records).boards
    return board


def rows(records, **wanted):
    return [row for row in only(records).rows if all(row[key] == value for key, value in wanted.items())]


def table(records):
    """The Markdown table of the one board that the records make, as a list of dicts."""
    lines = [line for line in leaderboard.markdown(built(records)).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


# ---------------------------------------------------------------------------------- what stands together and apart


def test_one_board_per_baseline_data_and_budget_and_no_smoke():
    records = [a_run(budget=budget) for budget in ("smoke", "zero", "short", "paper")]
    records += [
        a_run(baseline="resnet56_cifar10"),
        a_run(options={"data": "imagenet[100x50]"}, baseline="resnet50_imagenet"),
    ]
    titles = [board.title for board in built(records).boards]
    assert titles == [
        "resnet50_imagenet (imagenet[100x50]), budget short",
        "resnet56_cifar10, budget short",
        f"{NET}, budget zero - zero training: top-1 right after compression, no fine-tuning",
        f"{NET}, budget short",
        f"{NET}, budget paper",
    ]


def test_a_subset_is_never_beside_the_full_set():
    whole, part = (a_run(baseline="resnet50_imagenet", options={"data": d}) for d in ("imagenet", "imagenet[100x50]"))
    assert len(built([whole, part]).boards) == 2


def test_dense_comes_first_then_controls_then_families():
    records = [a_run(method="other", family="distillation"), a_run(), a_run(method="random_filter"), dense()]
    records.append(a_run(method="all_random", family="controls"))
    order = [row["method"] for row in only(records).rows]
    assert order == ["dense", "all_random", "random_filter", "other", "fake"]
    assert order == [row["method"] for row in only(records[::-1]).rows]


def test_a_row_is_one_setting_over_its_seeds_with_the_sample_std():
    records = [*seeds(92.0, 93.0, 94.0), *seeds(90.0, hyperparameters={"ratio": 0.9})]
    row, other = rows(records)
    assert (row["n"], row["top1"], row["top1_std"], row["delta"]) == (3, 93.0, 1.0, -0.5)
    assert (other["n"], other["top1"], other["top1_std"], other["setting"]) == (1, 90.0, None, "ratio=0.9")
    assert len(row["ids"].split()) == 3
    cells = table(records)
    assert [line["top-1"] for line in cells[1:]] == ["93.00 ± 1.00", "90.00"]


def test_the_delta_is_against_the_dense_net_of_the_same_run():
    records = [a_run(92.0, seed=0, dense=measured(94.0)), a_run(91.0, seed=1, dense=measured(92.0))]
    (row,) = rows(records)
    assert (row["delta"], row["delta_std"], row["dense"]) == (-1.5, round(0.5**0.5, 4), 93.0)


def test_given_weights_are_said_beside_n_and_never_averaged_with_trained_ones():
    shared = seeds(92.0, 92.5, given_weights=True)
    records = [*shared, *seeds(90.0)]
    assert sorted(line["n"] for line in table(records)[1:]) == ["1", "2; dense net shared by all seeds"]
    assert len({line["setting"] for line in table(records)[1:]}) == 2


def test_options_that_differ_are_rows_apart_and_named():
    held = {"data": "cifar10", "holdout": True}
    assert {row["setting"] for row in rows([a_run(), a_run(options=held)])} == {"defaults", "holdout=True"}


def test_a_chain_groups_over_the_seeds_of_its_parents():
    parents = seeds(92.0, 93.0)
    children = [a_run(91.0 + p.seed, method="other", seed=p.seed, parent=p.id) for p in parents]
    (row,) = rows([*parents, *children], method="other")
    assert (row["n"], row["top1"], row["setting"]) == (2, 91.5, "after fake")


def test_training_records_stand_in_for_the_dense_row_until_it_is_run():
    trained = dense(kind="train", starts_from="scratch")
    assert [row["ids"] for row in rows([trained, a_run()], method="dense")] == [trained.id]
    assert [row["ids"] for row in rows([trained, dense(), a_run()], method="dense")] == [dense().id]


# ------------------------------------------------------------------------------------------------------ the cells


def test_reductions_are_physical_and_the_size_ratio_is_of_measured_bytes():
    old = measured(93.5, params=1000, macs=100_000, bytes=4_000)
    new = replace(measured(92.0, params=400, macs=25_000, bytes=500), nonzero=100, effective_macs=10_000)
    (row,) = rows([a_run(dense=old, compressed=new)])
    assert (row["params_reduction"], row["macs_reduction"], row["compression_ratio"]) == (0.6, 0.75, 8.0)
    assert (row["sparsity"], row["theoretical_speedup"], row["speedup_batch1"]) == (0.75, 10.0, None)
    line = table([a_run(dense=old, compressed=new)])[1]
    assert (line["params reduction"], line["MACs reduction"], line["compression"]) == ("60.0 %", "75.0 %", "8.0x")
    grown = table([a_run(dense=old, compressed=replace(new, params=1_000, macs=100_001))])[1]
    assert grown["MACs reduction"] == "0.0 %"  # no sign on what rounds to zero
    (row,) = rows([a_run(dense=replace(old, bytes=None), compressed=new)])
    assert row["compression_ratio"] is None
    assert "compression" not in table([a_run(dense=replace(old, bytes=None), compressed=new)])[1]


def test_after_compression_stands_beside_after_retraining_except_without_training():
    assert table([a_run()])[1]["after compression, top-1"] == "41.50"
    several = [a_run(after_compression=None), a_run(method="other")]
    assert [line["after compression, top-1"] for line in table(several)[1:]] == ["–", "41.50"]
    assert not [title for title in table([a_run(budget="zero")])[1] if "after compression" in title]


def test_what_was_not_run_is_said_and_never_empty():
    line = table([a_run()])[0]
    assert (line["method"], line["top-1"], line["status"]) == ("dense", "not run yet", "not run yet")
    assert all(line.values())
    text = leaderboard.markdown(built([a_run()]))
    assert "Reported in papers for this net, not run yet at this budget: fake (Fake-B)." in text
    assert table([dense(), a_run()])[0]["top-1"] == "93.50"


def test_failures_stay_on_the_board():
    dead = {"status": "diverged", "compressed": measured(None, params=500, macs=40_000)}
    partly = [*seeds(92.0, 93.0), a_run(seed=2, **dead)]
    (row,) = rows(partly)
    assert (row["n"], row["diverged"], row["top1"]) == (2, 1, 92.5)
    assert table(partly)[1]["status"].startswith("1 of 3 diverged")
    line = table([a_run(seed=s, **dead) for s in range(2)])[1]
    assert (line["n"], line["top-1"], line["MACs reduction"]) == ("0", "diverged", "60.0 %")
    assert line["status"].startswith("diverged")


def test_stale_records_are_marked(tmp_path):
    for name in ("methods/controls", "methods/filter_pruning", "baselines"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "baselines/task.py").write_text("VERSION = 1\n")
    (tmp_path / "methods/filter_pruning/fake.py").write_text("def compress(): pass\n")
    from repro.record import code_version

    made = {**a_record().provenance, **code_version("fake", tmp_path / "methods")}
    records = [a_run(provenance=made), a_run(seed=1), a_run(seed=2)]
    (board,) = leaderboard.build(records, METHODS, BASELINES, tmp_path / "methods").boards
    assert board.rows[0]["stale"] == 2
    text = leaderboard.markdown(leaderboard.build(records, METHODS, BASELINES, tmp_path / "methods"))
    assert "| 2 of 3 stale |" in text
    text = leaderboard.markdown(leaderboard.build(records[:1], METHODS, BASELINES, tmp_path / "methods"))
    assert "| ok |" in text


def test_clamped_layers_and_deviations_are_counted():
    records = [a_run(details={"clamped": ["features.0", "features.3"]}), a_run(method="other")]
    row, other = (rows(records, method=name)[0] for name in ("fake", "other"))
    assert (row["clamped"], row["deviations"]) == (2, 2)
    assert (other["clamped"], other["deviations"]) == (0, None)
    (note,) = only(records).footnotes
    assert note == "Clamped layers of fake (defaults): features.0, features.3."
    line = next(line for line in table(records) if line["method"] == "fake")
    assert (line["clamped"], line["deviations"]) == ("2", "2") and line["paper"].endswith("[1]")


def test_both_accuracies_of_a_subset_are_shown_with_their_names():
    def run(top1, among, **changes):
        nets = {
            "dense": replace(measured(66.0), subset_top1=90.0),
            "compressed": replace(measured(top1), subset_top1=among),
        }
        layers = [{"name": "fc", "dense": [1000, 2048], "compressed": [1000, 2048]}]
        return a_run(baseline="resnet50_imagenette", layers=layers, **nets, **changes)

    line = table([run(20.0, 85.0)])[1]
    assert (line["top-1 (1000-way)"], line["top-1 among the subset's classes"]) == ("20.00", "85.00")
    assert line["Δ top-1 among the subset's classes"] == "-5.00"
    assert table([run(20.0, 85.0, budget="zero")])[1]["Δ top-1 (1000-way)"] == "-46.00"
    assert "top-5 (1000-way)" not in line
    after = table([run(20.0, 85.0, after_compression={"top1": 15.0, "subset_top1": 80.0})])[1]
    assert after["after compression, top-1 (1000-way)"] == "15.00"
    assert after["after compression, top-1 among the subset's classes"] == "80.00"
    mixed = [run(20.0, 85.0), a_run(30.0, baseline="resnet50_imagenette", method="other")]
    assert only(mixed).metric == "top1"


def test_cells_cannot_break_the_table():
    line = table([a_run(hyperparameters={"ratio": 0.5, "mode": "a|b\nc"})])[1]
    assert line["setting"] == "mode=a\\|b c"


# ------------------------------------------------------------------------------------------------------ the ranks


def random_rows(top1=(80.0, 81.0)):
    return seeds(*top1, method="random_filter")


def ranks(records):
    return {row["setting"]: row["rank"] for row in rows(records, method="fake")}


def fakes(*pairs):
    return [
        a_run(v, seed=i, hyperparameters={"ratio": n + 1.0}) for n, pair in enumerate(pairs) for i, v in enumerate(pair)
    ]


def test_rows_closer_than_one_combined_std_share_a_rank():
    apart = fakes((92.0, 92.2), (91.0, 91.2), (90.9, 91.1), (90.75, 90.95))
    assert ranks([*apart, *random_rows()]) == {"ratio=1": 1, "ratio=2": 2, "ratio=3": 2, "ratio=4": 3}


def test_a_large_deviation_does_not_lift_a_row_over_a_better_one():
    scattered = [*fakes((92.0, 92.2), (91.0, 91.2), (84.0, 96.0)), *random_rows()]
    assert ranks(scattered) == {"ratio=1": 1, "ratio=2": 2, "ratio=3": 2}


def test_trained_and_scratch_are_ranked_apart():
    records = [*fakes((92.0, 92.2)), *random_rows(), *seeds(70.0, 71.0, method="other", starts_from="scratch")]
    ranked = {row["method"]: row["rank"] for row in only([*records, dense()]).rows}
    assert ranked == {"dense": None, "fake": 1, "random_filter": 2, "other": 1}
    assert {line["method"]: line["starts from"] for line in table(records)[1:]}["other"] == "scratch"


def test_a_row_with_one_seed_has_the_pooled_std():
    noisy = [*fakes((90.0, 94.0), (91.0,)), *random_rows((10.0, 14.0))]
    assert ranks(noisy) == {"ratio=1": 1, "ratio=2": 1}
    quiet = [*fakes((91.9, 92.1), (91.0,)), *random_rows((10.0, 10.1))]
    assert ranks(quiet) == {"ratio=1": 1, "ratio=2": 2}


def test_a_board_that_cannot_tell_random_from_dense_does_not_rank():
    records = [*fakes((92.0, 92.2)), *random_rows((92.0, 94.0))]
    assert ranks(records) == {"ratio=1": None}
    assert only(records).remarks[0].startswith("This board cannot rank: the dense net is only 0.50 points above")
    assert "cannot rank" in leaderboard.markdown(built(records))
    assert not any("cannot rank" in remark for remark in only([*fakes((92.0, 92.2)), *random_rows()]).remarks)


def test_without_two_seeds_or_a_control_the_board_says_what_is_not_known():
    assert "No ranks: no row has two seeds yet" in only([a_run(), *random_rows((80.0,))]).remarks[0]
    assert "No random control yet" in only(fakes((92.0, 92.2))).remarks[0]
    assert only([a_run()]).remarks[1].startswith("No random control yet")  # said also where there is no rank


def test_the_head_names_the_controls_that_the_families_call_for():
    def missing(*records):
        return [remark for remark in only(records).remarks if remark.startswith("Controls ")]

    assert missing(a_run()) == ["Controls not run yet on this board: random_filter, scratch."]
    assert missing(a_run(), *random_rows()) == ["Controls not run yet on this board: scratch."]
    assert missing(a_run(budget="zero"), a_run(budget="zero", method="random_filter")) == []
    assert missing(a_run(family="distillation")) == ["Controls not run yet on this board: student."]
    weights = ["Controls not run yet on this board: magnitude, random_weight."]
    assert missing(a_run(family="weight_pruning")) == weights
    zeros = replace(measured(92.0), nonzero=500)  # as many parameters as the dense net has
    assert missing(a_run(family="search", compressed=zeros)) == weights
    assert missing(a_run(family="binarization")) == []
    failed = a_run(method="random_filter", status="diverged", compressed=measured(None, params=500))
    assert missing(a_run(), failed) == missing(a_run())


def test_dense_nets_of_one_seed_that_differ_are_told_at_the_head():
    def told(*records):
        return [remark for remark in only(records).remarks if remark.startswith("Runs of one seed")]

    one, other = (a_record().provenance | {"dense_sha256": letter * 64} for letter in "ab")
    first, second = dense(93.5, provenance=one), a_run(dense=measured(93.7), provenance=other)
    (remark,) = told(first, second)
    assert "(2 nets of seed 0, top-1 93.50 to 93.70): Δ is against the run's own" in remark
    assert told(first, replace(second, seed=1)) == told(first, a_run(provenance=one)) == []


# ---------------------------------------------------------------------------------------------- ours and the paper's


@pytest.mark.parametrize(
    ("top1", "verdict"),
    [(92.94, "reproduced"), (93.44, "reproduced"), (92.43, "close"), (93.94, "close"), (91.9, "not reproduced")],
)
def test_the_verdict_compares_the_deltas_at_the_papers_budget(top1, verdict):
    (row,) = rows([a_run(top1, budget="paper")])
    assert (row["paper"], row["verdict"]) == ("Fake-A: 93.4 (Δ -0.56) (Table 1)", verdict)


LOSS = Reported(NET, "Fake-D", "Table 3", delta=-1.0)


def intervals_are_scipys(module):
    """Half widths of 95 % intervals against scipy's tests, which give intervals of their own."""
    random = np.random.default_rng(0)
    for n, m in ((2, 2), (2, 5), (3, 3), (7, 4)):
        ours, theirs = random.normal(90, 1, n), random.normal(91, 3, m)
        alone = stats.ttest_1samp(ours, 0).confidence_interval()
        welch = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        single = stats.t.interval(0.95, m - 1, scale=np.std(theirs, ddof=1) * (1 + 1 / m) ** 0.5)
        for found, (low, high) in (
            (module.confidence(list(ours)), alone),
            (module.confidence(list(ours), list(theirs)), welch),
            (module.confidence([90.0], list(theirs)), single),
            (module.confidence(list(theirs), [90.0]), single),
        ):
            assert found == pytest.approx((high - low) / 2, rel=1e-9)


def test_intervals_are_those_of_scipy():
    intervals_are_scipys(verdict)
    assert [verdict.confidence(*pair) for pair in (([1.0],), ([1.0], [2.0]), ([1.0, 1.0], [2.0]))] == [None] * 3
    assert verdict.confidence([1.0, 1.0]) == verdict.confidence([1.0, 1.0], [2.0, 2.0]) == 0.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(v / n, n - 1) for", "(v / n, n) for"),
        ("part**2 / n for", "part**2 for"),
        ("(1 + CONFIDENCE) / 2", "CONFIDENCE"),
        ("total += known[0][0]", "total += 0"),
    ],
)
def test_scipys_intervals_catch_a_changed_line(old, new):
    with pytest.raises(AssertionError):
        intervals_are_scipys(mutant(verdict, old, new))


def test_at_budget_paper_the_verdict_has_our_delta_with_its_interval():
    runs = [
        a_run(top1, budget="paper", seed=seed, dense=measured(93.5 + seed)) for seed, top1 in enumerate((93.0, 94.5))
    ]
    (row,) = rows(runs)
    low, high = stats.ttest_1samp([-0.5, 0.0], 0).confidence_interval()
    assert (row["verdict"], row["delta"]) == ("reproduced", -0.25)
    assert row["delta_ci95"] == pytest.approx((high - low) / 2, abs=1e-4)
    assert table(runs)[1]["verdict"] == f"reproduced (Δ -0.25 ± {(high - low) / 2:.2f}, 95 %)"
    (line,) = csv.DictReader(io.StringIO(leaderboard.csv(built(runs))))
    assert float(line["delta_ci95"]) == row["delta_ci95"]


def test_no_interval_beside_one_seed_a_reduced_budget_or_no_printed_row():
    assert table(seeds(93.0, budget="paper"))[1]["verdict"] == "reproduced"
    assert table(seeds(93.0, 93.1))[1]["verdict"] == "reduced budget"
    assert table(seeds(93.0, 93.1, budget="paper", hyperparameters={"ratio": 0.9}))[1]["verdict"] == "not comparable"


# ------------------------------------------------------------------------------------- one budget beside another


def at_both(short, paper):
    """One run per setting at each budget; None: not run there."""
    both = {"short": short, "paper": paper}
    return [
        a_run(top1, budget=budget, hyperparameters={"ratio": (i + 1) / 100})
        for budget, values in both.items()
        for i, top1 in enumerate(values)
        if top1 is not None
    ]


def agreement(records):
    found = {
        board.rows[0]["budget"]: [r for r in board.remarks if "Rank agreement" in r] for board in built(records).boards
    }
    assert not found.get("paper")
    return found["short"]


def by_definition(ours, theirs):
    """Pearson's correlation of the mean ranks."""
    places = [[sum(b < a for b in v) + (sum(b == a for b in v) + 1) / 2 for a in v] for v in (ours, theirs)]
    return np.corrcoef(places)[0, 1]


def test_the_agreement_of_two_budgets_is_spearmans_rho_over_the_rows_of_both():
    short, paper = (90.0, 91.0, 92.0, 92.0, 80.0, 95.0), (93.0, 92.0, 94.0, 95.0, None, 93.5)
    both = [pair for pair in zip(short, paper, strict=True) if None not in pair]
    rho = by_definition(*zip(*both, strict=True))
    (remark,) = agreement([*at_both(short, paper), dense(), dense(budget="paper")])
    assert f"rho {rho:+.2f} over the n=5 rows" in remark and abs(rho) < 0.9


def test_no_agreement_is_told_of_too_few_rows_or_of_one_value():
    assert agreement(at_both((90.0, 91.0), (90.0, 91.0))) == []
    assert agreement(at_both((90.0, 91.0, 92.0), (None, None, None))) == []
    assert agreement(at_both((90.0, 91.0, 92.0), (93.0, 93.0, 93.0))) == []
    assert agreement([*at_both((90.0, 91.0, 92.0), ()), a_run(budget="paper", baseline="resnet56_cifar10")][:3]) == []


def losses_are_compared(module):
    """Whether a row that prints a loss of one point is reproduced by losses within half a point, close within one."""
    found = [
        module.verdict(LOSS, {"budget": "paper", "n": 3, "top1": 0.0, "delta": d}) for d in (-0.5, -1.5, -1.9, 1.0)
    ]
    return found == ["reproduced", "reproduced", "close", "not reproduced"]


def test_a_row_that_prints_a_loss_alone_compares_losses():
    assert losses_are_compared(verdict)
    for old, new in (('row["delta"] - theirs', 'row["delta"] + theirs'), ("return printed.delta\n", "return None\n")):
        assert not losses_are_compared(mutant(verdict, old, new))


def test_a_loss_stands_in_the_cell_without_an_accuracy():
    classes = {**METHODS, "fake": type("Loses", (Fake,), {"reported": (LOSS,)})}
    (board,) = leaderboard.build([a_run(92.6, budget="paper")], classes, BASELINES).boards
    assert (board.rows[0]["paper"], board.rows[0]["verdict"]) == ("Fake-D: (Δ -1.00) (Table 3)", "reproduced")
    (board,) = leaderboard.build([a_run(92.6)], classes, BASELINES).boards
    assert board.rows[0]["verdict"] == "reduced budget"


def test_no_method_prints_a_change_beside_the_accuracies_that_it_follows_from():
    rows = [row for entry in registry.entries().values() if entry.cls for row in entry.cls.reported]
    changes = [row for row in rows if row.delta is not None]
    assert len(changes) >= 6 and all((row.top1, row.base_top1) == (None, None) for row in changes)


@pytest.mark.parametrize("budget", ["zero", "short"])
def test_a_reduced_budget_is_never_a_reproduction(budget):
    (row,) = rows([a_run(92.94, budget=budget)])
    assert (row["verdict"], row["structure"]) == ("reduced budget", "params exact, MACs exact")


def test_a_paper_row_belongs_to_its_settings_not_to_the_name_of_a_recipe():
    (row,) = rows([a_run(budget="paper", recipe=f"{NET}/b", hyperparameters={"ratio": 0.25})])
    assert row["paper"].startswith("Fake-B: 92/99.1") and row["setting"] == "recipe b"
    (row,) = rows([a_run(budget="paper", recipe=f"{NET}/b", hyperparameters={"ratio": 0.3})])
    assert (row["paper"], row["verdict"], row["setting"]) == ("", "not comparable", "recipe b, ratio=0.3")


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": "vgg16_mnist5k"},
        {"options": {"data": "cifar10[5x100]"}},
        {"compressed": replace(measured(92.0), subset_top1=95.0), "dense": replace(measured(93.0), subset_top1=96.0)},
    ],
    ids=["other net", "subset", "subset's classes"],
)
def test_other_nets_and_data_are_not_comparable(changes):
    (row,) = rows([a_run(budget="paper", **changes)])
    assert (row["paper"], row["verdict"], row["structure"]) == ("", "not comparable", "")


@dataclass
class Anew(Method):
    """Starts from runs of Fake."""

    epochs: float = 1.0
    reported = (Reported(NET, "B anew", "Table 4", top1=92.0, base_top1=93.5, start=f"fake:{NET}/b"),)

    def compress(self, model, task):
        return model


def anew(parent, **changes):
    """The row of a run of ``Anew`` that starts from ``parent``."""
    child = a_run(92.0, method="anew", hyperparameters={}, parent=parent and parent.id, budget="paper", **changes)
    found = leaderboard.build([child, *([parent] if parent else [])], METHODS | {"anew": Anew}, BASELINES)
    (row,) = [row for board in found.boards for row in board.rows if row["method"] == "anew"]
    return row


def test_a_row_that_starts_from_a_run_stands_beside_runs_that_do():
    row = anew(a_run(budget="paper", hyperparameters={"ratio": 0.25}))
    assert (row["paper"], row["verdict"]) == ("B anew: 92 (Δ -1.50) (Table 4)", "reproduced")
    assert row["setting"].endswith("after fake")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hyperparameters": {"ratio": 0.3}}, "fake (ratio=0.3, budget paper)"),
        ({"budget": "short"}, "fake (ratio=0.25, budget short)"),
        ({"method": "other"}, "other (ratio=0.25, budget paper)"),
        ({"parent": "0123456789ab"}, "fake (ratio=0.25, after 0123456789ab, budget paper)"),
        ({"options": {"data": "cifar10", "holdout": True}}, "fake (ratio=0.25, budget paper)"),
        ({"baseline": "resnet56_cifar10"}, "fake (ratio=0.25, budget paper)"),
        ({"status": "diverged", "compressed": measured(None, params=500)}, "fake (ratio=0.25, budget paper)"),
        (None, "the dense net"),
    ],
)
def test_a_row_that_starts_from_a_run_stands_beside_no_other(changes, told):
    fields = {"budget": "paper", "hyperparameters": {"ratio": 0.25}}
    row = anew(None if changes is None else a_run(**fields | changes))
    assert row["paper"] == ""
    assert row["verdict"] == f"not comparable: it starts from {told}, the printed row from fake:{NET}/b"


def test_a_row_that_starts_from_the_dense_net_stands_beside_no_run_after_another():
    (row,) = rows([a_run(budget="paper", parent="0123456789ab")])
    told = "not comparable: it starts from run 0123456789ab, the printed row from the dense net"
    assert (row["paper"], row["verdict"]) == ("", told)


def test_dense_stands_beside_the_published_accuracy_and_controls_beside_nothing():
    (row,) = rows([dense(93.5, budget="paper")])
    assert (row["paper"], row["verdict"]) == ("published: 93.96 (Table 0)", "reproduced")
    (row,) = rows([a_run(budget="paper", method="other")])
    assert (row["paper"], row["verdict"]) == ("", "")


def test_a_diverged_run_is_not_reproduced():
    (row,) = rows([a_run(budget="paper", status="diverged", compressed=measured(None, params=500))])
    assert row["verdict"] == "not reproduced"


@pytest.mark.parametrize(
    ("printed", "structure"),
    [
        ({"params": 0.50e3}, "params exact"),
        ({"params": 0.55e3}, "params differ by -9.1 %"),
        ({"params": 504.0}, "params differ by -0.8 %"),
        ({"macs": 40_000}, "MACs exact"),
        ({"macs": 41_000, "rule": "two_per_mac"}, "MACs differ by +95.1 %"),
        ({"macs": 80_000, "rule": "two_per_mac"}, "MACs exact"),
        ({"macs_reduction": 60.0}, "MACs exact"),
        ({"macs_reduction": 60.1}, "MACs differ by -0.1 points of reduction"),
        ({"params_reduction": 50, "macs_reduction": 50}, "params exact, MACs differ by +10.0 points of reduction"),
        ({"macs": 45_000, "rule": "hrank_out_only"}, "MACs exact"),
        ({"macs": 45_000, "rule": "unheard_of"}, "MACs not counted by rule unheard_of"),
    ],
)
def test_the_structure_is_compared_within_the_rounding_of_the_print(printed, structure):
    from repro.verdict import structure as compare

    record = a_run(counted={"hrank_out_only": by_rule(600, 45_000)})
    assert compare(Reported(NET, "row", "Table 1", **printed), [record]) == structure


def by_rule(params, macs):
    return {"params": params, "macs": macs, "dense_params": 1_000, "dense_macs": 100_000}


def test_the_reductions_under_the_papers_own_rule_stand_beside_the_physical_ones():
    other = replace(Fake.reported[0], rule="hrank_out_only")
    classes = {**METHODS, "fake": type("Wide", (Fake,), {"reported": (other,)})}
    runs = [a_run(seed=s, counted={"hrank_out_only": by_rule(600, 45_000), "mac": by_rule(1, 1)}) for s in (0, 1)]
    board = leaderboard.build([dense(), *runs], classes, BASELINES)
    row = next(r for r in board.boards[0].rows if r["method"] == "fake")
    assert (row["paper_rule"], row["macs_reduction"]) == ("hrank_out_only", 0.6)
    assert (row["params_reduction_paper_rule"], row["macs_reduction_paper_rule"]) == (0.4, 0.55)
    text = leaderboard.markdown(board)
    assert "MACs reduction, paper's rule" in text and "| 55.0 % |" in text
    assert "paper's rule |" not in leaderboard.markdown(leaderboard.build([dense(), a_run()], METHODS, BASELINES))


@pytest.mark.parametrize("counted", [{}, {"nonzero": {**by_rule(250, 10_000), "dense_params": 1_000}}])
def test_zeros_are_gone_where_the_paper_counts_so_also_in_records_from_before_the_rule(counted):
    net = replace(measured(92.0), nonzero=250, effective_macs=10_000)
    row = replace(Fake.reported[0], params=None, macs=None, params_reduction=75.0, macs_reduction=90.0, rule="nonzero")
    classes = {**METHODS, "fake": type("Sparse", (Fake,), {"reported": (row,)})}
    (board,) = leaderboard.build([a_run(compressed=net, counted=counted)], classes, BASELINES).boards
    found = board.rows[0]
    assert (found["structure"], found["paper_rule"]) == ("params exact, MACs exact", "nonzero")
    assert (found["params_reduction_paper_rule"], found["macs_reduction_paper_rule"]) == (0.75, 0.9)
    assert found["params_reduction"] == found["macs_reduction"] == 0.0


def timed(kernel="dense", loaded=False):
    """A latency of 2x at batch 1 on one thread, 4x at batch 64 on two."""
    cells = [{**CELL, "batch": 1}, {**CELL, "batch": 64}, {**CELL, "threads": 2, "batch": 1}]
    cells.append({**CELL, "threads": 2, "batch": 64, "dense_ms": 4.0})
    return {**LATENCY, "cells": cells, "kernel": kernel, "loaded": loaded}


@pytest.mark.parametrize(
    ("latency", "cells"),
    [
        (None, None),
        (timed(), ["2.00x", "4.00x"]),
        (timed(loaded=True), ["2.00x (machine was loaded)", "4.00x (machine was loaded)"]),
        (timed("no_fast_kernel"), ["no fast kernel", "no fast kernel"]),
    ],
)
def test_a_speed_up_is_what_was_measured_or_is_not_claimed(latency, cells):
    text = leaderboard.markdown(leaderboard.build([dense(), a_run(latency=latency)], METHODS, BASELINES))
    titles, row = (line.split(" | ") for line in text.splitlines() if line.startswith(("| method", "| fake")))
    assert [row[i] for i, title in enumerate(titles) if title.startswith("speed-up")] == (cells or [])


def test_a_printed_cell_that_contradicts_itself_gets_a_footnote():
    records = [a_run(hyperparameters={"ratio": 0.25}), a_run(hyperparameters={"ratio": 0.5})]
    assert only(records).footnotes == []
    wrong = replace(Fake.reported[1], macs_reduction=65.0)
    classes = {**METHODS, "fake": type("Wrong", (Fake,), {"reported": (wrong,)})}
    (board,) = leaderboard.build(records, classes, BASELINES).boards
    assert board.footnotes == [
        "The paper's cell contradicts itself (Fake-B, Table 1): it prints 65 % fewer MACs, but its 90,000 of this "
        "net's 200,000 are 55.0 % fewer."
    ]


def test_a_printed_cell_is_checked_against_the_dense_net_as_its_paper_counts_it():
    row = replace(Fake.reported[0], params=None, macs=45_000, macs_reduction=50.0, rule="hrank_out_only")
    classes = {**METHODS, "fake": type("Wide", (Fake,), {"reported": (row,)})}
    for dense_macs, contradicts in ((90_000, False), (100_000, True)):
        counted = {"hrank_out_only": {**by_rule(600, 45_000), "dense_macs": dense_macs}}
        (board,) = leaderboard.build([a_run(counted=counted)], classes, BASELINES).boards
        assert bool(board.footnotes) == contradicts


# -------------------------------------------------------------------------------------------------------- searches

WIDE = [{"name": f"features.{i}", "dense": [8, 3], "compressed": [8, 3]} for i in (3, 10, 7)]  # in network order
FOUND = {"features.10": 0.5, "features.3": 0.25, "features.7": 1.0}  # by the alphabet, as a file has them
ALIKE = {"features.10": 0.6, "features.3": 0.625, "features.7": 0.5}


def a_search(seed=0, **details):
    """A run whose method searched."""
    told = {"policy": FOUND, "uniform": ALIKE, "rewards": [-0.5, -0.75, -0.25, -0.3], **details}
    return a_run(method="other", family="search", seed=seed, details=told, layers=WIDE)


def test_a_search_is_read_in_network_order():
    found = search_of(a_search())
    assert list(found.policy.items()) == [("features.3", 0.25), ("features.10", 0.5), ("features.7", 1.0)]
    assert list(found.uniform.values()) == [0.625, 0.6, 0.5] and found.best == [-0.5, -0.5, -0.25, -0.25]


@pytest.mark.parametrize(
    "details",
    [
        {"policy": None}, {"policy": {}, "uniform": {}}, {"policy": {**FOUND, "x": 0.5}}, {"uniform": [0.5]},
        {"uniform": {**ALIKE, "features.3": 1.2}}, {"policy": {**FOUND, "features.3": True}},
        {"policy": {**FOUND, "features.3": "0.5"}}, {"rewards": []}, {"rewards": [None]}, {"rewards": [1e30]},
        {"rewards": "-0.5"},
    ],
)  # fmt: skip
def test_what_is_no_search_is_none(details):
    assert search_of(a_search(**details)) is None and search_of(a_run()) is None
    (board,) = built([a_search(**details)]).boards
    assert "search of" not in leaderboard.markdown(built([a_search(**details)])) and board.rows[0]["_searches"] == []


def drawn_to_scale(module, seeds=1):
    """Whether bars, lines and dots are where numpy puts them: means over the seeds, running maxima."""
    from matplotlib.figure import Figure

    runs = [a_search(seed, policy={name: share / (seed + 1) for name, share in FOUND.items()}) for seed in range(seeds)]
    runs[-1].details["rewards"] = [-1.0, -0.9, -0.95]
    searches = [search_of(run) for run in runs]
    left, right = Figure().subplots(1, 2)
    module._draw_policy(left, searches)
    module._draw_rewards(right, searches)
    names = ["features.3", "features.10", "features.7"]
    means = np.mean([[run.details["policy"][name] for name in names] for run in runs], axis=0)
    levels = [segment[:, 1].tolist() for segment in left.collections[0].get_segments()]
    curves = [line.get_ydata().tolist() for line in right.lines]
    tried = [run.details["rewards"] for run in runs]
    return (
        np.allclose([bar.get_height() for bar in left.patches], means, atol=1e-4)
        and levels == [[ALIKE[name]] * 2 for name in names]
        and [label.get_text() for label in left.get_xticklabels()] == names
        and len(left.lines) == (seeds if seeds > 1 else 0)
        and curves == [list(y) for one in tried for y in (one, np.maximum.accumulate(one))]
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_search_is_drawn_to_scale(seeds):
    assert drawn_to_scale(figures, seeds)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('means("policy"), color', 'means("uniform"), color'),
        ('means("uniform"), *ends', 'means("policy"), *ends'),
        ("axes.plot(episodes, search.best,", "axes.plot(episodes, search.rewards,"),
    ],
)
def test_the_scale_catches_a_changed_line(old, new):
    assert not drawn_to_scale(mutant(figures, old, new))


def described(path):
    """What a picture says that it shows."""
    if path.suffix == ".svg":
        (text,) = ElementTree.parse(path).iter("{http://purl.org/dc/elements/1.1/}description")
        return json.loads(text.text)
    from PIL import Image

    with Image.open(path) as picture:
        return json.loads(picture.info.get("Description", "null"))


def test_a_search_has_a_figure_that_says_what_it_shows(tmp_path):
    runs = [a_search(), a_search(1), dense()]
    first = leaderboard.write(built(runs), tmp_path / "a")
    second = leaderboard.write(built(runs[::-1]), tmp_path / "b")
    name = f"figures/{NET}-short-other-{runs[0].id}.png"
    assert [path.relative_to(tmp_path / "a").as_posix() for path in first][4:] == [name]
    assert f"({name})" in first[0].read_text() and "What the search of other found (defaults):" in first[0].read_text()
    assert first[4].read_bytes() == second[4].read_bytes()
    rewards = [-0.5, -0.75, -0.25, -0.3]
    assert described(first[4]) == [{"policy": FOUND, "uniform": ALIKE, "rewards": rewards}] * 2
    for path in first[2:4]:
        shown = described(path)
        assert shown["dense"] == 93.5 and shown["rows"][1] == ["other", "defaults", "search", 2, 92.25, 0.0]
        assert shown["panels"]["macs"] == [[[0, 100_000], [1, 40_000]], [1, 0], []]


def test_signs_in_names_are_only_signs(tmp_path):
    odd = {"$x_{": 0.5, "<b>": 0.25}
    run = replace(a_search(policy=odd, uniform=odd), hyperparameters={"ratio": 0.5, "mode": "$a$\\frac"}, id="")
    *_, path = leaderboard.write(built([run]), tmp_path)
    assert described(path)[0]["policy"] == odd


# ------------------------------------------------------------------------------------------------------- the files


def many():
    return [dense(), *random_rows(), *fakes((92.0, 92.2), (90.0, 91.0)), a_run(budget="paper"), a_run(budget="zero")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the folder, the files of the leaderboard in it)."""
    folder = tmp_path_factory.mktemp("many")
    return folder, leaderboard.write(built(many()), folder)


def test_files_depend_on_the_records_alone(written, tmp_path):
    folder, first = written
    second = leaderboard.write(built(many()[::-1]), tmp_path)
    names = [path.relative_to(folder).as_posix() for path in first]
    pictures = [f"figures/{NET}-{budget}.{kind}" for budget in ("zero", "short", "paper") for kind in ("png", "svg")]
    assert names == ["leaderboard.md", "leaderboard.csv", *pictures]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    picture = first[2].read_bytes()
    assert picture.startswith(b"\x89PNG") and b"Software" not in picture
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == sorted(first)


def test_the_csv_holds_numbers_and_every_row(tmp_path):
    boards = built(many())
    lines = list(csv.DictReader(io.StringIO(leaderboard.csv(boards))))
    assert len(lines) == len(boards.frame) == sum(len(board.rows) for board in boards.boards)
    line = next(line for line in lines if line["setting"] == "ratio=1")
    assert (line["top1"], line["n"], line["params"], line["rank"]) == ("92.1", "2", "500", "1")
    assert not any(name.startswith("_") for name in boards.frame)


def test_the_text_names_its_figures_and_no_place_or_date(written):
    folder, _ = written
    text = (folder / "leaderboard.md").read_text()
    for target in re.findall(r"\]\((.*?)\)", text):
        assert (folder / target).is_file()
    assert str(Path.home()) not in text and "/work" not in text and not re.search(r"20\d\d-\d\d", text)


def test_each_board_alone_says_what_the_markdown_says():
    printed = replace(Fake.reported[0], params_reduction=90.0, macs_reduction=60.0)

    class Clashing(Fake):
        """The same with a printed cell that contradicts itself."""

        reported = (printed,)

    records = [*seeds(93.0, 93.2, budget="paper"), *random_rows(), dense(budget="paper")]
    boards = leaderboard.build(records, {**METHODS, "fake": Clashing}, BASELINES)
    files = leaderboard.files(boards)
    assert files.keys() == {f"boards/{b.slug}.{kind}" for b in boards.boards for kind in ("csv", "tex")}
    board = next(b for b in boards.boards if b.rows[0]["budget"] == "paper")
    lines = list(csv.DictReader(io.StringIO(files[f"boards/{board.slug}.csv"])))
    text = leaderboard.markdown(leaderboard.Boards([board], boards.frame))
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    shown = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    (marked,) = [line for line in shown if line["method"] == "fake"]
    assert marked["paper"].endswith(" [1]") and len(shown) == len(lines) == 2
    marked["paper"] = marked["paper"].removesuffix(" [1]")
    assert [{k: v for k, v in line.items() if k != "notes"} for line in lines] == shown
    assert [line["notes"] for line in lines] == ["–", board.footnotes[0]]
    tex = files[f"boards/{board.slug}.tex"]
    assert (
        r"\toprule" in tex and "[1]" in tex and "Note 1: " in tex and not re.search(r"(?<!\\)%", tex.split("\n", 1)[1])
    )
    assert all(r"\%" in line or "-" in line for line in tex.splitlines() if line.startswith(" fake"))


def test_the_guide_to_the_results_names_every_file_that_there_is():
    boards = built(many())
    text = leaderboard.readme(boards)
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    pages = {"leaderboard.md", "leaderboard.csv", "claims.md", "claims.csv", "surveys.md"}
    pages |= {f"figures/{board.slug}.{kind}" for board in boards.boards for kind in ("png", "svg")}
    assert links == pages | leaderboard.files(boards).keys()


def test_an_empty_leaderboard_says_so(tmp_path):
    leaderboard.write(built([]), tmp_path)
    assert "No runs are recorded yet." in (tmp_path / "leaderboard.md").read_text()


RESULTS = Path(methods.__file__).parent.parent / "results"


@functools.cache
def committed():
    """(the committed records, the tables that they give, the texts of surveys, claims, single boards, the guide)."""
    records, problems = load_all(RESULTS)
    assert problems == []
    classes = {name: entry.cls for name, entry in registry.entries().items() if entry.cls}
    baselines = {name: base.load(name) for name in base.names()}
    boards = leaderboard.build(records, classes, baselines)
    texts = surveys.files(surveys.build(records, boards, classes, baselines))
    texts |= claims.files(claims.evaluate(boards, records, classes)) | leaderboard.files(boards)
    return records, boards, {**texts, "README.md": leaderboard.readme(boards)}


def test_the_committed_tables_are_what_the_committed_records_give():
    records, boards, _ = committed()
    paths = {name: RESULTS / f"leaderboard.{name}" for name in ("md", "csv")}
    if not records and not any(path.exists() for path in paths.values()):
        return
    for name, text in {"md": leaderboard.markdown(boards), "csv": leaderboard.csv(boards)}.items():
        assert paths[name].is_file(), f"{paths[name]} is missing: run `python -m repro leaderboard`."
        same = paths[name].read_bytes() == text.encode()
        assert same, f"{paths[name]} is not what the records give: run `python -m repro leaderboard`."


def test_the_committed_texts_are_what_the_committed_records_give():
    _, _, texts = committed()
    pages = {"surveys.md", "claims.md", "claims.csv", "README.md"}
    theirs = {name for name in pages if (RESULTS / name).is_file()}
    theirs |= {
        str(path.relative_to(RESULTS)) for folder in ("surveys", "boards") for path in RESULTS.glob(f"{folder}/*")
    }
    assert theirs == texts.keys(), "delete what is too much, run `python -m repro leaderboard` for what is missing"
    for name, text in texts.items():
        same = (RESULTS / name).read_bytes() == text.encode()
        assert same, f"{name} is not what the records give: run `python -m repro leaderboard`."


def test_the_committed_figures_show_what_the_committed_records_give():
    """By what each picture says that it shows: the bytes are those of one version of matplotlib."""
    wanted = {}
    for board in filter(figures.drawable, committed()[1].boards):
        wanted |= dict.fromkeys((f"{board.slug}.png", f"{board.slug}.svg"), figures.facts(board))
        wanted |= {
            name: [vars(search) for search in row["_searches"]] for name, row in leaderboard._searches(board).items()
        }
    theirs = {path.name: path for path in RESULTS.glob("figures/*")}
    assert theirs.keys() <= wanted.keys(), "figures whose records are gone: delete them"
    for name, facts in wanted.items():
        same = name in theirs and described(theirs[name]) == json.loads(canonical(facts))
        assert same, f"figures/{name} is not what the records give: run `python -m repro leaderboard`."
