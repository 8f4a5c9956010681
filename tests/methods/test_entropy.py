"""Entropy pruning against numpy's histograms, layer by layer on masks, and the size of the paper's VGG-16."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from oracle import mutant, size_of, toy_task, worn
from torch import nn

from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.filter_pruning import entropy
from methods.filter_pruning.entropy import VGG16, Entropy

task_for = functools.partial(toy_task, noisy=3)
used = functools.partial(worn, mean=-0.6, std=0.8, gain=1.0)  # maps from almost empty to almost full

IMAGES, BINS = 40, 9


# -- the entropy of a column


def by_numpy(column, bins):
    """Entropy of a histogram: the shares of the bins, one by one."""
    counts, _ = np.histogram(column, bins)
    return -sum(n / len(column) * np.log(n / len(column)) for n in counts if n)


def columns():
    g = np.random.default_rng(0)
    steps = np.repeat(np.arange(8.0), 5)
    special = [np.zeros(40), np.full(40, 0.3), steps, np.eye(1, 40)[0], np.arange(40.0), -1e-9 * np.arange(40.0)]
    return torch.tensor(np.stack([*special, *np.maximum(g.normal(size=(30, 40)) - 0.5, 0), *g.normal(size=(30, 40))]).T)


def far(function):
    """Largest difference from numpy's entropies."""
    worst = 0.0
    for bins in (2, 8, 100):
        right = [by_numpy(column, bins) for column in columns().T.numpy()]
        worst = max(worst, np.abs(function(columns(), bins).numpy() - right).max())
    return worst


def test_entropies_are_those_of_numpys_histograms():
    assert far(entropy.entropy) < 1e-12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scores.aminmax(dim=0)", "scores.aminmax()"),
        ("place.long()", "place.round().long()"),
        ("counts / len(scores)", "counts / counts.sum()"),
        ("torch.special.entr(counts / len(scores)).sum(0)", "(counts / len(scores)).square().sum(0)"),
    ],
)
def test_the_histogram_catches_a_changed_line(old, new):
    assert far(mutant(entropy, old, new).entropy) > 1e-3


def test_activations_that_are_not_finite():
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        entropy.entropy(torch.tensor([[1.0], [float("inf")]]), 5)


# -- layer by layer


def normed(x, conv, bn, kept):
    """Convolution and batch normalisation (eval mode), written out; channels not in ``kept`` are zero behind it."""
    x, shape = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding), (1, -1, 1, 1)
    x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
    return (x * bn.weight.view(shape) + bn.bias.view(shape)) * torch.as_tensor(kept).view(shape).float()


def parts_of(net):
    """(convolution, BN) by name in network order."""
    if isinstance(net, TinyPlain):
        return {f"features.{i}": (net.features[i], net.features[i + 1]) for i in (0, 4)}
    pairs = {"conv1": (net.conv1, net.bn1)}
    for stage in ("layer1", "layer2", "layer3"):
        block = getattr(net, stage)[0]
        pairs |= {f"{stage}.0.conv1": (block.conv1, block.bn1), f"{stage}.0.conv2": (block.conv2, block.bn2)}
    return pairs


@torch.no_grad()
def maps_of(net, x, keep):
    """What stands behind each convolution's ReLU (behind the addition, where there is one): name -> (N, C, H, W)."""
    pairs, found = parts_of(net), {}
    for name, (conv, bn) in pairs.items():
        if name.startswith("features"):
            x = found[name] = normed(x, conv, bn, keep[name]).relu()
            x = F.max_pool2d(x, 2)
        elif name.endswith("conv2"):
            block = net.get_submodule(name.rpartition(".")[0])
            out = normed(found[name.replace("conv2", "conv1")], conv, bn, keep[name])
            x = found[name] = (out + block.shortcut(x)).relu()
        else:
            inner = found[name] = normed(x, conv, bn, keep[name]).relu()
            x = inner if name == "conv1" else x
    return found


def layer_by_layer(net, rates, task):
    """The published procedure on masks: a layer's filters of lowest entropy go, fine-tune, measure the next layer."""
    x = torch.cat([x for x, _ in task.batches(IMAGES)])
    pairs = parts_of(net)
    keep = {name: np.ones(len(conv.weight), bool) for name, (conv, _) in pairs.items()}

    @torch.no_grad()
    def hold(step):
        for name, (conv, bn) in pairs.items():
            for param in (conv.weight, conv.bias, bn.weight, bn.bias):
                if param is not None:
                    param[torch.as_tensor(~keep[name])] = 0

    for number, (name, rate) in enumerate(zip(pairs, rates, strict=True), 1):
        averages = maps_of(net, x, keep)[name].numpy().astype(np.float64).mean((2, 3))
        scores = np.array([by_numpy(column, BINS) for column in averages.T])
        left = int(len(scores) * (1 - rate) + 1e-9)
        order = sorted(range(len(scores)), key=lambda c: (round(scores[c], 9), c))
        keep[name][order[: len(scores) - left]] = False
        hold(0)
        last = number == len(rates)
        task.train(net, 3 if last else 1, of=2 + len(rates), lr=0.05, after_step=hold)
    return net, keep


CASES = {"plain": (TinyPlain, (0.5, 0.4)), "resnet": (tiny_resnet, (0.3, 0.5, 0.4, 0.6, 0.25, 0.75, 0.2))}


def gap(cls, case, budget="zero", seeds=(1, 2), **fields):
    """Largest difference in logits between ``compress`` and the procedure on masks."""
    make, rates = CASES[case]
    worst = 0.0
    for seed in seeds:
        torch.manual_seed(seed)
        dense, task, other = used(make()), task_for(budget=budget), task_for(budget=budget)
        x = torch.randn(6, 3, 16, 16)
        fields = {"ratios": rates, "images": IMAGES, "bins": BINS, "epochs": 3, "layer_epochs": 1, "lr": 0.05, **fields}
        net = cls(**fields).compress(copy.deepcopy(dense), task)
        right, keep = layer_by_layer(copy.deepcopy(dense), rates, other)
        with torch.no_grad():
            worst = max(worst, (net(x) - right(x)).abs().max().item())
        if cls is Entropy:
            assert task.details["kept"] == {name: int(kept.sum()) for name, kept in keep.items()}
            assert budget == "zero" or task.meter.train_calls == other.meter.train_calls == len(rates)
    return worst


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", ["zero", "paper"])
def test_layer_by_layer_as_on_masks(case, budget):
    assert gap(Entropy, case, budget, seeds=(1, 2) if budget == "zero" else (3,)) < 1e-4


@pytest.mark.parametrize(
    ("budget", "old", "new"),
    [
        ("zero", "maps.double().mean((2, 3))", "maps.double().amax((2, 3))"),
        ("zero", "torch.special.entr(counts / len(scores)).sum(0)", "-torch.special.entr(counts / len(scores)).sum(0)"),
        ("zero", "task.batches(self.images)", "task.batches(3)"),
        ("zero", "part, task.batches(self.images), self.bins", "part, task.batches(self.images), 2"),
        ("paper", "if not self.layerwise:", "if self.layerwise:"),
        ("paper", "self.layer_epochs if number < len(parts) else self.epochs", "total / len(parts)"),
        ("paper", "after_step=hold", "after_step=None"),
    ],
)
def test_the_oracle_catches_a_changed_line(budget, old, new):
    assert gap(mutant(entropy, old, new).Entropy, "resnet", budget, seeds=(3,)) > 1e-3


def test_each_layer_is_measured_behind_the_ones_already_pruned():
    torch.manual_seed(1)
    dense, x = used(tiny_resnet()), torch.randn(6, 3, 16, 16)
    fields = {"ratios": CASES["resnet"][1], "images": IMAGES, "bins": BINS}
    nets = [Entropy(**fields, layerwise=way).compress(copy.deepcopy(dense), task_for()) for way in (True, False)]
    with torch.no_grad():
        assert (nets[0](x) - nets[1](x)).abs().max() > 1e-2


def test_training_calls():
    for fields, calls in (
        ({}, 3),
        ({"layerwise": False}, 1),
        ({"ratio": 0.0}, 0),
        ({"ratios": (0, 0.5) * 3 + (0,)}, 3),
    ):
        task = task_for(budget="smoke")
        Entropy(images=4, bins=4, **fields).compress(used(tiny_resnet()), task)
        assert task.meter.train_calls == calls


# -- residual nets, published structures


def test_bottlenecks_lose_channels_inside_or_together():
    make = lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], width_per_group=8)  # noqa: E731
    inside = Entropy(images=3, bins=3).compress(make(), task_for((3, 32, 32)))
    assert [inside.layer1[0].conv3.out_channels, inside.layer1[1].conv1.out_channels] == [256, 4]
    together = Entropy(images=3, bins=3, stream=True).compress(make(), task_for((3, 32, 32)))
    widths = [stage[0].conv3.out_channels for stage in (together.layer1, together.layer2, together.layer3)]
    assert [together.conv1.out_channels, *widths, together.fc.in_features] == [32, 128, 256, 512, 1024]
    assert together(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_the_vgg16_of_the_paper():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    net = Entropy(ratios=VGG16, images=1, layerwise=False).compress(net, task_for((3, 32, 32)))
    params, macs = size_of(net, (3, 224, 224))
    assert (params, macs) == (8_322_696, 4_668_084_224)
    assert [138_357_544 / params, 15_470_264_320 / macs] == pytest.approx([16.64, 3.3], rel=5e-3)


def test_resnet50_reaches_the_printed_reductions():
    row = next(row for row in Entropy.reported if row.baseline == "resnet50_imagenet")
    method = Entropy(**{**Entropy.recipes[row.recipe], "images": 1, "layerwise": False})
    net = method.compress(torchvision.models.resnet50(), task_for((3, 224, 224)))
    params, macs = size_of(net, (3, 224, 224))
    assert row.macs_reduction <= 100 * (1 - macs / 4_089_184_256) < row.macs_reduction + 0.3
    assert 100 * (1 - params / 25_557_032) == pytest.approx(row.params_reduction, abs=1)


def test_vgg16_reaches_the_reduction_of_the_survey():
    row = next(row for row in Entropy.reported if row.baseline == "vgg16_cifar10")
    method = Entropy(**{**Entropy.recipes[row.recipe], "images": 1, "layerwise": False})
    params, _ = size_of(method.compress(VGG(), task_for((3, 32, 32))), (3, 32, 32))
    assert 100 * (1 - params / 14_991_946) == pytest.approx(row.params_reduction, abs=0.3)


# -- the dials


def kept(fields, net=None):
    task = task_for()
    Entropy(**{"images": 4, "bins": 4, "layerwise": False, **fields}).compress(net or used(tiny_resnet()), task)
    return task.details


def test_one_rate_leaves_the_stream_whole_unless_asked():
    assert kept({})["kept"] == {"layer1.0.conv1": 4, "layer2.0.conv1": 6, "layer3.0.conv1": 8}
    found = kept({"ratio": 0.25, "stream": True})["kept"]
    assert list(found.values()) == [6, 6, 6, 9, 9, 12, 12] and next(iter(found)) == "conv1"


def test_precedence():
    every = {"macs_reduction": 0.3, "ratio": 0.75, "ratios": CASES["resnet"][1]}
    by_macs = kept(every)["kept"]
    assert all(0.2 < n / w < 1 for n, w in zip(by_macs.values(), (8, 12, 16), strict=True))
    assert list(kept({**every, "macs_reduction": None})["kept"].values()) == [2, 3, 4]
    assert list(kept({"ratios": every["ratios"]})["kept"].values()) == [5, 4, 4, 4, 9, 4, 12]


def test_at_95_percent_the_run_ends_with_clamped_layers():
    task = task_for((3, 32, 32))
    net = Entropy(macs_reduction=0.95, images=2, layerwise=False).compress(ResNetCifar(56), task)
    assert size_of(net, (3, 32, 32))[1] <= 0.05 * size_of(ResNetCifar(56), (3, 32, 32))[1]
    assert task.details["clamped"] and all(task.details["kept"][name] == 1 for name in task.details["clamped"])
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert kept({"ratio": 0.95}, TinyPlain())["clamped"] == ["features.0", "features.4"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 7 convolutions"),
        ({"macs_reduction": 1.5}, r"1.5 lies outside \[0, 1\)"),
        ({"images": 0}, "images=0 with bins=100 gives no histogram"),
        ({"bins": 1}, "images=2 with bins=1 gives no histogram"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        Entropy(**{"images": 2, **fields}).compress(tiny_resnet(), task_for())


def test_every_recipe_has_a_rate_for_each_convolution():
    for key, fields in Entropy.recipes.items():
        assert len(fields.get("ratios", ())) in (0, 13 if key.startswith("vgg16") else 0)
