"""The papers' claims against records: what is compared with what, and what verdict follows."""

import csv
import io
import re
from dataclasses import replace
from statistics import fmean

import pytest
from oracle import mutant
from scipy import stats
from test_leaderboard import NET, Control, Fake, a_run, dense, seeds
from test_records import measured

from methods.base import Claim, Select
from repro import claims, leaderboard, registry

BETTER = Claim("Fakes are better.", "Table 1", Select("fake"), (Select("random_filter"),), ("ratio",))
TEN = [{"name": "classifier", "dense": [10, 512], "compressed": [10, 512]}]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No record is stale, though there are no files of these methods."""
    monkeypatch.setattr("repro.boards.stale_ids", lambda *_: set())


def said(records, claim=BETTER, module=claims, others=()):
    """The comparisons of one claim of the method ``fake`` over ``records``."""
    cls = type("Claiming", (Fake,), {"claims": (claim,)})
    methods = {"fake": cls, "dense": Control, "random_filter": Control, "other": Control} | dict(others)
    return module.evaluate(leaderboard.build(records, methods, {}), records, methods)


def verdicts(*args, **more):
    return [f"{one.verdict} ({one.note})" if one.note else one.verdict for one in said(*args, **more)]


def lot(*top1, **changes):
    return seeds(*top1, method="random_filter", **changes)


# ------------------------------------------------------------------------------------------------------ the verdict

PLANTED = [
    ((92.0, 92.1, 92.2), (90.0, 90.1, 90.2), 0.0),
    ((92.0, 92.1, 92.2), (92.9, 93.1, 93.0), 0.0),
    ((92.0, 92.9, 91.4), (91.9, 92.0, 91.8), 0.0),
    ((92.0, 92.1), (92.1, 92.2, 92.3, 92.2), 0.5),
    ((92.0, 92.1), (92.9, 93.0), 0.5),
    ((92.0, 92.1, 92.2), (92.4, 92.7, 92.5), 0.5),
    ((91.0, 92.4), (92.0, 92.6), 0.0),
    ((92.0, 94.0), (90.0, 90.5, 91.0, 90.2), 0.0),
]


def verdicts_are_scipys(module):
    found = []
    for ours, theirs, margin in PLANTED:
        low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        expected = "holds" if low > -margin else "fails" if high < -margin else "within noise"
        (one,) = said([*seeds(*ours), *lot(*theirs)], replace(BETTER, margin=margin), module)
        assert (one.verdict, one.difference) == (expected, pytest.approx(fmean(ours) - fmean(theirs)))
        assert one.half == pytest.approx((high - low) / 2)
        found.append(expected)
    assert set(found) == {"holds", "fails", "within noise"}


def test_the_verdict_is_that_of_the_welch_interval():
    verdicts_are_scipys(claims)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if low > -margin else", "if difference > -margin else"),
        ("if high < -margin else", "if difference < -margin else"),
        ("if low > -margin else", "if low > 0 else"),
        ("if high < -margin else", "if high < 0 else"),
        ("confidence(*values), row", "confidence(values[0]), row"),
    ],
)
def test_the_interval_catches_a_changed_line(old, new):
    with pytest.raises(AssertionError):
        verdicts_are_scipys(mutant(claims, old, new))


def test_single_seeds_are_compared_as_they_are_and_it_is_said():
    assert verdicts([*seeds(92.0), *lot(91.0)]) == ["holds (one seed each)"]
    assert verdicts([*seeds(91.0), *lot(92.0)]) == ["fails (one seed each)"]
    assert verdicts([*seeds(91.0), *lot(91.0)]) == ["within noise (one seed each)"]
    assert verdicts([*seeds(92.0), *lot(91.0, 91.0)]) == ["holds (no interval)"]


def test_stale_records_are_named(monkeypatch):
    records = [*seeds(92.0), *lot(91.0)]
    for record in records:
        monkeypatch.setattr("repro.boards.stale_ids", lambda *_, name=record.id: {name})
        assert verdicts(records) == ["holds (one seed each, stale)"]


def test_one_seed_beside_several_has_the_deviation_of_these():
    (one,) = said([*seeds(92.0), *lot(90.0, 91.0, 92.0)])
    assert one.half == pytest.approx(stats.t.ppf(0.975, 2) * (1 + 1 / 3) ** 0.5)
    assert (one.verdict, one.note) == ("within noise", "")


def test_nets_that_guess_say_nothing():
    at_chance = [*seeds(19.0, 18.9, layers=TEN), *lot(10.0, 10.1, layers=TEN)]
    assert verdicts(at_chance) == ["near chance"]
    assert verdicts([*seeds(21.0, 20.9, layers=TEN), *lot(10.0, 10.1, layers=TEN)]) == ["holds"]
    many = [{"name": "fc", "dense": [1000, 2048], "compressed": [1000, 2048]}]
    a_few_images = [*seeds(0.4, layers=many), *lot(0.0, layers=many)]
    assert verdicts(a_few_images) == ["near chance (one seed each)"]
    assert verdicts([*seeds(1.4, layers=many), *lot(0.0, layers=many)]) == ["holds (one seed each)"]


def test_the_tally_says_how_many_verdicts_have_no_interval():
    one = said([*seeds(92.0), *lot(91.0)]) + said([*seeds(92.0, 92.1), *lot(91.0, 91.1)])
    assert claims.tally(one) == "holds 2 (1 without interval)"
    assert claims.tally(one[1:]) == "holds 1" and claims.tally([]) == ""
    assert claims.summary(one)[0][-1] == claims.tally(one)


# ------------------------------------------------------------------------------------------- what is compared with what


def test_rows_are_compared_at_equal_settings_only():
    records = [*seeds(92.0), *lot(91.0), *lot(93.0, hyperparameters={"ratio": 0.9})]
    assert verdicts(records) == ["holds (one seed each)"]
    assert len(said(records, replace(BETTER, at=()))) == 2
    assert verdicts([*seeds(92.0), *lot(93.0, hyperparameters={"ratio": 0.9})]) == [
        "untested (no equal run of random_filter)"
    ]


def test_a_setting_that_a_record_does_not_name_is_the_default():
    assert verdicts([*seeds(92.0, hyperparameters={}), *lot(91.0)]) == ["holds (one seed each)"]


@pytest.mark.parametrize(("cost", "equal"), [(40_000, True), (41_900, True), (42_500, False), (38_000, True)])
def test_equal_costs_differ_by_five_percent_at_most(cost, equal):
    other = lot(91.0, compressed=measured(91.0, params=500, macs=cost), hyperparameters={"ratio": 0.9})
    found = verdicts([*seeds(92.0), *other], replace(BETTER, at=("macs",)))
    assert found == (["holds (one seed each)"] if equal else ["untested (no equal run of random_filter)"])


def test_a_side_may_be_some_recipes_or_settings_of_a_method():
    records = [*lot(90.0, hyperparameters={"ratio": 0.25}), *seeds(92.0)]
    records += seeds(91.0, hyperparameters={"ratio": 0.25}, recipe=f"{NET}/b")
    for select in (Select("fake", ("b",)), Select("fake", settings={"ratio": 0.25})):
        (one,) = said(records, replace(BETTER, better=select))
        assert one.rows[0]["top1"] == 91.0
    assert verdicts(records, replace(BETTER, better=Select("fake", ("c",)))) == [
        "untested (no run of fake (recipe BASELINE/c))"
    ]


def test_every_other_method_is_compared_and_a_missing_one_is_named():
    claim = replace(BETTER, than=(Select("random_filter"), Select("other"), Select("dense")), at=())
    records = [*seeds(92.0), *lot(91.0), dense(93.5)]
    assert verdicts(records, claim) == [
        "holds (one seed each)",
        "untested (no equal run of other)",
        "fails (one seed each)",
    ]


@pytest.mark.parametrize(
    "changes", [{"options": {"data": "cifar10", "holdout": True}}, {"given_weights": True}, {"status": "diverged"}]
)
def test_other_options_other_dense_nets_and_diverged_runs_are_not_compared(changes):
    if changes.get("status"):
        changes = {**changes, "compressed": measured(None, params=500, macs=40_000)}
    assert verdicts([*seeds(92.0), *lot(91.0, **changes)]) == ["untested (no equal run of random_filter)"]


def test_boards_are_looked_at_one_by_one_and_only_where_the_claim_says():
    records = [r for budget in ("zero", "short") for r in (*seeds(92.0, budget=budget), *lot(91.0, budget=budget))]
    records += [*seeds(92.0, baseline="resnet56_cifar10"), *lot(93.0, baseline="resnet56_cifar10")]
    assert [one.board.slug for one in said(records)] == ["resnet56_cifar10-short", f"{NET}-zero", f"{NET}-short"]
    assert [one.board.slug for one in said(records, replace(BETTER, budgets=("zero",)))] == [f"{NET}-zero"]
    (one,) = said(records, replace(BETTER, baselines=("resnet56_cifar10",)))
    assert one.verdict == "fails"


def test_right_after_compression_is_before_retraining_and_all_there_is_at_budget_zero():
    claim = replace(BETTER, measure="after_compression")
    short = [*seeds(92.0, after_compression={"top1": 40.0}), *lot(91.0, after_compression={"top1": 50.0})]
    zero = [*seeds(30.0, budget="zero", after_compression=None), *lot(20.0, budget="zero", after_compression=None)]
    found = said([*short, *zero], claim)
    assert [(one.board.rows[0]["budget"], one.difference) for one in found] == [("zero", 10.0), ("short", -10.0)]
    assert verdicts([*seeds(92.0, after_compression=None), *lot(91.0)], claim) == ["untested (no run of fake)"]


def test_a_comparison_names_its_accuracy():
    def nets(top1, among, **changes):
        dense = replace(measured(66.0), subset_top1=98.0)
        return seeds(top1, dense=dense, compressed=replace(measured(top1), subset_top1=among), **changes)

    after = {"after_compression": {"top1": 70.0, "subset_top1": 90.0}}
    few = [*nets(60.0, 95.0, **after), *nets(50.0, 96.0, method="random_filter", **after)]
    pruned = replace(BETTER, measure="after_compression")
    found = [*said(few), *said(few, pruned), *said([*seeds(92.0), *lot(91.0)])]
    among = "top-1 among the subset's classes"
    assert [claims.CELLS["accuracy"](one) for one in found] == [among, f"after compression, {among}", "top-1"]
    assert found[0].difference == -1.0


RATE = {"ratio": 0.5, "lr": 0.01}
SLOW = {"ratio": 0.5, "lr": 0.001}


def test_nets_that_only_their_retraining_tells_apart_are_compared_once_right_after_compression():
    claim = replace(BETTER, measure="after_compression")
    ours = seeds(92.0, 93.0, hyperparameters=RATE, after_compression={"top1": 40.0})
    ours += seeds(91.0, hyperparameters=SLOW, after_compression={"top1": 40.0})
    theirs = lot(91.0, hyperparameters=RATE, after_compression={"top1": 30.0})
    theirs += lot(90.0, hyperparameters=SLOW, after_compression={"top1": 30.0})
    (one,) = said([*ours, *theirs], claim)
    assert one.values == ([40.0, 40.0], [30.0])  # the two seeds of which the other row has one

    other = seeds(91.0, hyperparameters=SLOW, after_compression={"top1": 41.0})
    assert len(said([*ours[:2], *other, *theirs], claim)) == 2
    pruned = seeds(91.0, hyperparameters=SLOW, after_compression={"top1": 40.0}, compressed=measured(91.0, macs=39_000))
    assert len(said([*ours[:2], *pruned, *theirs], claim)) == 2
    assert len(said([*ours, *theirs])) == 2


def test_rows_of_one_learning_rate_are_compared_and_others_only_where_there_are_none():
    ours = [*seeds(92.0, hyperparameters=RATE), *seeds(90.0, hyperparameters=SLOW)]
    slow, fast = lot(91.0, hyperparameters=SLOW), lot(93.0, hyperparameters=RATE)
    assert {one.difference for one in said([*ours, *slow, *fast])} == {-1.0}
    assert verdicts([*ours[:1], *slow]) == ["holds (one seed each, learning rates 0.01 and 0.001)"]
    assert verdicts([*ours[1:], *slow]) == ["fails (one seed each)"]

    split = {"finetune_lr": 0.001, "lr": 0.01, "ratio": 0.5}
    assert verdicts([*seeds(92.0, hyperparameters=split), *slow]) == ["holds (one seed each)"]
    assert verdicts([*ours[:1], *lot(91.0)]) == ["holds (one seed each)"]  # a net that is not trained has no rate

    zero = [*seeds(92.0, hyperparameters=RATE, budget="zero"), *lot(91.0, hyperparameters=SLOW, budget="zero")]
    assert verdicts(zero) == ["holds (one seed each)"]


def test_without_another_side_a_run_is_compared_with_the_one_it_started_from():
    claim = replace(BETTER, better=Select("fake"), than=(), at=(), margin=0.5)
    parents = [*lot(92.0, 92.2), *lot(99.0, hyperparameters={"ratio": 0.9})]
    children = [a_run(91.9, parent=parents[0].id, seed=0), a_run(92.1, parent=parents[1].id, seed=1)]
    (one,) = said([*parents, *children, *seeds(50.0)], claim)
    assert (one.rows[1]["top1"], one.difference) == (92.1, pytest.approx(-0.1))
    assert verdicts(children, claim) == ["untested (no run that it started from)"]
    assert verdicts(seeds(50.0), claim) == ["untested (no run of fake)"]


# ------------------------------------------------------------------------------------------------------ the two files


def page(text, heading):
    """A table of the page as a list of dicts."""
    lines = [line for line in text.split(f"## {heading}\n")[1].split("##")[0].splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_both_files_say_the_claim_its_numbers_and_its_runs():
    records = [*seeds(92.0, 92.2), *lot(91.0, 91.4), *lot(91.0, hyperparameters={"ratio": 0.9})]
    found = said(records, replace(BETTER, than=(Select("random_filter"), Select("other"))))
    files = claims.files(found)
    (claim,) = page(files["claims.md"], "The claims")
    assert (claim["claim"], claim["source"]) == ("Fakes are better.", "Table 1")
    assert claim["result"] == f"{found[0].verdict} 1, untested 1"
    one, missing = page(files["claims.md"], "The comparisons")
    assert one["first row, % (n seeds)"] == "fake, defaults: 92.10 ± 0.14 (n=2)"
    assert one["second row, % (n seeds)"] == "random_filter, defaults: 91.20 ± 0.28 (n=2)"
    low, high = stats.ttest_ind((92.0, 92.2), (91.0, 91.4), equal_var=False).confidence_interval(0.95)
    assert one["difference, 95 %"] == f"+0.90 ± {(high - low) / 2:.2f}"
    assert one["runs"] == " / ".join(" ".join(r.id for r in part) for part in (records[:2], records[2:4]))
    assert missing["verdict"] == "untested (no equal run of other)" and missing["runs"] == "–"
    lines = list(csv.DictReader(io.StringIO(files["claims.csv"])))
    assert [{k: line[k] for k in one} for line in lines] == [one, missing]
    assert {line["claim"] for line in lines} == {"Fakes are better."}


def test_a_claim_without_any_run_is_untested_and_no_claim_makes_no_table():
    (claim,) = page(claims.markdown(said(lot(91.0))), "The claims")
    assert claim["result"] == "untested: no run of fake"
    assert claims.markdown([]).endswith("No method has a claim.\n")


def test_cells_cannot_break_the_tables():
    (claim,) = page(claims.markdown(said(lot(91.0), replace(BETTER, text="a | b"))), "The claims")
    assert claim["claim"] == "a \\| b"


def test_the_order_of_the_records_changes_nothing():
    records = [*seeds(92.0, 92.2), *lot(91.0, 91.4), *lot(90.0, budget="paper"), *seeds(92.0, budget="paper")]
    assert claims.files(said(records)) == claims.files(said(records[::-1]))


def test_the_claims_of_the_methods_name_methods_recipes_settings_and_costs_that_there_are():
    classes = {name: entry.cls for name, entry in registry.entries().items() if entry.cls}
    every = [(name, claim) for name, cls in classes.items() for claim in cls.claims]
    assert len(every) > 20
    for name, claim in every:
        assert claim.better.method == name and claim.text.endswith(".") and claim.source
        assert claim.measure in ("top1", "after_compression") and claim.margin >= 0
        for select in (claim.better, *claim.than):
            cls = classes[select.method]
            variants = {recipe.partition("/")[2] for recipe in cls.recipes}
            assert set(select.variants or ()) <= variants, (name, select)
            assert select.settings.keys() <= cls.__dataclass_fields__.keys(), (name, select)
            assert set(claim.at) <= cls.__dataclass_fields__.keys() | set(claims.COSTS), (name, select)
