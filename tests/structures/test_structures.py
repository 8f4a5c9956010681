"""Published networks are rebuilt exactly, as are variants that no table lists; papers are held to their own words."""

import itertools
import json
import math
from functools import partial

import pytest
import torch
from oracle import mutant, size_of
from torch import nn

from baselines.models import imagenet
from baselines.models import vgg as baselines_vgg
from baselines.models.lenet import lenet5
from baselines.models.resnet_cifar import ResNetCifar
from methods.filter_pruning import l1_filter
from methods.filter_pruning.hrank import RESNET50, VGG16
from repro import structures
from repro.__main__ import main
from repro.structures import (
    STRUCTURES,
    Printed,
    Structure,
    compare,
    disagreements,
    figure,
    made,
    pruned,
    torchvision,
    vgg,
)

ROWS = {row.name: row for row in STRUCTURES}


@pytest.fixture(scope="module")
def found():
    return {one.row.name: one for one in compare()}


def test_every_network_whose_method_is_there_is_exact(found):
    assert [name for name, one in found.items() if one.result == "differs"] == []
    there = [one for one in found.values() if not isinstance(one.row.how, str)]
    assert len(there) >= 40 and {one.result for one in there} == {"exact"}
    assert all((one.params, one.macs) == (one.row.params, one.row.macs) for one in there)


def test_a_network_that_waits_for_its_method_says_for_which(found):
    waiting = [one for one in found.values() if isinstance(one.row.how, str)]
    assert all(one.result == f"missing: needs {one.row.how}" and one.params is None for one in waiting)
    (one,) = compare([Structure("net", 1, 1, 1, partial(pruned, "no_such_method", vgg, (0.5,)))])
    assert (one.result, one.params) == ("missing: needs no_such_method", None)
    (one,) = compare([Structure("net", 1, 1, 1, partial(made, "no_such_method", "Net"))])
    assert (one.result, one.params) == ("missing: needs no_such_method", None)


def test_names_are_unique_and_dense_nets_are_rows():
    assert len(ROWS) == len(STRUCTURES)
    assert all(row.of in ("", *ROWS) for row in STRUCTURES)
    assert all(row.of for row in STRUCTURES if row.rule != "mac")


# -- variants that no row lists, counted from arithmetic alone


def conv(out, into, k, places):
    """(params, weights, MACs) of a convolution without bias, and its BN."""
    weights = out * into * k * k
    return weights + 2 * out, weights, weights * places


def total(*layers):
    return tuple(map(sum, zip(*layers, strict=True)))


def plain(config, classes, hidden, side, bias=True):
    """A VGG: convolutions with BN, then linear layers on one pixel."""
    layers, into = [], 3
    for item in config:
        if item == "M":
            side //= 2
            continue
        p, w, m = conv(item, into, 3, side**2)
        layers.append((p + (item if bias else 0), w, m))
        into = item
    if hidden:
        layers += [(into * hidden + 3 * hidden, into * hidden, into * hidden)]
        into = hidden
    return total(*layers, (into * classes + classes, into * classes, into * classes))


def cifar_resnet(depth, classes, side, stages=(0.0, 0.0, 0.0), skip=()):
    """A CIFAR ResNet whose blocks lose filters inside, int(w * (1 - rate)) left; convolutions are counted from 1."""
    layers, into, number = [conv(16, 3, 3, side**2)], 16, 1
    for stage, width in enumerate((16, 32, 64)):
        side = math.ceil(side / 2) if stage else side
        for _ in range((depth - 2) // 6):
            number += 1
            inside = width if number in skip else int(width * (1 - stages[stage]) + 1e-9)
            layers += [conv(inside, into, 3, side**2), conv(width, inside, 3, side**2)]
            into, number = width, number + 1
    return total(*layers, (64 * classes + classes, 64 * classes, 64 * classes))


def imagenet_resnet(blocks, side, stages, skip=(), classes=1000):
    """A ResNet of basic blocks; projections have no number and are not pruned."""
    side = math.ceil(side / 2)
    layers, into, number = [conv(64, 3, 7, side**2)], 64, 1
    side = math.ceil(side / 2)
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        side = math.ceil(side / 2) if stage else side
        for block in range(count):
            number += 1
            inside = width if number in skip else int(width * (1 - stages[stage]) + 1e-9)
            layers += [conv(inside, into, 3, side**2), conv(width, inside, 3, side**2)]
            if stage and not block:
                layers.append(conv(width, into, 1, side**2))
            into, number = width, number + 1
    return total(*layers, (into * classes + classes, into * classes, into * classes))


def bottlenecks(widths, side, stride_first=False, classes=1000):
    """ResNet-50 with (stem, then per block: projection's or last, first, second) widths; kept channels couple."""
    stem, blocks = widths
    side = side // 2
    layers, into = [conv(stem, 3, 7, side**2)], stem
    side //= 2
    for stage, (count, out, first, second) in enumerate(blocks):
        for block in range(count):
            before, side = side, side // 2 if stage and not block else side
            layers += [
                conv(first, into, 1, (side if stride_first else before) ** 2),
                conv(second, first, 3, side**2),
                conv(out, second, 1, side**2),
            ]
            if not block:
                layers.append(conv(out, into, 1, side**2))
            into = out
    return total(*layers, (into * classes + classes, into * classes, into * classes))


def ghosts(convolutions, ratio, kernel=3, first=True):
    """(outputs, inputs, kernel, places of the output) of convolutions as Ghost modules: intrinsic maps, then ghosts."""
    layers = []
    for index, (out, into, k, places) in enumerate(convolutions):
        own = ratio if first or index else 1
        intrinsic = math.ceil(out / own)
        layers.append(conv(intrinsic, into, k, places))
        if own > 1:
            layers.append(conv(intrinsic * (own - 1), 1, kernel, places))
    return layers


def vgg_convolutions(config, side):
    found, into = [], 3
    for item in config:
        if item == "M":
            side //= 2
            continue
        found.append((item, into, 3, side**2))
        into = item
    return found


def resnet50_convolutions(side=224):
    found, into, side = [(64, 3, 7, (side // 2) ** 2)], 64, side // 4
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(count):
            before, side = side, side // 2 if stage and not block else side
            found += [(width, into, 1, before**2), (width, width, 3, side**2), (4 * width, width, 1, side**2)]
            if not block:
                found.append((4 * width, into, 1, side**2))
            into = 4 * width
    return found


def linear(out, into):
    return out * into + out, out * into, out * into


def mobilenet(widths, side, classes=1000):
    """MobileNet from arithmetic: separable convolutions behind one of 3x3, five of them with a stride of 2."""
    side = math.ceil(side / 2)
    layers = [conv(widths[0], 3, 3, side**2)]
    for index, (into, out) in enumerate(itertools.pairwise(widths)):
        side = math.ceil(side / 2) if index in (1, 3, 5, 11) else side
        layers += [conv(into, 1, 3, side**2), conv(out, into, 1, side**2)]
    return total(*layers, linear(classes, widths[-1]))


WHOLE_50 = (64, ((3, 256, 64, 64), (4, 512, 128, 128), (6, 1024, 256, 256), (3, 2048, 512, 512)))
SMALL = (24, "M", 40, 56, "M", 72)
SKIP_34 = (2, 8, 14, 16, 26, 28, 30, 32)
inside = structures.first_of_blocks

VARIANTS = {
    "vgg": (partial(vgg, SMALL, 7, 33), 32, plain(SMALL, 7, 33, 32)),
    "vgg without bias": (partial(vgg, SMALL, 7, None, False), 48, plain(SMALL, 7, None, 48, bias=False)),
    "resnet26, 100 classes": (partial(ResNetCifar, 26, 100), 32, cifar_resnet(26, 100, 32)),
    "resnet14 at 40 pixels": (partial(ResNetCifar, 14), 40, cifar_resnet(14, 10, 40)),
    "resnet18 at 160": (partial(torchvision, "resnet18"), 160, imagenet_resnet((2, 2, 2, 2), 160, (0,) * 4)),
    "resnet34 at 192": (
        partial(torchvision, "resnet34", 20), 192, imagenet_resnet((3, 4, 6, 3), 192, (0,) * 4, (), 20),
    ),
    "resnet50 at 160": (partial(torchvision, "resnet50"), 160, bottlenecks(WHOLE_50, 160)),
    "resnet50 of Caffe": (
        partial(torchvision, "resnet50", stride_first=True), 160, bottlenecks(WHOLE_50, 160, stride_first=True),
    ),
    "l1 on resnet20": (
        partial(pruned, "l1_filter", partial(ResNetCifar, 20), inside(0.3, 0.55, 0.8, skip=(4, 12))),
        32, cifar_resnet(20, 10, 32, (0.3, 0.55, 0.8), (4, 12)),
    ),
    "l1 on resnet18": (
        partial(pruned, "l1_filter", partial(torchvision, "resnet18"), inside(0.25, 0.4, 0.1, 0.7, skip=(6,)), 64),
        128, imagenet_resnet((2, 2, 2, 2), 128, (0.25, 0.4, 0.1, 0.7), (6,)),
    ),
    "l1 on a small vgg": (
        partial(pruned, "l1_filter", partial(vgg, SMALL, 7, 33), (0.5, 0.1, 0.25, 0.0)),
        32, plain((12, "M", 36, 42, "M", 72), 7, 33, 32),
    ),
    "l1 on LeNet-5": (
        partial(pruned, "l1_filter", lenet5, (0.5, 0.3), 28, 1), 28,
        total((260, 250, 250 * 576), (35 * 250 + 35, 35 * 250, 35 * 250 * 64), (500 * 560 + 500, 280_000, 280_000),
              (5010, 5000, 5000)),
    ),
    "ghosts in a small vgg": (
        partial(made, "ghostnet", "to_ghosts", partial(vgg, SMALL, 7, 33, hidden_norm=False), ratio=3, kernel=5),
        32, total(*ghosts(vgg_convolutions(SMALL, 32), 3, 5), linear(33, 72), linear(7, 33)),
    ),
    "mobilenet at a third": (
        partial(made, "mobilenet_v1", "MobileNet", 7, 1 / 3), 72,
        mobilenet([int(w / 3) for w in (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)], 72, 7),
    ),
    "hrank on resnet20": (
        partial(pruned, "hrank", partial(ResNetCifar, 20), inside(0.4, 0.2, 0.6), images=1, layerwise=False),
        32, cifar_resnet(20, 10, 32, (0.375, 0.1875, 0.59375)),  # int(0.4 * 16) = 6, int(0.2 * 32) = 6, 38 go
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_that_nobody_listed(name):
    how, side, (params, weights, macs) = VARIANTS[name]
    channels = 1 if "LeNet" in name else 3
    row = Structure(name, params, weights, macs, how, side=side, channels=channels)
    (one,) = compare([row])
    assert (one.params, one.weights, one.macs) == (params, weights, macs)
    assert one.result == "exact"
    assert size_of(how(), (channels, side, side)) == (params, macs)


@pytest.mark.parametrize("change", [{"params": 1}, {"weights": 1}, {"macs": 1}])
def test_one_off_differs(change):
    numbers = {"params": 266_610, "weights": 266_200, "macs": 266_200}
    row = Structure("lenet", **{**numbers, **change}, how=ROWS["lenet_300_100"].how, side=28, channels=1)
    assert compare([row])[0].result == "differs"


def caffe(module):
    return module.stride_first(torchvision("resnet50"))


def unbiased(module):
    return module.vgg(SMALL, 7, None, False)


def ghosts_in_vgg(module):
    net = partial(module.vgg, SMALL, 7, 33, hidden_norm=False)
    return module.made("ghostnet", "to_ghosts", net, ratio=3, kernel=5)


def l1_on_resnet20(module):
    rates = module.first_of_blocks(0.3, 0.55, 0.8, skip=(4, 12))
    return module.pruned("l1_filter", partial(ResNetCifar, 20), rates)


def l1_on_resnet18(module):
    rates = module.first_of_blocks(0.25, 0.4, 0.1, 0.7, skip=(6,))
    return module.pruned("l1_filter", partial(torchvision, "resnet18"), rates, 64)


@pytest.mark.parametrize(
    ("build", "name", "home", "old", "new"),
    [
        (caffe, "resnet50 of Caffe", imagenet, "block.conv2.stride, block.conv1.stride", "1, block.conv2.stride"),
        (unbiased, "vgg without bias", structures, "and not bias", "and bias"),
        (ghosts_in_vgg, "ghosts in a small vgg", structures, "elif not hidden_norm", "elif hidden_norm"),
        (l1_on_resnet20, "l1 on resnet20", structures, "numbered[number - 1]", "numbered[number]"),
        (l1_on_resnet20, "l1 on resnet20", structures, r"layer(\d+)\.\d+\.conv1", r"layer(\d+)\.\d+\.conv2"),
        (l1_on_resnet18, "l1 on resnet18", structures, 'if not set(name.split(".")) & set(surgery.SHORTCUTS)', ""),
    ],
)
def test_a_variant_catches_a_changed_line(build, name, home, old, new):
    _, side, (params, _, macs) = VARIANTS[name]
    assert size_of(build(home), (3, side, side)) == (params, macs)
    assert size_of(build(mutant(home, old, new)), (3, side, side)) != (params, macs)


def test_hranks_resnet50_physically_from_its_widths():
    stem, rates = 64 - int(0.2 * 64), iter(RESNET50[1:])
    blocks = []
    for count, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        own = [next(rates) for _ in range(3 * count + 1)]
        assert len(set(own)) == 1
        blocks.append((count, *(w - int(own[0] * w + 1e-9) for w in (4 * width, width, width))))
    assert structures.size(ROWS["hrank_resnet50"]) == bottlenecks((stem, blocks), 224)


def test_the_recounts_that_were_made_here():
    for name, expected in (
        ("resnet110_pruned_B", cifar_resnet(110, 10, 32, (0.5, 0.4, 0.3), (36, 38, 74))),
        ("resnet34_pruned_B", imagenet_resnet((3, 4, 6, 3), 224, (0.5, 0.6, 0.4, 0), SKIP_34)),
    ):
        assert (ROWS[name].params, ROWS[name].weights, ROWS[name].macs) == expected
    for ratio in (2, 4):
        row = ROWS[f"ghost_resnet50_s{ratio}"]
        layers = ghosts(resnet50_convolutions(), ratio, first=False)
        assert (row.params, row.weights, row.macs) == total(*layers, linear(1000, 2048))
    for ratio in (3, 5):
        row = ROWS[f"ghost_vgg16_s{ratio}_d3"]
        layers = ghosts(vgg_convolutions(baselines_vgg.VGG16, 32), ratio)
        assert (row.params, row.weights, row.macs) == total(*layers, linear(512, 512), linear(10, 512))
    for width, sides in ((0.5, (224, 160)), (0.25, (224,))):
        widths = [int(w * width) for w in (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)]
        for side in sides:
            row = ROWS[f"mobilenet_v1_{width:g}_{side}"]
            assert (row.params, row.weights, row.macs) == mobilenet(widths, side)
    row = ROWS["hrank_resnet110"]  # 10 of 16, 20 of 32 and 39 of 64 stay inside of the blocks
    params, _, macs = cifar_resnet(110, 10, 32, (6 / 16, 12 / 32, 25 / 64))
    assert (row.params, row.macs) == (params, macs)
    params, macs, into = 15 * 27, 15 * 27 * 1024, 16
    for width, left, side in ((16, 10, 32), (32, 20, 16), (64, 39, 8)):
        weights = left * into * 9 + 35 * left * width * 9  # 36 convolutions, the first of which reads the stage before
        params, macs, into = params + weights, macs + weights * side**2, width
    row = ROWS["hrank_resnet110_by_rule"]
    assert (row.params, row.macs) == (params + 650, macs + 650)


# -- what the rows' own numbers and notes say


def test_resnet34_without_its_projections_is_what_l1_filters_print():
    weights = sum(w for w, _ in PROJECTIONS)
    macs = sum(w * places for w, places in PROJECTIONS)
    assert f"({weights:,} weights, {macs:,} MACs)" in structures.NO_PROJECTIONS
    for row, printed in (("imagenet", "3.64e9"), ("pruned_A", "3.08e9"), ("pruned_B", "2.76e9")):
        value, half = figure(printed)
        assert ROWS[f"resnet34_{row}"].prints[0].macs == printed
        assert abs(ROWS[f"resnet34_{row}"].macs - macs - value) <= half


PROJECTIONS = [(64 * 128, 28**2), (128 * 256, 14**2), (256 * 512, 7**2)]


def test_the_nearest_figures_of_hranks_vgg16():
    side, into, params, macs = 32, 3, 0, 0
    kept = [w - int(rate * w + 1e-9) for w, rate in zip(WIDTHS, (*VGG16[:12], 0.8), strict=True)]
    for index, (width, left) in enumerate(zip(WIDTHS, kept, strict=True)):
        params, macs = params + left * into * 9, macs + left * into * 9 * side**2
        into = width
        side //= 2 if index in (1, 3, 6, 9) else 1
    assert f"{params:,} weights and {macs:,} MACs" in structures.HRANK_VGG16_NOTE


WIDTHS = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_first_of_blocks_gives_l1_filters_own_rates():
    names = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(9) for c in (1, 2))]
    assert inside(0.6, 0.3, 0.1, skip=(16, 18, 20, 34, 38, 54))(names) == l1_filter.RESNET56_B


@pytest.mark.parametrize(
    ("text", "value", "half"),
    [
        ("125.49M", 125_490_000, 5_000), ("1.5e7", 15_000_000, 500_000), ("267K", 267_000, 500),
        ("30.94B", 30_940_000_000, 5_000_000), ("3.86G", 3_860_000_000, 5_000_000), ("22,855,952", 22_855_952, 0.5),
        ("0.2B", 200_000_000, 50_000_000),
    ],
)  # fmt: skip
def test_a_printed_figure_is_read_with_its_rounding(text, value, half):
    assert figure(text) == (pytest.approx(value, rel=1e-12), pytest.approx(half, rel=1e-12))


def noted(*prints, **changes):
    fields = {"name": "net", "params": 1_004_999, "weights": 990_000, "macs": 2_000_000, "how": "x", **changes}
    return disagreements(Structure(**fields, prints=prints))


def test_a_print_within_its_rounding_has_no_footnote():
    assert noted(Printed("T", "1.00M", "2.0M"), Printed("U", "1.00M", "4.0M", rule="two_per_mac")) == []
    assert noted(Printed("T")) == []


def test_a_print_off_the_recount_has_one():
    assert noted(Printed("T", "1.01M", "2.1M")) == [
        "T prints 1.01M for net; the recount is 1,004,999 parameters (+0.50 %).",
        "T prints 2.1M for net; the recount is 2,000,000 MACs (+5.00 %).",
    ]
    assert len(noted(Printed("T", "1.00M", "2.0M", rule="two_per_mac"))) == 1
    assert noted(Printed("T", "1.00M", "2.0M"), note="So it is.") == ["So it is."]


def test_a_print_of_weights_alone_is_told_from_a_wrong_one():
    (note,) = noted(Printed("T", "0.99M"))
    assert "no biases and no BN" in note


def test_a_text_that_contradicts_itself():
    row = {"of": "vgg16_cifar10_512fc", "params": 5_399_690, "weights": 5_390_176, "macs": 206_279_680}
    right = Printed("L1 filters, Table 1", "5.4e6", "2.06e8", 64.0, 34.2)
    assert noted(right, **row) == []
    (note,) = noted(Printed("L1 filters, Table 1", "5.4e6", "2.06e8", 64.0, 35.2), **row)
    assert note.startswith(
        "L1 filters, Table 1 contradicts itself (net): it prints 35.2 % fewer MACs, but 2.06e8 of 3.13e8"
    )
    assert noted(Printed("another text", "5.4e6", "2.06e8", 64.0, 35.2), **row) == []
    (note, *_) = [n for n in disagreements(ROWS["hrank_vgg16_by_rule"]) if "contradicts" in n]
    assert "82.1 % fewer parameters, but 2.64M of 14.98M are 82.4 % fewer" in note


# -- the command


WAITING = Structure("waits", 9, 8, 293_870_000, "no_such_method")


def few(*extra):
    return (ROWS["lenet_300_100"], ROWS["resnet20_cifar10"], WAITING, *extra)


def test_the_command_prints_a_table_with_footnotes(monkeypatch, capsys):
    monkeypatch.setattr(structures, "STRUCTURES", few())
    assert main(["structures"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if "lenet_300_100" in line)
    assert line.split()[1:6] == ["266,610", "266,200", "266,610", "266,200", "267K"] and "exact" in line
    assert "missing: needs" in text and "[1] These parameters are the weights" in text


def test_one_network_that_differs_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(structures, "STRUCTURES", few(Structure("wrong", 33, 32, 1, partial(nn.Linear, 32, 1))))
    assert main(["structures", "--json"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["wrong"]["result"] == "differs" and rows["wrong"]["macs"] == 32 * 3 * 32
    assert rows["lenet_300_100"]["recount"] == {"params": 266_610, "weights": 266_200, "macs": 266_200}
    waiting = rows["waits"]
    assert (waiting["method"], waiting["params"]) == ("no_such_method", None)
    assert waiting["recount"]["macs"] == 293_870_000 and rows["lenet_300_100"]["printed"][0]["params"] == "267K"


def test_a_word_that_is_no_option(capsys):
    assert main(["structures", "--csv"]) == 2
    assert "'--csv' is not an option of structures" in capsys.readouterr().err


def test_dense_nets_are_counted_without_memory_for_their_weights():
    with torch.device("meta"):
        assert all(p.is_meta for p in ROWS["vgg16_imagenet"].how().parameters())
        assert not any(p.is_meta for p in VARIANTS["l1 on a small vgg"][0]().parameters())
