"""A training that explodes ends at once and leaves a valid record that says so."""

from dataclasses import replace

import pytest
import torch
from test_run import config
from test_task import net, task

from baselines.errors import UserError
from baselines.task import EXPLODED
from methods.filter_pruning.apoz import APoZ
from methods.filter_pruning.l1_filter import L1Filter
from methods.search.amc import AMC
from methods.weight_pruning.han_pruning import HanPruning
from repro import boards, record
from repro.run import run, train_dense

HOT = 1e6


@pytest.mark.parametrize("method", [L1Filter, APoZ, HanPruning, AMC], ids=lambda cls: cls.__name__)
def test_a_run_that_diverges_is_recorded(tmp_path, method):
    """One train call, several whose net the method then refuses, several, and a search."""
    made = run(config(tmp_path, method(lr=HOT), budget="smoke"))
    ((kept,), problems) = record.load_all(tmp_path / "results")
    assert not problems and kept.id == made.id and kept.status == "diverged"
    assert kept.compressed.top1 is None and kept.compressed.params > 0 and kept.dense.top1 is not None
    assert kept.meter["steps"] < 4 or method is HanPruning, "no step is wasted"
    assert not [*(tmp_path / "cache" / "journal").glob("*")]
    (row,) = boards.build([replace(kept, budget="short", id="")], {}, {}).boards[0].rows
    assert (row["n"], row["diverged"], row["top1"]) == (0, 1, None)


def test_a_dense_training_that_diverges_is_recorded_and_is_no_base(tmp_path, monkeypatch):
    from baselines import base
    from baselines.base import Recipe

    baseline = base.load("tiny_plain_synthetic")
    monkeypatch.setitem(baseline.train, "smoke", Recipe(epochs=1, lr=HOT, batch_size=32))
    made = train_dense(config(tmp_path, budget="smoke"))
    assert made.status == "diverged" and made.dense.top1 is None
    assert record.load(tmp_path / "results" / "records" / made.place()).status == "diverged"
    with pytest.raises(UserError, match="dense tiny_plain_synthetic: the network has diverged"):
        run(config(tmp_path, budget="smoke"))


def test_the_loss_may_rise_but_not_explode():
    for height, fails in ((EXPLODED * 0.9, False), (EXPLODED * 1.1, True), (float("inf"), True)):
        t, model = task(budget="smoke"), net()
        losses = iter([0.5, 0.5, height, 0.5])

        def step(m, x, y, optimizer, losses=losses):
            return torch.tensor(next(losses))

        if fails:
            with pytest.raises(UserError, match="diverged in step 3 of 4"):
                t.train(model, 1, step=step)
        else:
            t.train(model, 1, step=step)
        assert t.meter.steps == (3 if fails else 4)


def test_bad_input_is_not_taken_for_divergence(tmp_path):
    with pytest.raises(UserError):
        run(config(tmp_path, L1Filter(ratio=-1.0), budget="smoke"))
