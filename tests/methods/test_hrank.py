"""HRank: ranks against numpy map by map, its choice by a written-out forward pass, its published structures."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from oracle import mutant, size_of, worn
from oracle import toy_task as task_for
from torch import nn

from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.filter_pruning import hrank
from methods.filter_pruning.hrank import RESNET50, RESNET56, VGG16, HRank
from methods.kit import features

used = functools.partial(worn, mean=-0.6, std=0.6, gain=1.0)  # maps of many different ranks

IMAGES = 12


# -- ranks


def degenerate_maps():
    """(1, C, 8, 8): zeros, one entry, repeated rows, sums, low rank with noise above and below the tolerance."""
    g = np.random.default_rng(0)
    row, low = g.normal(size=8), g.normal(size=(8, 3)) @ g.normal(size=(3, 8))
    one, repeated = np.zeros((8, 8)), g.normal(size=(8, 8))
    one[2, 5], repeated[4:] = 1, repeated[:4]
    scale = np.linalg.norm(low, 2)
    tolerance = 8 * np.finfo(np.float32).eps
    maps = [
        np.zeros((8, 8)), one, np.ones((8, 8)), np.tile(row, (8, 1)), repeated, np.eye(8), low,
        low + 1e-3 * scale * g.normal(size=(8, 8)), low + 1e-9 * scale * g.normal(size=(8, 8)),
        np.diag([1, 1, 3 * tolerance, tolerance / 3, 0, 0, 0, 0]), 1e-12 * g.normal(size=(8, 8)), 1e12 * low,
        np.maximum(g.normal(size=(8, 8)), 0), np.maximum(g.normal(size=(8, 8)) - 2.5, 0),
    ]  # fmt: skip
    return torch.tensor(np.stack(maps)[None], dtype=torch.float32)


def all_maps():
    yield degenerate_maps()
    for height, width in ((32, 32), (16, 16), (4, 4), (2, 2), (1, 1), (1, 5), (5, 1), (7, 12), (57, 57)):
        shift = torch.linspace(-3, 1, 9).view(1, -1, 1, 1)  # from almost empty to almost full maps
        yield (torch.randn(2, 9, height, width) + shift).relu()
    yield torch.zeros(2, 3, 6, 6)
    yield torch.randn(3, 5, 8, 8).relu().contiguous(memory_format=torch.channels_last)


def wrong(ranks):
    """How many maps get another rank than from numpy."""
    count = 0
    for maps in all_maps():
        ours, pictures = ranks(maps), maps.numpy()
        right = [[np.linalg.matrix_rank(pictures[n, c]) for c in range(maps.shape[1])] for n in range(len(maps))]
        count += int((ours.numpy() != np.array(right)).sum())
    return count


def test_ranks_are_those_of_numpy_map_by_map():
    assert wrong(hrank.ranks) == 0


def test_ranks_do_not_depend_on_chunks_or_threads(monkeypatch):
    monkeypatch.setattr(hrank, "CHUNK", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert wrong(hrank.ranks) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.linalg.matrix_rank(flat[part])", "torch.linalg.matrix_rank(flat[part].double())"),
        ("torch.linalg.matrix_rank(flat[part])", "torch.linalg.matrix_rank(flat[part], atol=1e-3)"),
        ("torch.linalg.matrix_rank(flat[part])", "torch.linalg.matrix_rank(flat[part] - 0.1)"),
        ("result = flat.flatten(1).any(1).long()", "result = flat.flatten(1).all(1).long()"),
    ],
)
def test_the_rank_oracle_catches_a_changed_line(old, new):
    assert wrong(mutant(hrank, old, new).ranks) > 0


def test_maps_that_are_not_finite():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, 2, 2] = float("nan")
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        hrank.ranks(maps)


# -- the choice of filters


def normed(x, conv, bn):
    """Convolution and batch normalisation (eval mode), written out."""
    x, shape = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding), (1, -1, 1, 1)
    x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
    return x * bn.weight.view(shape) + bn.bias.view(shape)


def forward(net, x, keep=None):
    """(maps behind the ReLU by name, logits) of a CIFAR ResNet; channels not in ``keep`` are zero behind their BN."""
    maps, keep = {}, keep or {}

    def masked(x, name, conv, bn):
        return (
            normed(x, conv, bn) * torch.as_tensor(keep.get(name, np.ones(len(conv.weight)))).view(1, -1, 1, 1).float()
        )

    x = maps["conv1"] = masked(x, "conv1", net.conv1, net.bn1).relu()
    for stage in ("layer1", "layer2", "layer3"):
        for i, block in enumerate(getattr(net, stage)):
            first, second = f"{stage}.{i}.conv1", f"{stage}.{i}.conv2"
            inner = maps[first] = masked(x, first, block.conv1, block.bn1).relu()
            x = maps[second] = (masked(inner, second, block.conv2, block.bn2) + block.shortcut(x)).relu()
    return maps, net.linear(x.mean((2, 3)))


def lowest_dropped(maps, rate):
    """Mask that drops the int(rate * n) filters with the lowest mean rank, the first ones among equals."""
    scores = np.linalg.matrix_rank(maps.numpy()).mean(0)
    keep = np.ones(len(scores), bool)
    keep[np.argsort(scores, kind="stable")[: int(rate * len(scores))]] = False
    return keep


def expected_keep(net, x, rates):
    """Masks of a CIFAR ResNet by name."""
    keep = {}
    for (name, maps), rate in zip(forward(net, x)[0].items(), rates, strict=True):
        keep[name] = lowest_dropped(maps, rate)
    return keep


RATES = (0.3, 0.5, 0.4, 0.6, 0.25, 0.75, 0.2)  # tiny_resnet: the stem, then two convolutions in each of three blocks


@torch.no_grad()
def gap(cls):
    """Largest difference in logits between what ``compress`` returns and the dense net masked as the paper says."""
    torch.manual_seed(5)
    net, task = used(tiny_resnet()), task_for()
    calibration = torch.cat([x for x, _ in task.batches(IMAGES)])
    keep = expected_keep(net, calibration, RATES)
    x = torch.randn(6, 3, 16, 16)
    right = forward(net, x, keep)[1]
    return (cls(ratios=RATES, images=IMAGES).compress(copy.deepcopy(net), task)(x) - right).abs().max().item()


def test_the_filters_of_lowest_mean_rank_go():
    assert gap(HRank) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scores = surgery.couple(scores, layers)", "scores = {name: -score for name, score in scores.items()}"),
        ("task.batches(self.images)", "task.batches(1)"),
        ("surgery.select(scores, [wanted[name] for name in names])", "surgery.select(scores, 0.5)"),
        ("return surgery.remove(model, task.example, stream) if stream else model", "return task.fresh()"),
    ],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert gap(mutant(hrank, old, new).HRank) > 1e-3


def test_the_oracle_catches_ranks_before_the_relu(monkeypatch):
    monkeypatch.setattr(features, "ACTIVATIONS", (nn.BatchNorm2d,))
    assert gap(HRank) > 1e-3


# -- layer by layer


def parts_of(net):
    """(convolution, BN) by name in network order."""
    if isinstance(net, TinyPlain):
        return {f"features.{i}": (net.features[i], net.features[i + 1]) for i in (0, 4)}
    pairs = {"conv1": (net.conv1, net.bn1)}
    for stage in ("layer1", "layer2", "layer3"):
        block = getattr(net, stage)[0]
        pairs |= {f"{stage}.0.conv1": (block.conv1, block.bn1), f"{stage}.0.conv2": (block.conv2, block.bn2)}
    return pairs


def masked_training(net, keep, epochs, lr):
    """The published procedure on masks only: zero a layer's filters, fine-tune with all masks held, go on."""
    task, masks = task_for(budget="paper"), []

    @torch.no_grad()
    def hold(step):
        for gone, tensors in masks:
            for tensor in tensors:
                tensor[gone] = 0

    for name, (conv, bn) in parts_of(net).items():
        tensors = [t for t in (conv.weight, conv.bias, bn.weight, bn.bias) if t is not None]
        masks.append((torch.as_tensor(~keep[name]), tensors))
        hold(0)
        task.train(net, epochs, of=epochs * len(keep), lr=lr, after_step=hold)
    return net, task


@torch.no_grad()
def layerwise_gap(cls, make, rates):
    """Largest difference in logits between ``compress`` and the masked procedure."""
    torch.manual_seed(6)
    dense, x, task = used(make()), torch.randn(6, 3, 16, 16), task_for(budget="paper")
    images = torch.cat([x for x, _ in task.batches(IMAGES)])
    plain = isinstance(dense, TinyPlain)
    maps = [dense.features[:i](images) for i in (3, 7)] if plain else forward(dense, images)[0].values()
    keep = {n: lowest_dropped(m, r) for n, m, r in zip(parts_of(dense), maps, rates, strict=True)}
    with torch.enable_grad():
        net = cls(ratios=rates, images=IMAGES, epochs=2, lr=0.05).compress(copy.deepcopy(dense), task)
        right, other = masked_training(copy.deepcopy(dense), keep, 2, 0.05)
    assert task.meter.train_calls == other.meter.train_calls == len(rates)
    return (net(x) - right(x)).abs().max().item()


CASES = [(TinyPlain, (0.5, 0.4)), (tiny_resnet, RATES)]


@pytest.mark.parametrize(("make", "rates"), CASES)
def test_layerwise_equals_training_with_masks(make, rates):
    assert layerwise_gap(HRank, make, rates) < 1e-5


def test_the_masked_net_catches_filters_that_come_back():
    forgetful = mutant(hrank, "after_step=hold", "after_step=None").HRank
    assert layerwise_gap(forgetful, tiny_resnet, RATES) > 1e-4


def test_one_shot_fine_tunes_once_and_blockwise_once_per_block():
    calls = {}
    for fields in ({}, {"blockwise": True}, {"layerwise": False}):
        task, rates = task_for(budget="smoke"), (0.3, *RATES[1:-1], 0.0)
        HRank(ratios=rates, images=2, **fields).compress(used(tiny_resnet()), task)
        calls[tuple(fields)] = task.meter.train_calls
    assert calls == {(): 6, ("blockwise",): 4, ("layerwise",): 1}


def test_zeroed_filters_of_the_stream_stay_zero():
    task = task_for(budget="smoke")
    net = HRank(ratios=RATES, images=2).compress(used(tiny_resnet()), task)
    assert [net.layer1[0].conv1.out_channels, net.layer2[0].conv1.out_channels] == [4, 5]
    for name, rate in zip(parts_of(net), RATES, strict=True):
        if name.endswith("conv2") or name == "conv1":
            conv, bn = parts_of(net)[name]
            dead = (conv.weight == 0).flatten(1).all(1) & (bn.weight == 0) & (bn.bias == 0)
            assert int(dead.sum()) == int(rate * conv.out_channels)
            assert task.details["kept"][name] == conv.out_channels - int(rate * conv.out_channels)


# -- published structures


@pytest.mark.parametrize(
    ("recipe", "make", "size"),
    [
        ("resnet56_cifar10/oneshot", ResNetCifar, (545_324, 65_065_600)),
        ("vgg16_cifar10/oneshot", VGG, (1_353_859, 43_232_112)),
    ],
)
def test_published_rates_physically(recipe, make, size):
    method = HRank(**{**HRank.recipes[recipe], "images": 1})
    net = method.compress(make(), task_for((3, 32, 32)))
    assert size_of(net, (3, 32, 32)) == size


@torch.no_grad()
def out_only(net, rates, shape):
    """The authors' count: a convolution loses its own filters only; BN is left out, a linear bias is an operation."""
    rates, params, macs = iter(rates), 0, 0
    modules = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    pixels = {}
    for module in modules:
        module.register_forward_hook(lambda m, _, out: pixels.update({m: out[0, 0].numel()}))
    net.eval()(torch.zeros(1, *shape))
    for module in modules:
        width, conv = len(module.weight), isinstance(module, nn.Conv2d)
        width -= int(next(rates) * width + 1e-9) if conv else 0
        bias = 0 if module.bias is None else width
        params += width * module.weight[0].numel() + bias
        macs += width * module.weight[0].numel() * pixels[module] + (0 if conv else bias)
    assert next(rates, None) is None
    return params, macs


@pytest.mark.parametrize(
    ("make", "rates", "side", "size"),
    [
        (ResNetCifar, RESNET56, 32, (489_359, 62_715_530)),
        (torchvision.models.resnet50, RESNET50, 224, (13_773_764, 1_549_652_456)),
        (VGG, VGG16, 32, (4_808_145, 116_629_002)),
    ],
)
def test_published_rates_as_the_authors_count(make, rates, side, size):
    # within a stage all of ResNet-50's rates are equal, so the order of its convolutions does not matter here
    assert out_only(make(), rates, (3, side, side)) == size


def test_resnet50_loses_the_channels_of_its_stream():
    task = task_for((3, 32, 32))
    net = HRank(ratios=RESNET50, images=2, layerwise=False).compress(torchvision.models.resnet50(), task)
    widths = [net.conv1.out_channels, *(stage[0].conv3.out_channels for stage in (net.layer1, net.layer2, net.layer3))]
    assert widths == [64 - 12, 256 - 204, 512 - 409, 1024 - 563]
    assert net.layer4[2].conv1.out_channels == 512 - 230 and net.fc.in_features == 2048 - 921
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("recipe", ["vgg16_cifar10/HRank-1", "resnet56_cifar10/HRank-3"])
def test_unpublished_rates_reach_the_printed_macs(recipe):
    method = HRank(**{**HRank.recipes[recipe], "images": 1, "layerwise": False})
    make = VGG if recipe.startswith("vgg") else ResNetCifar
    row = next(r for r in HRank.reported if r.recipe == recipe)
    dense, net = make(), make()
    net = method.compress(net, task_for((3, 32, 32)))
    reduction = 100 * (1 - size_of(net, (3, 32, 32))[1] / size_of(dense, (3, 32, 32))[1])
    assert row.macs_reduction <= reduction < row.macs_reduction + 2.5


# -- the dials


def kept(fields, net=None):
    task = task_for()
    HRank(images=2, layerwise=False, **fields).compress(net or used(tiny_resnet()), task)
    return task.details


def test_one_rate_leaves_the_stream_whole_unless_asked():
    assert kept({})["kept"] == {"layer1.0.conv1": 4, "layer2.0.conv1": 6, "layer3.0.conv1": 8}
    found = kept({"ratio": 0.25, "stream": True, "ratios": RATES})["kept"]
    assert list(found.values()) == [6, 6, 6, 9, 9, 12, 12] and next(iter(found)) == "conv1"


def test_macs_reduction_comes_first():
    found = kept({"macs_reduction": 0.3, "ratio": 0.9, "ratios": RATES})["kept"]
    assert set(found) == {"layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}
    assert all(0 < share < 0.9 for share in (1 - n / w for n, w in zip(found.values(), (8, 12, 16), strict=True)))


def test_nothing_is_ranked_where_nothing_goes():
    assert kept({"ratio": 0.0}) == {"kept": {}, "clamped": []}
    assert set(kept({"ratios": (0, 0.5, 0, 0, 0, 0, 0)})["kept"]) == {"layer1.0.conv1"}


def test_a_layer_never_becomes_empty():
    task, net = task_for(), TinyPlain(channels=(1, 12))
    HRank(ratio=0.97, images=2).compress(net, task)
    assert task.details["kept"] == {"features.0": 1, "features.4": 1}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"ratio": -0.1}, r"ratio -0.1 of .* lies outside \[0, 1\)"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 7 convolutions"),
        ({"macs_reduction": 1.5}, r"1.5 lies outside \[0, 1\)"),
        ({"images": 0}, "images=0 leaves nothing to rank on"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        HRank(**{"images": 2, **fields}).compress(tiny_resnet(), task_for())


def test_every_recipe_has_a_rate_for_each_convolution():
    widths = {"vgg16": 13, "resnet56": 55, "resnet50": 53}
    for key, fields in HRank.recipes.items():
        assert "macs_reduction" in fields or len(fields["ratios"]) == widths[key.split("_")[0]]
    assert len(list(itertools.chain(HRank.reported))) == 9
