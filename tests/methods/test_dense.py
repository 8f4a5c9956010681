"""The dense row is the trained net itself."""

import copy

import torch
from oracle import mutant

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.models.tiny import tiny_resnet
from baselines.task import Task
from methods.controls import dense


def untouched(cls):
    """Whether ``compress`` gives back the very net, bit for bit, without training."""
    baseline, data, net = base.load("tiny_resnet_synthetic"), synthetic(DataOptions(), train=64, test=4), tiny_resnet()
    before, task = copy.deepcopy(net.state_dict()), Task(baseline, data, net, budget="short")
    result = cls().compress(net, task)
    same = all(torch.equal(value, before[key]) for key, value in result.state_dict().items())
    return result is net and same and task.meter.train_calls == 0 and not task.details


def test_the_net_comes_back_as_it_is():
    assert untouched(dense.Dense)


def test_the_oracle_catches_a_changed_line():
    for new in ("        return task.train(model, 1)", "        return task.fresh()"):
        assert not untouched(mutant(dense, "        return model", new).Dense)


def test_it_has_nothing_to_set():
    assert not dense.Dense.recipes and not vars(dense.Dense())
