"""Random filter pruning: fair lots that follow the seed only, and the structures of the methods it controls."""

import contextlib
import copy

import pytest
import torch
from oracle import mutant, size_of

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.controls import random_filter
from methods.controls.random_filter import RandomFilter

CIFAR, TINY = (3, 32, 32), (3, 16, 16)
DATA = synthetic(DataOptions(), train=64, test=4)


def task_for(shape, seed=0, budget="zero"):
    task = Task(base.load("tiny_plain_synthetic"), DATA, budget=budget, seed=seed)
    task.example = torch.zeros(1, *shape)
    return task


def kept_by(cls, net, seed, **fields):
    """Which filters of TinyPlain's first convolution are left, found by their bias."""
    pruned = cls(**fields).compress(copy.deepcopy(net), task_for(TINY, seed))
    return tuple((pruned.features[0].bias[:, None] == net.features[0].bias).nonzero()[:, 1].tolist())


def is_a_fair_lot(cls, seeds=range(48)):
    """Whether each of 8 filters survives about as often as any other, and the seed alone decides."""
    torch.manual_seed(1)
    net, other = TinyPlain(), TinyPlain()
    counts = torch.zeros(8)
    for seed in seeds:
        kept = kept_by(cls, net, seed, ratio=0.5)
        if len(kept) != 4:
            return False
        counts[list(kept)] += 1
    # the number of survivals is binomial: 24 in the mean, 3.5 its deviation
    fair = bool(((counts - 24).abs() < 4 * 3.5).all())
    repeatable = all(kept_by(cls, net, s, ratio=0.5) == kept_by(cls, other, s, ratio=0.5) for s in range(5))
    return fair and repeatable


def test_lots_are_fair_and_follow_the_seed():
    assert is_a_fair_lot(RandomFilter)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.rand(layer.width, generator=generator)", "torch.arange(float(layer.width))"),
        ("seed_of(seed, ", "seed_of(0, "),
        ("torch.rand(layer.width, generator=generator)", "torch.rand(layer.width)"),
        ("DEFAULT_RATIO if self.ratio is None else self.ratio", "DEFAULT_RATIO / 2"),
    ],
    ids=["not random", "seed ignored", "not repeatable", "ratio ignored"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not is_a_fair_lot(mutant(random_filter, old, new).RandomFilter)


@pytest.mark.parametrize(
    ("recipe", "net", "size"),
    [
        ("vgg16_cifar10/l1_A", VGG, (5_399_690, 206_279_680)),
        ("vgg16_cifar10/hrank", VGG, (1_353_859, 43_232_112)),
        ("resnet56_cifar10/l1_A", lambda: ResNetCifar(56), (773_336, 112_435_840)),
        ("resnet56_cifar10/l1_B", lambda: ResNetCifar(56), (735_712, 90_907_264)),
        ("resnet56_cifar10/hrank", lambda: ResNetCifar(56), (545_324, 65_065_600)),
    ],
)
def test_equal_cost_controls(recipe, net, size):
    task = task_for(CIFAR)
    assert size_of(RandomFilter(**RandomFilter.recipes[recipe]).compress(net(), task), CIFAR) == size
    assert task.details["clamped"] == []


def test_every_recipe_has_a_rate_for_each_convolution():
    for key, fields in RandomFilter.recipes.items():
        assert len(fields["ratios"]) == (13 if key.startswith("vgg16") else 55)


def zeroed(net):
    """Per convolution of the stream, how many filters are zero together with BN weight and bias."""
    pairs = [(net.conv1, net.bn1)] + [(b[0].conv2, b[0].bn2) for b in (net.layer1, net.layer2, net.layer3)]
    every = [conv.weight.flatten(1).abs().sum(1) + bn.weight.abs() + bn.bias.abs() for conv, bn in pairs]
    return [int((value == 0).sum()) for value in every]


def stream_stays_zero(cls):
    """Whether the stream's filters that were drawn are zero after some training steps."""
    torch.manual_seed(0)
    net = cls(ratio=0.5, stream=True).compress(tiny_resnet(), task_for(TINY, budget="smoke"))
    return zeroed(net) == [4, 4, 6, 8] and net.layer3[0].conv1.out_channels == 8


def test_the_stream_is_zeroed_and_stays_zero():
    assert stream_stays_zero(RandomFilter)
    assert not stream_stays_zero(
        mutant(random_filter, ", after_step=surgery.hold(model, task.example)", "").RandomFilter
    )


def test_the_stream_is_left_alone_unless_asked():
    net = RandomFilter(ratio=0.5).compress(tiny_resnet(), task_for(TINY))
    assert zeroed(net) == [0, 0, 0, 0]
    assert [net.get_submodule(f"layer{s}.0.conv1").out_channels for s in (1, 2, 3)] == [4, 6, 8]


def test_global_scope_removes_the_share_of_all_filters():
    widths = set()
    for seed in range(4):
        net = RandomFilter(ratio=0.4, scope="global").compress(TinyPlain(), task_for(TINY, seed))
        pair = (net.features[0].out_channels, net.features[4].out_channels)
        assert sum(pair) == 20 - 8
        widths.add(pair)
    assert len(widths) > 1


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_macs_budget(scope):
    net = VGG(width=0.125)
    _, whole = size_of(net, CIFAR)
    pruned = RandomFilter(macs_reduction=0.5, scope=scope).compress(net, task_for(CIFAR))
    assert 0.4 * whole < size_of(pruned, CIFAR)[1] <= 0.5 * whole


def test_roundings():
    assert len(kept_by(RandomFilter, TinyPlain(), 0, ratio=0.3, rounding="removed")) == 6  # int(2.4) go
    assert len(kept_by(RandomFilter, TinyPlain(), 0, ratio=0.3, rounding="keep")) == 5  # int(5.6) stay


def parents():
    """Networks that other methods may have left: (dense, pruned, their widths) with filters gone and filters zeroed."""
    torch.manual_seed(2)
    plain, residual = TinyPlain(), tiny_resnet()
    pruned = RandomFilter(ratios=(0.25, 0.75)).compress(copy.deepcopy(plain), task_for(TINY, seed=4))
    masked = RandomFilter(ratio=0.5, stream=True).compress(copy.deepcopy(residual), task_for(TINY, seed=4))
    return [(plain, pruned), (residual, masked)]


def follows_the_parent(cls):
    """Whether the dense net's own filters are drawn, as many per layer as the parent has, and others than it has."""
    good = []
    for dense, parent in parents():
        task = task_for(TINY)
        task._dense = dense
        got = cls(scope="parent").compress(copy.deepcopy(parent), task)
        same_size = size_of(got, TINY) == size_of(parent, TINY)
        same_zeros = not isinstance(got, ResNetCifar) or zeroed(got) == zeroed(parent)
        ours, theirs, whole = (
            next(m.weight for m in n.modules() if isinstance(m, torch.nn.Conv2d)) for n in (got, parent, dense)
        )
        from_dense = all(any(torch.equal(w, v) for v in whole) for w in ours if w.any())
        good.append(same_size and same_zeros and from_dense and not torch.equal(ours, theirs))
    return all(good)


def test_the_layer_widths_of_a_parent():
    assert follows_the_parent(RandomFilter)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(width - left[name]) / width for", "left[name] / width for"),
        ("return dense, tuple(", "return parent, tuple("),
        ("int(alive.sum())", "len(alive)"),
    ],
    ids=["the share that stays", "prunes the parent again", "zeroed filters count"],
)
def test_the_parent_oracle_catches_a_changed_line(old, new):
    with contextlib.suppress(UserError):
        assert not follows_the_parent(mutant(random_filter, old, new).RandomFilter)


def test_bad_values():
    task = task_for(TINY)
    task._dense = TinyPlain()
    for fields, sentence in (
        ({"scope": "net"}, "no scope 'net'"),
        ({"scope": "global", "ratios": (0.5, 0.5)}, "scope=global takes one ratio"),
        ({"rounding": "up"}, "no rounding 'up'"),
        ({"ratio": 1.5}, r"ratio 1.5 of features.0 lies outside \[0, 1\)"),
        ({"ratios": (0.5,)}, "1 pruning ratios were given, but there are 2 convolutions"),
        ({"scope": "parent", "ratio": 0.5}, "scope=parent takes its proportions from the net of start=RUN"),
        ({"scope": "parent"}, "copies the layer widths of a pruned net"),
    ):
        with pytest.raises(UserError, match=sentence):
            RandomFilter(**fields).compress(TinyPlain(), task)
