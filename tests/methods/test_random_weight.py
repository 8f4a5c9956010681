"""Random pruning of single weights: fair lots that follow the seed only, as many as asked, and none comes back."""

import copy
import math

import pytest
import torch
from oracle import mutant
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain
from baselines.task import Task
from methods.controls import random_weight
from methods.controls.random_weight import RandomWeight

DATA = synthetic(DataOptions(), train=64, test=4)


def task_for(seed=0, budget="zero", dense=None):
    return Task(base.load("tiny_plain_synthetic"), DATA, dense, budget=budget, seed=seed)


def layers(net):
    return [m.weight.detach() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def a_net(seed=0):
    torch.manual_seed(seed)
    return TinyPlain()


def pruned(cls, net, seed=0, budget="zero", dense=None, **fields):
    return cls(**fields).compress(copy.deepcopy(net), task_for(seed, budget, dense))


def is_a_fair_lot(cls, draws=64, share=0.75):
    """Whether every weight goes about as often as any other, as many as asked, whatever they are; the seed decides."""
    net, other = a_net(1), a_net(2)
    counts = [torch.zeros_like(weight) for weight in layers(net)]
    for seed in range(draws):
        for weight, count in zip(layers(pruned(cls, net, seed, sparsity=share)), counts, strict=True):
            if int((weight == 0).sum()) != int(weight.numel() * share):
                return False
            count += weight == 0
    # how often a weight goes is binomial; 5 deviations leave one of a million weights out
    far = 5 * math.sqrt(draws * share * (1 - share))
    fair = all(bool(((count - draws * share).abs() < far).all()) for count in counts)
    alike = all(
        torch.equal(one == 0, two == 0)
        for one, two in zip(
            layers(pruned(cls, net, 3, sparsity=share)), layers(pruned(cls, other, 3, sparsity=share)), strict=True
        )
    )
    return fair and alike


def test_lots_are_fair_and_follow_the_seed():
    assert is_a_fair_lot(RandomWeight)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.rand(weight.shape, generator=generator)", "weight"),
        ("torch.rand(weight.shape, generator=generator)", "torch.rand(weight.shape)"),
        ("seed_of(seed, ", "seed_of(0, "),
        ("DEFAULT_SPARSITY if self.sparsity is None else self.sparsity", "DEFAULT_SPARSITY"),
    ],
    ids=["magnitudes", "not repeatable", "seed ignored", "share ignored"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not is_a_fair_lot(mutant(random_weight, old, new).RandomWeight)


def layers_have_lots_of_their_own(cls):
    """Whether two layers of one shape lose different weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 768, bias=False), nn.Linear(768, 768, bias=False))
    one, two = layers(pruned(cls, net))
    return not torch.equal(one == 0, two == 0)


def test_layers_of_one_shape_have_lots_of_their_own():
    drawn = "drawn = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}"
    same = "drawn = {n: torch.rand(w.shape, generator=generator.manual_seed(seed)) for n, w in weights.items()}"
    assert layers_have_lots_of_their_own(RandomWeight)
    assert not layers_have_lots_of_their_own(mutant(random_weight, drawn, same).RandomWeight)


def test_a_share_for_each_layer_and_the_weights_that_stay_are_the_nets():
    net, shares = a_net(), (0.5, 0.0, 0.9, 0.25)
    for before, after, share in zip(
        layers(net), layers(pruned(RandomWeight, net, sparsities=shares)), shares, strict=True
    ):
        gone = after == 0
        assert int(gone.sum()) == int(before.numel() * share) and torch.equal(after[~gone], before[~gone])


def test_precedence():
    def zeros(**fields):
        return [int((weight == 0).sum()) for weight in layers(pruned(RandomWeight, a_net(), **fields))]

    halves = [weight.numel() // 2 for weight in layers(a_net())]
    assert zeros() == zeros(sparsity=0.5) == zeros(sparsity=0.5, sparsities=(0.1,) * 4) == halves
    assert zeros(sparsities=(0.1,) * 4) != halves and zeros(sparsity=0.0) == [0, 0, 0, 0]


def takes_the_parents_sparsities(cls):
    """Whether the dense net, not the parent, loses by lot as many weights as the parent in every layer."""
    dense, parent = a_net(1), a_net(2)
    for weight, share in zip(layers(parent), (0.2, 0.7, 0.5, 0.1), strict=True):
        weight.view(-1)[: int(weight.numel() * share)] = 0
    net = pruned(cls, parent, dense=dense, scope="parent")
    for before, theirs, after in zip(layers(dense), layers(parent), layers(net), strict=True):
        gone = after == 0
        as_many = int(gone.sum()) == int((theirs == 0).sum())
        if not as_many or torch.equal(gone, theirs == 0) or not torch.equal(after[~gone], before[~gone]):
            return False
    return all(param.requires_grad for param in net.parameters())


def test_proportions_of_another_run():
    assert takes_the_parents_sparsities(RandomWeight)
    for old, new in (("return dense, zeros", "return parent, zeros"), ("(w == 0).sum()", "(w != 0).sum()")):
        assert not takes_the_parents_sparsities(mutant(random_weight, old, new).RandomWeight)


def zeros_are_held(cls):
    """Whether training brings no weight back, and moves the others."""
    net = a_net()
    before, after = layers(pruned(cls, net, sparsity=0.8)), layers(pruned(cls, net, budget="smoke", sparsity=0.8))
    held = all(bool((two[one == 0] == 0).all()) for one, two in zip(before, after, strict=True))
    return held and not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_zeros_stay_while_it_trains():
    assert zeros_are_held(RandomWeight)
    assert not zeros_are_held(mutant(random_weight, ", after_step=masks.hold(model)", "").RandomWeight)


@pytest.mark.parametrize("key", sorted(RandomWeight.recipes))
def test_recipes_have_a_share_for_each_layer(key):
    net, shares = base.load(key.split("/")[0]).net(10), RandomWeight.recipes[key]["sparsities"]
    sizes = [weight.numel() for weight in layers(net)]
    assert len(shares) == len(sizes)
    if key.startswith("lenet"):  # Han et al., Tables 2 and 3: 22 and 36 thousand weights are left
        left = sum(n - int(n * share) for n, share in zip(sizes, shares, strict=True))
        assert round(left / 1000) == {"lenet300": 22, "lenet5": 36}[key.split("_")[0]]


def test_bad_values():
    for fields, sentence in (
        ({"scope": "net"}, "no scope 'net'"),
        ({"sparsity": 1.0}, r"sparsity 1.0 lies outside \[0, 1\)"),
        ({"sparsities": (0.5, 0.5)}, "2 sparsities were given, but there are 4 layers"),
        ({"scope": "parent"}, "give one with start=RUN"),
        ({"scope": "parent", "sparsity": 0.5}, "set no number beside it"),
    ):
        with pytest.raises(UserError, match=sentence):
            pruned(RandomWeight, a_net(), dense=a_net(), **fields)
    with pytest.raises(UserError, match="other layers than the dense net"):
        pruned(RandomWeight, TinyPlain(channels=(4, 6)), dense=a_net(), scope="parent")
