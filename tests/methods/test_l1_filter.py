"""L1-norm filter pruning against numpy, and its published structures through the method's own code."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from oracle import mutant, size_of
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.lenet import lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.filter_pruning import l1_filter
from methods.filter_pruning.l1_filter import L1Filter, block_rates


def task_for(shape, budget="zero"):
    """A task on toy data whose example has the given (C, H, W); at budget zero nothing is trained."""
    task = Task(base.load("tiny_plain_synthetic"), synthetic(DataOptions(), train=64, test=4), budget=budget)
    task.example = torch.zeros(1, *shape)
    return task


def expected_plain(net, ratio, greedy):
    """What must be left of TinyPlain's convolutions and its first linear layer, by the paper's steps in numpy."""
    weights = [net.features[i].weight.detach().numpy().astype(np.float64) for i in (0, 4)]
    inputs, kept = np.arange(3), []
    for weight in weights:
        seen = weight[:, inputs] if greedy else weight
        sums = np.abs(seen).sum(axis=(1, 2, 3))
        left = int(np.floor(len(sums) * (1 - ratio) + 1e-9))
        kept.append(np.sort(np.argsort(sums)[len(sums) - left :]))
        inputs = kept[-1]
    linear = net.classifier[1].weight.detach().numpy().reshape(24, 12, 16)
    return [
        weights[0][kept[0]],
        weights[1][kept[1]][:, kept[0]],
        linear[:, kept[1]].reshape(24, -1),
        net.features[5].running_mean.numpy()[kept[1]],
    ]


def follows_the_paper(cls, ratio=0.6, greedy=True, seeds=range(3)):
    """Whether ``compress`` leaves exactly the weights that the paper's steps leave, on several networks."""
    for seed in seeds:
        torch.manual_seed(seed)
        net = TinyPlain()
        nn.init.normal_(net.features[5].running_mean)
        # uneven kernels, so that what a removed channel fed into a filter matters
        net.features[4].weight.data *= torch.rand(12, 8, 1, 1) ** 3
        expected = expected_plain(net, ratio, greedy)
        pruned = cls(ratio=ratio, greedy=greedy).compress(net, task_for((3, 16, 16)))
        found = [pruned.features[0].weight, pruned.features[4].weight, pruned.classifier[1].weight]
        found.append(pruned.features[5].running_mean)
        for ours, theirs in zip(found, expected, strict=True):
            if ours.shape != theirs.shape or not np.array_equal(ours.detach().numpy(), theirs.astype(np.float32)):
                return False
    return True


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_smallest_sums_go(ratio, greedy):
    assert follows_the_paper(L1Filter, ratio, greedy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".weight.abs().sum((2, 3))", ".weight.sum((2, 3))"),
        ("(sums[name] * alive[name]).sum(1) if self.greedy else", ""),
        ('rounding="keep"', 'rounding="removed"'),
        ("*= kept[name].to(scores.device)", "*= ~kept[name].to(scores.device)"),
        ("{name: scores}, rate", "{name: -scores}, rate"),
    ],
    ids=["signed sums", "never greedy", "other rounding", "counts the dead kernels", "largest go"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not follows_the_paper(mutant(l1_filter, old, new).L1Filter)


def test_greedy_and_independent_rank_differently():
    torch.manual_seed(0)
    net = TinyPlain()
    net.features[4].weight.data *= torch.rand(12, 8, 1, 1) ** 3
    greedy, independent = (
        L1Filter(ratio=0.6, greedy=choice).compress(copy.deepcopy(net), task_for((3, 16, 16)))
        for choice in (True, False)
    )
    assert torch.equal(greedy.features[0].weight, independent.features[0].weight)
    assert not torch.equal(greedy.features[4].weight, independent.features[4].weight)


CIFAR = (3, 32, 32)
RESNET110 = {"A": block_rates((0.5, 0, 0), 18, skip=(36,)), "B": block_rates((0.5, 0.4, 0.3), 18, skip=(36, 38, 74))}


@pytest.mark.parametrize(
    ("net", "fields", "params", "macs"),
    [
        (VGG, L1Filter.recipes["vgg16_cifar10"], 5_399_690, 206_279_680),
        (lambda: ResNetCifar(56), {"ratio": 0.0}, 853_018, 125_485_696),
        (lambda: ResNetCifar(56), L1Filter.recipes["resnet56_cifar10/A"], 773_336, 112_435_840),
        (lambda: ResNetCifar(56), L1Filter.recipes["resnet56_cifar10"], 735_712, 90_907_264),
        (lambda: ResNetCifar(110), {"ratios": RESNET110["A"]}, 1_688_522, 212_779_648),
    ],
    ids=["vgg16-A", "resnet56", "resnet56-A", "resnet56-B", "resnet110-A"],
)
def test_published_structures(net, fields, params, macs):
    task = task_for(CIFAR)
    assert size_of(L1Filter(**fields).compress(net(), task), CIFAR) == (params, macs)
    assert task.details["clamped"] == []


def test_resnet110_b_is_as_printed():
    params, macs = size_of(L1Filter(ratios=RESNET110["B"]).compress(ResNetCifar(110), task_for(CIFAR)), CIFAR)
    assert (params // 10_000, macs // 1_000_000) == (116, 155)  # 1.16e6 and 1.55e8


def test_resnet34_pruned_a():
    """30 % of the first convolutions of stages 1 to 3; the paper's numbers leave out the projection shortcuts."""
    ratios, number = [0.0], 2
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            ratios += [0.0] if stage > 1 and block == 0 else []  # the projection comes first
            whole = stage == 4 or number in (2, 8, 14, 16, 26)
            ratios += [0.0 if whole else 0.3, 0.0]
            number += 2
    net = L1Filter(ratios=tuple(ratios)).compress(torchvision.models.resnet34(), task_for((3, 224, 224)))
    assert size_of(net, (3, 224, 224)) == (20_151_764, 3_100_184_576)


@pytest.mark.parametrize(
    ("recipe", "dense", "pruned"),
    [
        ("vgg16_cifar10", (14_991_946, 313_463_808), (5_399_690, 206_279_680)),
        ("resnet56_cifar10/A", (853_018, 125_485_696), (773_336, 112_435_840)),
        ("resnet56_cifar10", (853_018, 125_485_696), (735_712, 90_907_264)),
    ],
)
def test_reported_counts_are_those_of_the_structures(recipe, dense, pruned):
    row = next(row for row in L1Filter.reported if row.recipe == recipe)
    assert pruned == (pytest.approx(row.params, rel=0.01), pytest.approx(row.macs, rel=0.01))
    reductions = [100 * (1 - new / old) for old, new in zip(dense, pruned, strict=True)]
    assert reductions == pytest.approx([row.params_reduction, row.macs_reduction], abs=0.1)


def test_one_ratio_leaves_the_residual_stream_whole():
    dense = tiny_resnet()
    pruned = L1Filter(ratio=0.5).compress(copy.deepcopy(dense), task_for((3, 16, 16)))
    assert torch.equal(pruned.conv1.weight, dense.conv1.weight)
    for stage, width in (("layer1", 8), ("layer2", 12), ("layer3", 16)):
        block = getattr(pruned, stage)[0]
        assert (block.conv1.out_channels, block.conv2.in_channels, block.conv2.out_channels) == (
            width // 2,
            width // 2,
            width,
        )


def test_macs_budget_and_precedence():
    net = VGG(width=0.125)
    whole = size_of(net, CIFAR)[1]
    by_macs, by_ratio, by_default = (
        L1Filter(**fields).compress(copy.deepcopy(net), task_for(CIFAR))
        for fields in (
            {"macs_reduction": 0.5, "ratio": 0.9, "ratios": (0.9,) * 13},
            {"ratio": 0.5, "ratios": (0.9,) * 13},
            {},
        )
    )
    assert 0.4 * whole < size_of(by_macs, CIFAR)[1] <= 0.5 * whole
    assert size_of(by_ratio, CIFAR) == size_of(by_default, CIFAR)
    assert by_ratio.features[0].out_channels == 4


def test_clamped_layers_are_reported():
    task = task_for((3, 16, 16))
    net = L1Filter(ratio=0.9).compress(TinyPlain(), task)
    assert net.features[0].out_channels == 1
    assert task.details == {"clamped": ["features.0"], "kept": {"features.0": 1, "features.4": 1}}


def test_bad_rates():
    task = task_for((3, 16, 16))
    with pytest.raises(UserError, match="3 pruning ratios were given, but there are 2 convolutions"):
        L1Filter(ratios=(0.1, 0.2, 0.3)).compress(TinyPlain(), task)
    with pytest.raises(UserError, match=r"ratio 1.0 of features.0 lies outside \[0, 1\)"):
        L1Filter(ratio=1.0).compress(TinyPlain(), task)
    with pytest.raises(UserError, match=r"reduction -0.5 lies outside \[0, 1\)"):
        L1Filter(macs_reduction=-0.5).compress(TinyPlain(), task)
    with pytest.raises(UserError, match="no convolution"):
        L1Filter().compress(lenet_300_100(), task_for((1, 28, 28)))


def test_it_retrains():
    torch.manual_seed(0)
    net, task = TinyPlain(), task_for((3, 16, 16), "smoke")
    before = net.features[0].weight.detach().clone()
    pruned = L1Filter(ratio=0.0).compress(net, task)
    assert task.meter.train_calls == 1
    assert task.curve[0][2] == pytest.approx(1e-3)
    assert not torch.equal(pruned.features[0].weight, before)
