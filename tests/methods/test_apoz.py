"""APoZ against counting by hand: which neurons go, round after round, and the structures that Distiller printed."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from oracle import mutant, size_of, toy_task, worn

from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.filter_pruning import apoz
from methods.filter_pruning.apoz import APoZ

task_for = functools.partial(toy_task, baseline="tiny_plain_synthetic")
used = functools.partial(worn, mean=-0.3, std=0.7, gain=2.0, bias=(-0.3, 0.7))  # very different shares of zeros

IMAGES = 12
PLAIN = ("features.0", "features.4", "classifier.1")  # the layers of TinyPlain that a ReLU follows


# -- the rule, by counting


def forward(net, x, keep):
    """(behind-ReLU outputs of TinyPlain by name, logits) in eval mode, written out; what is not in ``keep`` is zero."""
    found = {}
    for i in (0, 4):
        conv, bn = net.features[i], net.features[i + 1]
        x, shape = F.conv2d(x, conv.weight, conv.bias, padding=1), (1, -1, 1, 1)
        x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
        x = (x * bn.weight.view(shape) + bn.bias.view(shape)).relu() * keep[f"features.{i}"].view(shape)
        found[f"features.{i}"] = x
        x = F.max_pool2d(x, 2)
    first, last = net.classifier[1], net.classifier[3]
    x = found["classifier.1"] = (x.flatten(1) @ first.weight.T + first.bias).relu() * keep["classifier.1"]
    return found, x @ last.weight.T + last.bias


def percentages(net, x, keep):
    """Share of zeros of every neuron that is still there, counted value by value: name -> {neuron: share}."""
    result = {}
    for name, maps in forward(net, x, keep)[0].items():
        values = maps.numpy().swapaxes(0, 1).reshape(maps.shape[1], -1)
        alive = [c for c in range(len(values)) if keep[name][c]]
        result[name] = {c: sum(1 for v in values[c] if v == 0) / len(values[c]) for c in alive}
    return result


def whole(net):
    return {name: torch.ones(len(net.get_submodule(name).weight)) for name in PLAIN}


def by_rule(percent, layers):
    """The neurons more than one standard deviation above the mean of their layer."""
    gone = {}
    for name in layers:
        values = np.array(list(percent[name].values()))
        limit = values.mean() + np.sqrt(((values - values.mean()) ** 2).sum() / len(values))
        gone[name] = [c for c, share in percent[name].items() if share > limit]
    return gone


def by_rate(percent, targets):
    """The neurons of highest APoZ, the first ones among equals, until ``targets`` are left."""
    gone = {}
    for name, left in targets.items():
        order = sorted(percent[name], key=lambda c: (-percent[name][c], c))
        gone[name] = order[: len(order) - left]
    return gone


def rule_rounds(net, x, keep, number, start):
    """What one round of the rule removes, one layer at the start and its next neighbours later; ``start`` remembers."""
    percent = percentages(net, x, keep)
    if not start:
        start.append(max(range(3), key=lambda i: np.mean(list(percent[PLAIN[i]].values()))))
    return by_rule(percent, [name for i, name in enumerate(PLAIN) if abs(i - start[0]) <= number - 1])


def rate_rounds(net, x, keep, number, start):
    """What one of three rounds towards half of the neurons removes."""
    widths = {name: len(mask) for name, mask in keep.items()}
    return by_rate(percentages(net, x, keep), {n: w - (w - w // 2) * number // 3 for n, w in widths.items()})


CASES = {"rule": (rule_rounds, {"first": 1, "rounds": 3}), "rate": (rate_rounds, {"ratio": 0.5, "rounds": 3})}


def masked(net, case, budget):
    """The net after three rounds by masks alone: what is gone is zeroed after every step of the retraining."""
    task, keep, start = task_for(budget=budget), whole(net), []
    x = torch.cat([x for x, _ in task.batches(IMAGES)])

    @torch.no_grad()
    def hold(step):
        for name, mask in keep.items():
            owner, last = name.rsplit(".", 1)
            layers = [net.get_submodule(name)]
            layers += [net.get_submodule(f"{owner}.{int(last) + 1}")] if owner == "features" else []
            for param in (p for layer in layers for p in layer.parameters()):
                param[mask == 0] = 0

    for number in (1, 2, 3):
        with torch.no_grad():
            for name, neurons in CASES[case][0](net, x, keep, number, start).items():
                keep[name][neurons] = 0
        hold(0)
        task.train(net, 2, of=6, lr=0.05, after_step=hold)
    return net, keep


def gap(cls, case, budget="zero", seeds=(0, 1, 2)):
    """Largest difference in logits between ``compress`` and the rounds by masks, on several nets."""
    worst = 0.0
    for seed in seeds:
        torch.manual_seed(seed)
        dense, task = used(TinyPlain()), task_for(budget=budget)
        x = torch.randn(6, 3, 16, 16)
        net = cls(**CASES[case][1], images=IMAGES, epochs=2, lr=0.05).compress(copy.deepcopy(dense), task)
        right, keep = masked(copy.deepcopy(dense), case, budget)
        with torch.no_grad():
            worst = max(worst, (net(x) - right(x)).abs().max().item())
        assert cls is not APoZ or task.details["kept"].items() <= {n: int(k.sum()) for n, k in keep.items()}.items()
    return worst


@pytest.mark.parametrize("case", CASES)
def test_the_neurons_of_highest_apoz_go(case):
    assert gap(APoZ, case) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_trimming_and_retraining_alternate(case):
    assert gap(APoZ, case, "paper", seeds=(4,)) < 1e-4


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("rule", "(maps == 0)", "(maps != 0)"),
        ("rule", ".mean(2)", ".amax(2)"),
        ("rule", "zeros.mean() + deviations", "zeros.mean() + 0.3 * deviations"),
        ("rule", "deviations * zeros.std(correction=0)", "deviations * zeros.var(correction=0)"),
        ("rule", "key=lambda name: -zeros[name].mean()", "key=lambda name: zeros[name].mean()"),
        ("rule", "(number - 1) * self.spread", "0"),
        ("rate", "task.batches(self.images)", "task.batches(1)"),
        ("rate", "1 - share.cpu()", "share.cpu()"),
        ("rate", "(maps == 0)", "(maps <= 1)"),
    ],
)
def test_the_oracle_catches_a_changed_line(case, old, new):
    assert gap(mutant(apoz, old, new).APoZ, case) > 1e-2


@pytest.mark.parametrize(
    ("old", "new"), [("* number // self.rounds", ""), ("lr=self.lr, after_step=hold", "after_step=hold")]
)
def test_the_retrained_oracle_catches_a_changed_line(old, new):
    assert gap(mutant(apoz, old, new).APoZ, "rate", "paper", seeds=(4,)) > 1e-2


def test_shares_of_zeros_are_those_of_numpy():
    maps = (torch.randn(3, 5, 7, 4) + torch.linspace(-2, 2, 5).view(1, 5, 1, 1)).relu()
    for values in (maps, maps.contiguous(memory_format=torch.channels_last), maps[:, :, 0, 0]):
        counted = [[np.mean(values[n, c].numpy() == 0) for c in range(5)] for n in range(3)]
        assert np.allclose(apoz.zero_shares(values).numpy(), counted, rtol=0, atol=1e-15)


def test_the_deviation_is_that_of_a_whole_population():
    zeros = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.9, 0.9], dtype=torch.float64)  # 0.367 + 0.377, of a sample 0.413
    for limit, stay in ((1.40, False), (1.42, True)):  # (0.9 - 0.367) / 0.377 = 1.414, of a sample 1.291
        assert apoz.usual(zeros, limit).tolist() == [True] * 4 + [stay] * 2


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, 0.0, 1.0])
def test_equal_neurons_all_stay(value):
    for width in (1, 3, 10, 512):
        assert apoz.usual(torch.full((width,), value, dtype=torch.float64), 0.0).all()


def test_activations_that_are_not_finite():
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        apoz.zero_shares(torch.full((1, 2), float("nan")))


# -- LeNet, residual nets, published structures


def test_lenet_loses_the_neurons_that_a_relu_follows():
    task = task_for((1, 28, 28))
    net = APoZ(**APoZ.recipes["lenet5_mnist5k"]).compress(lenet5(), task)
    left = task.details["kept"]["ip1"]
    assert list(task.details["kept"]) == ["ip1"] and 0 < left < 500
    widths = [net.conv1.out_channels, net.conv2.out_channels, net.ip1.in_features, net.ip1.out_features]
    assert [*widths, net.ip2.in_features] == [20, 50, 800, left, left]
    net = APoZ(ratio=0.25, rounds=2, images=2).compress(lenet_300_100(), task_for((1, 28, 28)))
    assert [net.ip1.out_features, net.ip2.in_features, net.ip2.out_features] == [225, 225, 75]


def test_layers_without_a_relu():
    with pytest.raises(UserError, match="No ReLU follows conv1, conv2"):
        APoZ(ratios=(0.5, 0.5, 0.5), images=2).compress(lenet5(), task_for((1, 28, 28)))
    with pytest.raises(UserError, match="No prunable layer of this network is followed by a ReLU"):
        APoZ(neurons=False, images=2).compress(lenet5(), task_for((1, 28, 28)))
    task = task_for((1, 28, 28))
    APoZ(ratios=(0, 0, 0.5), images=2).compress(lenet5(), task)
    assert task.details["kept"] == {"ip1": 250}


def weights_and_macs(net, shape):
    return sum(p.numel() for p in net.parameters() if p.dim() > 1), size_of(net, shape)[1]


@pytest.mark.parametrize(
    ("recipe", "weights", "macs"),
    [
        # as printed, less the two projections (512 and 2,048 weights, 131,072 MACs each) that its ResNet-56 has
        ("resnet56_cifar10/distiller_A", 634_640 - 2_560, 78_856_832 - 262_144),
        ("resnet56_cifar10/distiller_B", 570_704 - 2_560, 67_797_632 - 262_144),
    ],
)
def test_the_structures_of_distiller(recipe, weights, macs):
    method = APoZ(**{**APoZ.recipes[recipe], "images": 1, "rounds": 1})
    dense, net = ResNetCifar(56), method.compress(ResNetCifar(56), task_for((3, 32, 32)))
    assert weights_and_macs(net, (3, 32, 32)) == (weights, macs)
    row = next(row for row in APoZ.reported if row.recipe == recipe)
    (old, old_macs), (new, new_macs) = size_of(dense, (3, 32, 32)), size_of(net, (3, 32, 32))
    reductions = [100 * (1 - new / old), 100 * (1 - new_macs / old_macs)]
    assert reductions == pytest.approx([row.params_reduction, row.macs_reduction], abs=0.2)


def test_the_resnet50_of_distiller():
    row = next(row for row in APoZ.reported if row.baseline == "resnet50_imagenet")
    method = APoZ(**{**APoZ.recipes[row.recipe], "images": 1, "rounds": 1})
    task = task_for((3, 32, 32))
    net = method.compress(torchvision.models.resnet50(), task)
    assert weights_and_macs(net, (3, 224, 224)) == (row.params, row.macs)
    assert net.layer3[0].downsample[0].out_channels == 1024 and net.layer3[0].conv1.out_channels == 128


def test_bottlenecks_lose_the_channels_of_their_stream():
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], width_per_group=8)
    net = APoZ(ratio=0.5, stream=True, images=2, rounds=2).compress(net, task_for((3, 32, 32)))
    widths = [net.conv1.out_channels, *(stage[0].conv3.out_channels for stage in (net.layer1, net.layer2, net.layer3))]
    assert widths == [32, 128, 256, 512] and net.fc.in_features == 1024
    assert [net.layer1[1].conv1.in_channels, net.layer1[1].conv1.out_channels] == [128, 4]
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_zeroed_filters_of_the_stream_stay_zero_and_are_counted():
    task = task_for(budget="smoke")
    net = APoZ(ratio=0.5, stream=True, images=4, rounds=3).compress(used(tiny_resnet()), task)
    for name, bn in (("conv1", "bn1"), ("layer1.0.conv2", "layer1.0.bn2"), ("layer3.0.conv2", "layer3.0.bn2")):
        conv, bn = net.get_submodule(name), net.get_submodule(bn)
        dead = (conv.weight == 0).flatten(1).all(1) & (bn.weight == 0) & (bn.bias == 0)
        assert int(dead.sum()) == conv.out_channels // 2 == task.details["kept"][name]
    assert net.layer1[0].conv1.out_channels == 4


def test_the_rule_trims_residual_nets_inside_their_blocks():
    task = task_for()
    APoZ(first=0, rounds=1, images=IMAGES).compress(used(tiny_resnet()), task)
    assert set(task.details["kept"]) == {f"layer{stage}.0.conv1" for stage in (1, 2, 3)}


# -- the dials


def kept(fields, net=None):
    task = task_for()
    APoZ(**{"images": 2, "rounds": 1, **fields}).compress(net or used(TinyPlain()), task)
    return task.details


def test_precedence():
    every = {"macs_reduction": 0.3, "ratio": 0.75, "ratios": (0.25, 0.25, 0.25)}
    by_macs = kept(every)["kept"]
    assert all(0.5 < n / w < 1 for n, w in zip(by_macs.values(), (8, 12, 24), strict=True))
    assert kept({**every, "macs_reduction": None})["kept"] == dict(zip(PLAIN, (2, 3, 6), strict=True))
    assert kept({"ratios": every["ratios"]})["kept"] == dict(zip(PLAIN, (6, 9, 18), strict=True))
    assert kept({"ratio": 0.75, "neurons": False})["kept"] == dict(zip(PLAIN[:2], (2, 3), strict=True))


def test_roundings():
    assert list(kept({"ratio": 0.3})["kept"].values()) == [5, 8, 16]
    assert list(kept({"ratio": 0.3, "rounding": "removed"})["kept"].values()) == [6, 9, 17]


def test_at_95_percent_the_run_ends_with_clamped_layers():
    task = task_for((3, 32, 32))
    net = APoZ(macs_reduction=0.95, images=1, rounds=2).compress(ResNetCifar(56), task)
    assert size_of(net, (3, 32, 32))[1] <= 0.05 * size_of(ResNetCifar(56), (3, 32, 32))[1]
    assert task.details["clamped"] and all(task.details["kept"][name] == 1 for name in task.details["clamped"])
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert kept({"ratio": 0.95})["clamped"] == list(PLAIN[:2])
    vgg = APoZ(macs_reduction=0.95, images=1, rounds=2).compress(VGG(width=0.125), task_for((3, 32, 32)))
    assert size_of(vgg, (3, 32, 32))[1] <= 0.05 * size_of(VGG(width=0.125), (3, 32, 32))[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 3"),
        ({"macs_reduction": 1.5}, r"1.5 lies outside \[0, 1\)"),
        ({"rounding": "up", "ratio": 0.5}, "no rounding 'up'"),
        ({"images": 0}, "images=0 leaves no way to trim"),
        ({"rounds": 0}, "rounds=0 leaves no way to trim"),
        ({"first": -1}, "first=-1 leaves no way to trim"),
        ({"deviations": -0.5}, "deviations=-0.5 leaves no way to trim"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        APoZ(**{"images": 2, **fields}).compress(TinyPlain(), task_for())


def test_a_goal_out_of_reach_is_refused_before_training():
    task = task_for(budget="smoke")
    with pytest.raises(UserError, match="out of reach"):
        APoZ(macs_reduction=0.99999, images=2).compress(TinyPlain(), task)
    assert task.meter.train_calls == 0


def test_every_recipe_has_a_rate_for_each_convolution():
    widths = {"resnet56": 55, "resnet50": 53}
    for key, fields in APoZ.recipes.items():
        assert len(fields.get("ratios", ())) in (0, widths.get(key.split("_")[0]))
