"""Scratch-E and Scratch-B: the structure stays, the weights do not, and the epochs follow the MACs."""

import copy
import math

import pytest
import torch
from oracle import mutant, size_of
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.task import Task
from methods.controls import scratch
from methods.controls.scratch import Scratch

SHAPE = (3, 16, 16)
DATA = synthetic(DataOptions(), train=64, test=4)


def task_for(dense, budget="smoke"):
    return Task(base.load("tiny_plain_synthetic"), DATA, dense, budget=budget, seed=3)


def parent(seed=0):
    """A narrower TinyPlain with single weights at zero and one filter at zero, its bias and BN with it."""
    torch.manual_seed(seed)
    net = TinyPlain(channels=(5, 7))
    with torch.no_grad():
        for bn in (net.features[1], net.features[5]):
            for value in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
                value.uniform_(0.5, 1.5)
        net.features[4].weight[:, 1:3, 0] = 0
        net.features[0].weight[2] = net.features[0].bias[2] = net.features[1].weight[2] = net.features[1].bias[2] = 0
        net.classifier[1].weight[:, ::3] = 0
    return net


def zeros(net):
    """Where the weights of convolutions and linear layers, and the BN of the first one, are zero."""
    layers = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first = [net.features[0].bias, net.features[1].weight, net.features[1].bias]
    return [torch.stack([p[2] == 0 for p in first])] + [w == 0 for w in layers]


def keeps_the_structure_only(cls):
    """Whether zeros and widths are the parent's, and the result owes nothing else to the parent's weights."""
    net, other = parent(0), parent(1)
    got, twin = (cls().compress(copy.deepcopy(p), task_for(TinyPlain())) for p in (net, other))
    before, after = zeros(net), zeros(got)
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and size_of(got, SHAPE) == size_of(
        net, SHAPE
    )
    return same and all(
        torch.equal(a, b) for a, b in zip(got.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.fixture
def same_draws(monkeypatch):
    """Every draw starts from the same random state, as in a run: the runner seeds before ``compress``."""
    real = scratch.draw
    monkeypatch.setattr(scratch, "draw", lambda model: (torch.manual_seed(5), real(model)))


def seeded(module):
    """The module with draws that start from the same random state."""
    real = module.draw
    module.draw = lambda model: (torch.manual_seed(5), real(model))
    return module


def test_the_structure_stays_and_the_weights_do_not(same_draws):
    assert keeps_the_structure_only(Scratch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (", after_step=hold,", ","),
        ("        draw(model)\n", ""),
        ('elif hasattr(module, "reset_parameters")', "elif isinstance(module, nn.Dropout)"),
        ("elif isinstance(module, BatchNorm) and module.affine:", "elif False:"),
        ("== 0).flatten(1).all(1)", "== 0).flatten(1).any(1)"),
    ],
    ids=["zeros revive", "old weights", "old batch normalisation", "BN of a dead filter revives", "biases die"],
)
def test_the_structure_oracle_catches_a_changed_line(old, new):
    changed = seeded(mutant(scratch, old, new))
    if new == "== 0).flatten(1).any(1)":
        net = changed.Scratch().compress(parent(), task_for(TinyPlain()))
        assert bool((net.features[4].bias == 0).all()), "the mutant is what it should be"
        assert not bool((Scratch().compress(parent(), task_for(TinyPlain())).features[4].bias == 0).any())
    else:
        assert not keeps_the_structure_only(changed.Scratch)


def epochs_asked(cls, **fields):
    """Epochs that compress asks of the task for a parent that the dense net outweighs."""
    task, asked = task_for(TinyPlain()), []
    task.train = lambda model, epochs, **_: asked.append(epochs)
    cls(**fields).compress(parent(), task)
    return asked


def test_scratch_b_trains_longer_by_the_factor_of_the_macs():
    factor = size_of(TinyPlain(), SHAPE)[1] / size_of(parent(), SHAPE)[1]
    assert factor > 1.5
    assert epochs_asked(Scratch, epochs=100) == [100]
    assert epochs_asked(Scratch, epochs=100, mode="B") == [pytest.approx(100 * factor)]
    turned = mutant(
        scratch,
        "task.cost(task.teacher).macs / task.cost(model).macs",
        "task.cost(model).macs / task.cost(task.teacher).macs",
    )
    assert epochs_asked(turned.Scratch, epochs=100, mode="B") != [pytest.approx(100 * factor)]


@pytest.mark.parametrize("budget", ["short", "paper"])
def test_it_is_trained_as_the_dense_net_is(budget):
    """Liu et al.: the schedule of the dense net, not that of fine-tuning; only ``lr`` is the method's."""

    def schedule(module):
        baseline, used = base.load("resnet56_cifar10"), {}
        task = Task(baseline, DATA, TinyPlain(), budget=budget)
        task.train = lambda model, epochs, lr, recipe=baseline.finetune, **_: used.update(lr=lr, recipe=recipe)
        module.Scratch(lr=0.2).compress(parent(), task)
        assert used["lr"] == 0.2
        recipe = used["recipe"]
        return [recipe.factor(share) for share in (0.01, 0.04, 0.3, 0.6, 0.9)], recipe.weight_decay, recipe.sizes

    expected = {
        "paper": ([1, 1, 1, 0.1, 0.01], 1e-4, ()),
        "short": ([0.2, 0.8, *(0.5 * (1 + math.cos(math.pi * share)) for share in (0.3, 0.6, 0.9))], 5e-4, ()),
    }[budget]
    assert schedule(scratch) == (pytest.approx(expected[0]), *expected[1:])
    assert schedule(mutant(scratch, ", recipe=task.dense_recipe", "")) != (pytest.approx(expected[0]), *expected[1:])


def test_new_weights_have_the_published_spread():
    net = nn.Sequential(nn.Conv2d(30, 40, 3), nn.BatchNorm2d(40), nn.Linear(300, 100))
    with torch.no_grad():
        for value in net.state_dict().values():
            value.fill_(7)
    scratch.draw(net)
    assert net[0].weight.std().item() == pytest.approx((2 / (9 * 40)) ** 0.5, rel=0.03)
    assert net[2].weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not net[0].bias.any() and not net[2].bias.any() and not net[1].bias.any() and not net[1].running_mean.any()
    assert bool((net[1].weight == 1).all()) and bool((net[1].running_var == 1).all())


def test_a_residual_net_keeps_its_masked_stream():
    net = tiny_resnet()
    with torch.no_grad():
        for layer in (net.layer1[0].conv2, net.layer1[0].bn2):
            layer.weight[:3] = 0
        net.layer1[0].bn2.bias[:3] = 0
    got = Scratch().compress(copy.deepcopy(net), task_for(tiny_resnet()))
    block = got.layer1[0]
    assert not block.conv2.weight[:3].any() and not block.bn2.weight[:3].any() and not block.bn2.bias[:3].any()
    assert block.conv2.weight[3:].all() and not torch.equal(block.conv1.weight, net.layer1[0].conv1.weight)


def test_the_record_says_that_it_starts_from_scratch():
    task = task_for(TinyPlain())
    Scratch(mode="B").compress(parent(), task)
    assert task.from_scratch and task.details["epochs_at_full_budget"] > 160


def test_bad_mode():
    with pytest.raises(UserError, match="no mode 'F': choose E"):
        Scratch(mode="F").compress(parent(), task_for(TinyPlain()))
