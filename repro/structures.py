"""Published networks, built again by the baselines and methods here and compared with the published sizes as integers.

A row of ``STRUCTURES`` names a network, how it is built, its recounted size, and what papers print. Sizes were counted
from the structure in the text: ``params`` are all learnable numbers, ``weights`` those of convolutions and linear
layers alone, ``macs`` their multiply-accumulates for one image. To add a network, add a row: a function with arguments,
or the name of the method that it waits for. A network that a paper proposes as the smaller one waits for that paper's
method, also where a library has it. Nothing is trained; dense nets are built and counted on the meta device.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

from baselines.cost import layer_macs
from baselines.models import convnets, imagenet
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.vgg import VGG, VGG16
from baselines.task import Task
from methods.kit import surgery
from repro import registry
from repro.counting import RULES

SLACK = 0.15  # points of reduction: half a unit of a printed percentage, and a dense net counted otherwise
SCALES = {"": 0, "K": 3, "M": 6, "G": 9, "B": 9}
FIGURE = re.compile(r"(\d+)(?:\.(\d+))?(?:e(\d+))?([KMGB]?)")


@dataclass(frozen=True)
class Printed:
    """What a text prints for a network, digit by digit ("5.4e6", "125.49M"): reductions in percent, "" not printed.

    ``rule``: ``two_per_mac`` where the text counts a multiplication and an addition as two operations.
    """

    source: str
    params: str = ""
    macs: str = ""
    params_reduction: float | None = None
    macs_reduction: float | None = None
    rule: str = "mac"

    def __str__(self) -> str:
        """The two counts and their source."""
        counts = " / ".join(filter(None, (self.params, self.macs)))
        return f"{counts} ({self.source}{', 2 per MAC' if self.macs and self.rule == 'two_per_mac' else ''})"


@dataclass(frozen=True)
class Structure:
    """A published network: its recounted size on images (``channels``, ``side``, ``side``), and who prints what.

    ``how`` builds it, or names the method that is to build it. ``of``: the row of the dense net that it was made from.
    ``rule`` is the counting rule of the sizes; under another rule than ``mac`` there are no ``weights``.
    """

    name: str
    params: int
    weights: int | None
    macs: int
    how: Callable[[], nn.Module] | str
    prints: tuple[Printed, ...] = ()
    side: int = 32
    channels: int = 3
    of: str = ""
    rule: str = "mac"
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A row beside what was built: ``params`` and the rest as counted here, None where the network is missing."""

    row: Structure
    result: str
    notes: tuple[str, ...]
    params: int | None = None
    weights: int | None = None
    macs: int | None = None


# ------------------------------------------------------------------------------------------- builders


def vgg(
    config: Sequence[int | str] = VGG16,
    classes: int = 10,
    hidden: int | None = 512,
    bias: bool = True,
    side: int = 1,
    hidden_norm: bool = True,
) -> nn.Module:
    """A VGG of 3x3 convolutions with BN; ``hidden`` None: one linear layer reads the last map, pooled to ``side``.

    ``hidden_norm``: BN behind the hidden layer.
    """
    net = VGG(config, classes, hidden=hidden or 1)
    if hidden is None:
        net.pool = nn.AdaptiveAvgPool2d(side)
        net.classifier = nn.Linear([w for w in config if w != "M"][-1] * side**2, classes)
    elif not hidden_norm:
        net.classifier[1] = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not bias:
            module.bias = None
    return net


def torchvision(name: str, classes: int = 1000, stride_first: bool = False, **options: object) -> nn.Module:
    """A net of torchvision; ``stride_first``: a bottleneck strides in its first 1x1, not in its 3x3 (Caffe, MSRA)."""
    from torchvision import models

    net = getattr(models, name)(num_classes=classes, **options)
    return imagenet.stride_first(net) if stride_first else net


def alexnet(classes: int = 1000, groups: int = 2) -> nn.Module:
    """Caffe's AlexNet on 227x227 images, whose convolutions 2, 4 and 5 have two groups."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=groups), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten()),
        *(nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes)),
    )


@functools.lru_cache(maxsize=1)
def pruned(
    method: str,
    dense: Callable[[], nn.Module],
    ratios: str | tuple[float, ...] | Callable[[Sequence[str]], tuple[float, ...]],
    side: int = 32,
    channels: int = 3,
    **fields: object,
) -> nn.Module:
    """What ``method`` makes of an untrained net without training it, on images (``channels``, ``side``, ``side``).

    ``ratios``: the method's recipe that holds them, one for each convolution in network order, or a function that gives
    them for the convolutions' names. Widths do not depend on the images: small ones will do.
    """
    cls = registry.method_class(method)
    with torch.device("cpu"):  # a method compares values, which the meta device has not
        net, task = dense(), _task(side, channels)
        if isinstance(ratios, str):
            ratios = cls.recipes[ratios]["ratios"]
        elif callable(ratios):
            ratios = ratios(list(surgery.layers(net, task.example)))
        return cls(ratios=ratios, **fields).compress(net, task)


def made(method: str, name: str, *args: object, **fields: object) -> nn.Module:
    """What the function or class ``name`` in the file of ``method`` makes; functions in ``args`` are called first."""
    build = getattr(importlib.import_module(registry.method_class(method).__module__), name)
    return build(*(arg() if callable(arg) else arg for arg in args), **fields)


def ghostnet_pytorchcv(method: str) -> nn.Module:
    """GhostNet as pytorchcv has it: 3x3 in all shortcuts, squeezes not rounded, BN in place of the head's bias."""
    net = made(method, "Bottlenecks").net
    for block in (block for stage in net.blocks[:-1] for block in stage):
        if len(block.shortcut):
            channels, stride = block.shortcut[0].in_channels, block.shortcut[0].stride
            block.shortcut[0] = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        if block.se is not None:
            channels = block.se.conv_reduce.in_channels
            block.se.conv_reduce = nn.Conv2d(channels, channels // 4, 1)
            block.se.conv_expand = nn.Conv2d(channels // 4, channels, 1)
    net.conv_head = nn.Sequential(nn.Conv2d(net.conv_head.in_channels, 1280, 1, bias=False), nn.BatchNorm2d(1280))
    return net


def _task(side: int, channels: int) -> Task:
    """A task on two images of noise, at budget ``zero``."""
    import numpy as np

    from baselines import base, data

    images = np.random.RandomState(0).randint(0, 256, (2, side, side, channels), np.uint8)
    arrays = {"x_train": images, "x_test": images, "y_train": np.zeros(2), "y_test": np.zeros(2)}
    ground = replace(base.load("tiny_resnet_synthetic"), mean=(0.5,) * channels, std=(0.25,) * channels)
    return Task(ground, data.from_arrays("noise", arrays, 10), budget="zero")


def first_of_blocks(*stages: float, skip: Sequence[int] = ()) -> Callable[[Sequence[str]], tuple[float, ...]]:
    """Rates for a residual net: that of the stage for the first convolution of a block, 0 for all others.

    ``skip`` holds convolutions that stay whole, numbered as Li et al. do: the stem is 1, projections have no number.
    """

    def rates(names: Sequence[str]) -> tuple[float, ...]:
        numbered = [name for name in names if not set(name.split(".")) & set(surgery.SHORTCUTS)]
        whole = {numbered[number - 1] for number in skip}
        found = [re.fullmatch(r"layer(\d+)\.\d+\.conv1", name) for name in names]
        return tuple(0.0 if f is None or f[0] in whole else stages[int(f[1]) - 1] for f in found)

    return rates


# ------------------------------------------------------------------------------------------- comparing


def compare(rows: Iterable[Structure] | None = None) -> list[Result]:
    """Build and count every row whose method is there; in their order."""
    return [_compared(row) for row in (STRUCTURES if rows is None else rows)]


def _compared(row: Structure) -> Result:
    notes, method = tuple(disagreements(row)), needed(row)
    entry = registry.entries().get(method)
    if isinstance(row.how, str) or (method and (entry is None or entry.cls is None)):
        return Result(row, f"missing: needs {method}", notes)
    params, weights, macs = size(row)
    same = (params, macs) == (row.params, row.macs) and row.weights in (None, weights)
    return Result(row, "exact" if same else "differs", notes, params, weights, macs)


def needed(row: Structure) -> str:
    """The method that a row is built by, or waits for; empty where it needs none."""
    if isinstance(row.how, str):
        return row.how
    return row.how.args[0] if getattr(row.how, "func", None) in (pruned, made, ghostnet_pytorchcv) else ""


def size(row: Structure) -> tuple[int, int | None, int]:
    """(params, weights, MACs) of the network as it is built here, by the row's rule."""
    if row.rule != "mac":
        shape = (1, row.channels, row.side, row.side)
        counts = RULES[row.rule](_row(row.of).how(), row.how(), torch.zeros(shape))
        return counts["params"], None, counts["macs"]
    with torch.device("meta"):
        net = row.how()
    return count(net, (row.channels, row.side, row.side))


def count(net: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(params, weights of convolutions and linear layers, MACs) of a net for one image (C, H, W)."""
    params = sum(p.numel() for p in net.parameters())
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    image = torch.zeros(1, *shape, device=next(net.parameters()).device)
    return params, sum(layer.weight.numel() for layer in layers), sum(layer_macs(net, image).values())


def disagreements(row: Structure) -> list[str]:
    """Where a text disagrees with the recount, or with itself: a sentence each, and the row's own note."""
    notes = [note for printed in row.prints for note in (*_off(row, printed), *_against_itself(row, printed))]
    return [*notes, row.note] if row.note else notes


def _off(row: Structure, printed: Printed) -> list[str]:
    """The printed counts that are not the recounted ones within their rounding."""
    notes = []
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        text, ours = getattr(printed, name), getattr(row, name)
        if not text:
            continue
        value, half = figure(text)
        if (name, printed.rule) == ("macs", "two_per_mac"):
            value, half = value / 2, half / 2
        if name == "params" and row.weights and abs(value - ours) > half >= abs(value - row.weights):
            notes.append("These parameters are the weights of convolutions and linear layers, no biases and no BN.")
        elif abs(value - ours) > half:
            off = f"{100 * (value / ours - 1):+.2f} %"
            notes.append(f"{printed.source} prints {text} for {row.name}; the recount is {ours:,} {what} ({off}).")
    return notes


def _against_itself(row: Structure, printed: Printed) -> list[str]:
    """The printed reductions that do not follow from the counts of the same source: reduction = 1 - new / old."""
    notes = []
    dense = next((p for p in (_row(row.of).prints if row.of else ()) if p.source == printed.source), None)
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        share, texts = getattr(printed, f"{name}_reduction"), (getattr(printed, name), getattr(dense, name, ""))
        if share is None or not all(texts):
            continue
        (new, slack), (old, old_slack) = map(figure, texts)
        low, high = (100 * (1 - n / o) for n, o in ((new + slack, old - old_slack), (new - slack, old + old_slack)))
        if not low - SLACK <= share <= high + SLACK:
            notes.append(
                f"{printed.source} contradicts itself ({row.name}): it prints {share:g} % fewer {what}, but {texts[0]} "
                f"of {texts[1]} are {100 * (1 - new / old):.1f} % fewer."
            )
    return notes


def figure(text: str) -> tuple[float, float]:
    """(value, half a unit of the last digit) of a count as printed: "125.49M" is 125,490,000 within 5,000."""
    whole, digits, power, scale = FIGURE.fullmatch(text.replace(",", "")).groups(default="")
    exponent = int(power or 0) + SCALES[scale] - len(digits)
    return float(f"{whole}{digits}e{exponent}"), 0.5 * 10.0**exponent


def _row(name: str) -> Structure:
    return next(row for row in STRUCTURES if row.name == name)


def as_data(found: Result) -> dict[str, object]:
    """A result as JSON-able data: as counted here, the recount, and as printed."""
    row, sizes = found.row, ("params", "weights", "macs")
    return {
        "name": row.name, "method": needed(row), "image": [row.channels, row.side, row.side], "rule": row.rule,
        "of": row.of, "result": found.result, **{name: getattr(found, name) for name in sizes},
        "recount": {name: getattr(row, name) for name in sizes}, "printed": list(map(asdict, row.prints)),
        "notes": list(found.notes),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- the published networks

L1 = partial(Printed, "L1 filters, Table 1")
THINET = partial(Printed, "ThiNet, Table 1", rule="two_per_mac")
THINET_50 = partial(Printed, "ThiNet, Table 3", rule="two_per_mac")
HAN = partial(Printed, "Han et al. 2015", rule="two_per_mac")
MFMI = partial(Printed, "README of MFMI")
HE = partial(Printed, "He et al. 2016, Table 6")
GHOST = partial(Printed, "GhostNet (CVPR 2020)")
MOBILENET = partial(Printed, "MobileNets, Tables 6-7")
TF_SLIM = partial(Printed, "README of TF-slim")
MEGVII = partial(Printed, "README of ShuffleNet-Series")
SENET = partial(Printed, "SENet, Table 2")
EFFICIENTNET = partial(Printed, "EfficientNet, Table 2")
REGNET = partial(Printed, "model zoo of pycls")

VGG19 = (*(64, 64, "M", 128, 128, "M"), *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4)
VGG_SMALL = (128, 128, "M", 256, 256, "M", 512, 512, "M")
RESNET34_SKIP = (2, 8, 14, 16, 26, 28, 30, 32)
RESNET110_RATES = (0.1,) + (0.4,) * 108
RESNET56 = partial(ResNetCifar, 56)
RESNET110 = partial(ResNetCifar, 110)
RESNET34 = partial(torchvision, "resnet34")
RESNET50 = partial(torchvision, "resnet50")
CAFFE_50 = partial(torchvision, "resnet50", stride_first=True)
ONE_SHOT = {"images": 1, "layerwise": False}
HRANK_VGG16 = partial(pruned, "hrank", vgg, "vgg16_cifar10", **ONE_SHOT)
HRANK_56 = partial(pruned, "hrank", RESNET56, "resnet56_cifar10", **ONE_SHOT)
HRANK_110 = partial(pruned, "hrank", RESNET110, RESNET110_RATES, **ONE_SHOT)
HRANK_50 = partial(pruned, "hrank", RESNET50, "resnet50_imagenet", **ONE_SHOT)
RETHINKING = "vgg16_cifar10_pruned_A_nofc is the form that Rethinking the Value of Network Pruning trains."
SMALL = "vgg_small_cifar10 is the net of the tables of LQ-Net, DSQ and AdderNet."
HRANK_VGG16_NOTE = (
    "The released rates of VGG-16 give HRank's figures under no rule: nearest are the 13 convolutions alone, with the "
    "last one pruned too, which the released code leaves whole: 2,654,316 weights and 108,822,528 MACs."
)
GHOST_VGG = partial(made, "ghostnet", "to_ghosts", partial(vgg, hidden_norm=False))
GHOST_50 = partial(made, "ghostnet", "to_ghosts", RESNET50, first=False)
GHOST_NET = partial(made, "ghostnet", "Bottlenecks", 1000)
GHOST_VGG_NOTE = (
    "Ghost-VGG-16 is counted without BN behind its 512-unit layer, which gives VGG-16 itself 1,024 parameters more."
)
MOBILENET_AMC = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
NO_PROJECTIONS = "L1 filters counts ResNet-34 without its three projections (172,032 weights, 19,267,584 MACs)."

# fmt: off
STRUCTURES: tuple[Structure, ...] = (
    # CIFAR: dense nets, and those of L1 filter pruning
    Structure("vgg16_cifar10_512fc", 14_991_946, 14_977_728, 313_463_808, vgg,
              (L1("1.5e7", "3.13e8"), Printed("HRank, Table 1", "14.98M", "313.73M"))),
    Structure("vgg16_cifar10_nofc", 14_728_266, 14_715_584, 313_201_664, partial(vgg, hidden=None),
              (MFMI("14.72M", "313.75M"),)),
    Structure("vgg16_cifar10_pruned_A", 5_399_690, 5_390_176, 206_279_680,
              partial(pruned, "l1_filter", vgg, "vgg16_cifar10"),
              (L1("5.4e6", "2.06e8", 64.0, 34.2),), of="vgg16_cifar10_512fc"),
    Structure("vgg16_cifar10_pruned_A_nofc", 5_264_522, 5_256_544, 206_146_048,
              partial(pruned, "l1_filter", partial(vgg, hidden=None), "vgg16_cifar10"), of="vgg16_cifar10_nofc",
              note=RETHINKING),
    Structure("vgg19_cifar10_nobias", 20_035_018, 20_024_000, 398_136_320,
              partial(vgg, VGG19, hidden=None, bias=False),
              (Printed("Network Slimming, Table 1", "20.04M", "7.97e8", rule="two_per_mac"),)),
    Structure("vgg_small_cifar10", 4_660_106, 4_656_512, 607_600_640,
              partial(vgg, VGG_SMALL, hidden=None, bias=False, side=4), note=SMALL),
    Structure("resnet20_cifar10", 269_722, 268_336, 40_551_040, partial(ResNetCifar, 20), (HE("0.27M"),)),
    Structure("resnet56_cifar10", 853_018, 848_944, 125_485_696, RESNET56,
              (L1("8.5e5", "1.25e8"), Printed("HRank, Table 2", "0.85M", "125.49M"))),
    Structure("resnet56_cifar100", 858_868, 854_704, 125_491_456, partial(ResNetCifar, 56, 100), (MFMI("0.86M"),)),
    Structure("resnet110_cifar10", 1_727_962, 1_719_856, 252_887_680, RESNET110,
              (L1("1.72e6", "2.53e8"), HE("1.7M"))),
    Structure("resnet56_pruned_A", 773_336, 769_456, 112_435_840,
              partial(pruned, "l1_filter", RESNET56, "resnet56_cifar10/A"),
              (L1("7.7e5", "1.12e8", 9.4, 10.4),), of="resnet56_cifar10"),
    Structure("resnet56_pruned_B", 735_712, 732_016, 90_907_264,
              partial(pruned, "l1_filter", RESNET56, "resnet56_cifar10"),
              (L1("7.3e5", "9.09e7", 13.7, 27.6),), of="resnet56_cifar10"),
    Structure("resnet110_pruned_A", 1_688_522, 1_680_688, 212_779_648,
              partial(pruned, "l1_filter", RESNET110, first_of_blocks(0.5, 0.0, 0.0, skip=(36,))),
              (L1("1.68e6", "2.13e8", 2.3, 15.9),), of="resnet110_cifar10"),
    Structure("resnet110_pruned_B", 1_168_424, 1_161_712, 155_124_352,
              partial(pruned, "l1_filter", RESNET110, first_of_blocks(0.5, 0.4, 0.3, skip=(36, 38, 74))),
              (L1("1.16e6", "1.55e8", 32.4, 38.6),), of="resnet110_cifar10"),
    # HRank at its published rates: as returned, and as its authors count
    Structure("hrank_vgg16", 1_353_859, None, 43_232_112, HRANK_VGG16, of="vgg16_cifar10_512fc"),
    Structure("hrank_vgg16_by_rule", 4_808_145, None, 116_629_002, HRANK_VGG16,
              (Printed("HRank, Table 1", "2.64M", "108.61M", 82.1, 65.3),), of="vgg16_cifar10_512fc",
              rule="hrank_out_only", note=HRANK_VGG16_NOTE),
    Structure("hrank_resnet56", 545_324, None, 65_065_600, HRANK_56, of="resnet56_cifar10"),
    Structure("hrank_resnet56_by_rule", 489_359, None, 62_715_530, HRANK_56,
              (Printed("HRank, Table 2", "0.49M", "62.72M", 42.4, 50.0),), of="resnet56_cifar10",
              rule="hrank_out_only"),
    Structure("hrank_resnet110", 1_061_422, None, 156_912_256, HRANK_110, of="resnet110_cifar10"),
    Structure("hrank_resnet110_by_rule", 1_054_847, None, 156_884_618, HRANK_110,
              (Printed("README of HRank", "1.04M", "156.90M"), Printed("HRank, Table 3", "", "148.70M")),
              of="resnet110_cifar10", rule="hrank_out_only"),
    Structure("hrank_resnet50", 6_980_575, None, 685_136_865, HRANK_50, side=224, of="resnet50_torchvision"),
    Structure("hrank_resnet50_by_rule", 13_773_764, None, 1_549_652_456, HRANK_50,
              (Printed("HRank, Table 6", "13.77M", "1.55B"),), side=224, of="resnet50_torchvision",
              rule="hrank_out_only"),
    # MNIST
    Structure("lenet_300_100", 266_610, 266_200, 266_200, lenet_300_100,
              (HAN("267K"), Printed("Han et al. 2015, per layer", "266K", "532K", rule="two_per_mac")), 28, 1),
    Structure("lenet5_caffe", 431_080, 430_500, 2_293_000, lenet5, (HAN("431K", "4586K"),), 28, 1),
    # ImageNet: dense nets, and those of L1 filter pruning, ThiNet and channel pruning
    Structure("alexnet_caffe", 60_965_224, 60_954_656, 724_406_816, alexnet, (HAN("61M", "1.5B"),), 227),
    Structure("alexnet_torchvision", 61_100_840, 61_090_496, 714_188_480, partial(torchvision, "alexnet"), (), 224),
    Structure("vgg16_imagenet", 138_357_544, 138_344_128, 15_470_264_320, partial(torchvision, "vgg16"),
              (HAN("138M", "30.9B"), THINET("138.34M", "30.94B"),
               Printed("README of ThiNet_Code", "138.24M", "30.94B", rule="two_per_mac")), 224),
    Structure("googlenet", 6_624_904, 6_609_344, 1_498_376_192,
              partial(torchvision, "googlenet", aux_logits=False, init_weights=False), (), 224),
    Structure("resnet18", 11_689_512, 11_678_912, 1_814_073_344, partial(torchvision, "resnet18"), (), 224),
    Structure("resnet34_imagenet", 21_797_672, 21_779_648, 3_663_761_408, RESNET34, (L1("2.16e7", "3.64e9"),), 224,
              note=NO_PROJECTIONS),
    Structure("resnet34_pruned_A", 20_151_764, 20_134_592, 3_100_184_576,
              partial(pruned, "l1_filter", RESNET34, first_of_blocks(0.3, 0.3, 0.3, 0.0, skip=RESNET34_SKIP)),
              (L1("1.99e7", "3.08e9", 7.6, 15.5),), 224, of="resnet34_imagenet", note=NO_PROJECTIONS),
    Structure("resnet34_pruned_B", 19_469_372, 19_452_608, 2_782_269_440,
              partial(pruned, "l1_filter", RESNET34, first_of_blocks(0.5, 0.6, 0.4, 0.0, skip=RESNET34_SKIP)),
              (L1("1.93e7", "2.76e9", 10.8, 24.2),), 224, of="resnet34_imagenet", note=NO_PROJECTIONS),
    Structure("resnet50_torchvision", 25_557_032, 25_502_912, 4_089_184_256, RESNET50,
              (Printed("HRank, Table 6", "25.50M", "4.09B"),), 224),
    Structure("resnet101", 44_549_160, 44_442_816, 7_801_405_440, partial(torchvision, "resnet101"), (), 224),
    Structure("resnet152", 60_192_808, 60_040_384, 11_513_626_624, partial(torchvision, "resnet152"), (), 224),
    Structure("thinet_resnet50_base", 25_557_032, 25_502_912, 3_857_973_248,
              CAFFE_50, (THINET_50("25.56M", "7.72B"), SENET("", "3.86G")), 224),
    Structure("resnet101_caffe", 44_549_160, 44_442_816, 7_570_194_432,
              partial(torchvision, "resnet101", stride_first=True), (), 224),
    Structure("resnet152_caffe", 60_192_808, 60_040_384, 11_282_415_616,
              partial(torchvision, "resnet152", stride_first=True), (), 224),
    Structure("thinet_conv", 131_452_552, 131_440_480, 4_791_205_888,
              partial(pruned, "thinet", partial(torchvision, "vgg16"), "vgg16_cifar10", **ONE_SHOT),
              (THINET("131.44M", "9.58B"),), 224, of="vgg16_imagenet"),
    Structure("thinet_tiny", 1_325_368, 1_323_184, 1_004_578_816,
              partial(pruned, "thinet", imagenet.vgg16_gap, "vgg16_cifar10/tiny", **ONE_SHOT),
              (THINET("1.32M", "2.01B"),), 224),
    Structure("thinet_resnet50_70", 16_945_246, 16_895_686, 2_440_026_340,
              partial(pruned, "thinet", CAFFE_50, "resnet50_imagenet/70", **ONE_SHOT),
              (THINET_50("16.94M", "4.88B"),), 224, of="thinet_resnet50_base"),
    Structure("thinet_resnet50_50", 12_381_864, 12_335_296, 1_706_426_368,
              partial(pruned, "thinet", CAFFE_50, "resnet50_imagenet", **ONE_SHOT),
              (THINET_50("12.38M", "3.41B"),), 224, of="thinet_resnet50_base"),
    Structure("thinet_resnet50_30", 8_665_318, 8_621_806, 1_097_492_539,
              partial(pruned, "thinet", CAFFE_50, "resnet50_imagenet/30", **ONE_SHOT),
              (THINET_50("8.66M", "2.20B"),), 224, of="thinet_resnet50_base"),
    Structure("cp_vgg16_5x", 130_879_294, 130_867_432, 3_515_283_520,
              partial(pruned, "channel_pruning", partial(torchvision, "vgg16"), "vgg16_cifar10", images=1), (), 224,
              of="vgg16_imagenet",
              note="cp_vgg16_5x saves 4.52x of the MACs of the convolutions, though its name says 5x."),
    Structure("mobilenet_v2", 3_504_872, 3_469_760, 300_774_272, partial(torchvision, "mobilenet_v2"), (), 224),
    Structure("bnn_vgg_cifar10", 14_029_706, 14_022_016, 616_966_144, convnets.bnn_convnet,
              note="bnn_vgg_cifar10 has 14,008,320 binary weights: all but the first and the last layer's."),
    # Compact nets: GhostNet and MobileNet
    *(Structure(f"ghost_vgg16_s{ratio}_d{kernel}", params, weights, macs,
                partial(GHOST_VGG, ratio=ratio, kernel=kernel), (GHOST(*printed),), of="vgg16_cifar10_512fc",
                note=GHOST_VGG_NOTE)
      for ratio, kernel, params, weights, macs, printed in (
          (2, 3, 7_650_474, 7_641_504, 158_109_696, ("7.7M", "158M")),
          (3, 3, 5_218_476, 5_209_470, 107_240_040, ("5.2M", "107M")),
          (4, 3, 3_982_362, 3_973_392, 80_432_640, ("4.0M", "80M")),
          (5, 3, 3_269_697, 3_260_655, 65_665_296, ("3.3M", "65M")),
          (2, 1, 7_633_578, 7_624_608, 157_003_776, ("7.6M", "157M")),
          (2, 5, 7_684_266, 7_675_296, 160_321_536, ("7.7M", "160M")),
          (2, 7, 7_734_954, 7_725_984, 163_639_296, ("7.7M", "163M")))),
    Structure("ghost_resnet56_s2", 438_010, 433_936, 65_139_328, partial(made, "ghostnet", "to_ghosts", RESNET56),
              (GHOST("0.43M", "63M"),), of="resnet56_cifar10"),
    Structure("ghost_resnet50_s2", 13_953_512, 13_899_392, 2_151_023_360, GHOST_50, (GHOST("13.0M", "2.2B"),), 224,
              of="resnet50_torchvision"),
    Structure("ghost_resnet50_s4", 8_151_752, 8_097_632, 1_181_942_912, partial(GHOST_50, ratio=4),
              (GHOST("6.5M", "1.2B"),), 224, of="resnet50_torchvision"),
    Structure("ghostnet_pytorchcv", 5_180_840, 5_150_392, 140_760_880, partial(ghostnet_pytorchcv, "ghostnet"),
              (GHOST("5.2M", "141M"),), 224),
    Structure("ghostnet_timm", 5_182_508, 5_153_336, 141_150_512, GHOST_NET, (GHOST("5.2M", "141M"),), 224),
    Structure("ghostnet_timm_0.5x", 2_587_292, 2_571_564, 42_328_152, partial(GHOST_NET, 0.5),
              (GHOST("2.6M", "42M"),), 224),
    Structure("ghostnet_timm_1.3x", 7_358_820, 7_321_608, 227_003_256, partial(GHOST_NET, 1.3),
              (GHOST("7.3M", "226M"),), 224),
    *(Structure(f"mobilenet_v1_{width:g}_{side}", params, weights, macs,
                partial(made, "mobilenet_v1", "MobileNet", width=width), prints, side)
      for width, params, weights, sizes in (
          (1.0, 4_231_976, 4_209_088, (
              (224, 568_740_352, (MOBILENET("4.2M", "569M"), TF_SLIM("4.24M", "569M"))),
              (192, 418_121_728, (MOBILENET("4.2M", "418M"), TF_SLIM("4.24M", "418M"))),
              (160, 290_675_200, (MOBILENET("4.2M", "290M"), TF_SLIM("4.24M", "291M"))),
              (128, 186_400_768, (MOBILENET("4.2M", "186M"), TF_SLIM("4.24M", "186M"))))),
          (0.75, 2_585_560, 2_568_144, (
              (224, 325_400_448, (MOBILENET("2.6M", "325M"), TF_SLIM("2.59M", "317M"))),
              (192, 239_273_472, (TF_SLIM("2.59M", "233M"),)),
              (160, 166_396_800, (TF_SLIM("2.59M", "162M"),)),
              (128, 106_770_432, (TF_SLIM("2.59M", "104M"),)))),
          (0.5, 1_331_592, 1_319_648, (
              (224, 149_497_088, (MOBILENET("1.3M", "149M"), TF_SLIM("1.34M", "150M"))),
              (160, 76_524_800, (Printed("MobileNets, Table 9", "1.32M", "76M"), TF_SLIM("1.34M", "77M"))))),
          (0.25, 470_072, 463_600, (
              (224, 41_030_272, (MOBILENET("0.5M", "41M"), TF_SLIM("0.47M", "41M"))),)))
      for side, macs, prints in sizes),
    Structure("amc_mobilenet_50flops", 2_408_232, 2_391_680, 293_870_000,
              partial(made, "mobilenet_v1", "MobileNet", widths=MOBILENET_AMC), (Printed("AMC", "", "285M"),), 224,
              of="mobilenet_v1_1_224"),
    # Waiting for the method of their paper
    Structure("shufflenet_g1_1x", 1_531_936, 1_516_248, 143_078_976, "shufflenet_v1", (), 224),
    Structure("shufflenet_g3_1x", 1_865_728, 1_840_248, 137_460_672, "shufflenet_v1", (MEGVII("1.9M", "138M"),), 224),
    Structure("shufflenet_g1_0.75x", 975_214, 963_198, 82_542_672, "shufflenet_v1", (), 224),
    Structure("shufflenet_g3_0.75x", 1_238_266, 1_218_906, 79_740_144, "shufflenet_v1", (), 224),
    Structure("shufflenet_g1_0.5x", 534_484, 526_140, 38_517_408, "shufflenet_v1", (), 224),
    Structure("shufflenet_g3_0.5x", 718_324, 705_084, 37_589_856, "shufflenet_v1", (MEGVII("0.7M", "38M"),), 224),
    Structure("shufflenet_g1_0.25x", 209_746, 205_074, 11_003_184, "shufflenet_v1", (), 224),
    Structure("shufflenet_g3_0.25x", 305_902, 298_782, 11_009_808, "shufflenet_v1", (), 224),
    Structure("squeezenet_1.0", 1_248_424, 1_244_448, 818_924_576, "squeezenet", (), 224),
    Structure("squeezenet_1.1", 1_235_496, 1_231_552, 349_151_936, "squeezenet", (), 224),
    Structure("seresnet50", 28_088_024, 28_017_856, 3_860_488_192, "senet", (SENET("", "3.87G"),), 224),
    Structure("seresnet152", 66_821_848, 66_618_560, 11_288_993_792, "senet", (), 224),
    Structure("seresnext50_32x4d", 27_559_896, 27_474_624, 4_232_994_816, "senet", (), 224),
    Structure("seresnext101_32x4d", 48_955_416, 48_782_016, 7_974_739_968, "senet", (), 224),
    Structure("senet154", 115_088_984, 114_789_568, 20_688_363_520, "senet", (), 224),
    Structure("xception", 22_855_952, 22_800_424, 8_357_403_496, "xception",
              (Printed("keras.io", "22,855,952"), Printed("EfficientNet, Table 2", "23M", "8.4B")), 299),
    Structure("igcv3_1x", 3_491_688, 3_426_144, 312_970_176, "igcv", (), 224),
    Structure("igcv3_0.5x", 1_985_528, 1_950_976, 96_913_888, "igcv", (), 224),
    Structure("mnasnet_a1", 3_887_038, 3_848_312, 311_579_072, "mnasnet",
              (Printed("MnasNet, Table 1", "3.9M", "312M"),), 224),
    Structure("mnasnet_b1_0.5x", 2_218_512, 2_196_888, 104_455_968, "mnasnet", (), 224),
    Structure("mnasnet_b1_1x", 4_383_312, 4_344_392, 314_415_872, "mnasnet", (), 224),
    Structure("mnasnet_b1_1.3x", 6_282_256, 6_232_440, 526_362_432, "mnasnet", (), 224),
    Structure("mnasnet_small", 2_030_264, 2_009_736, 68_339_184, "mnasnet", (), 224),
    *(Structure(f"efficientnet_{name}", params, weights, macs, "efficientnet", (EFFICIENTNET(*printed),), side)
      for name, side, params, weights, macs, printed in (
          ("b0", 224, 5_288_548, 5_236_192, 385_814_752, ("5.3M", "0.39B")),
          ("b1", 240, 7_794_184, 7_716_976, 686_802_832, ("7.8M", "0.70B")),
          ("b2", 260, 9_109_994, 9_026_016, 993_561_872, ("9.2M", "1.0B")),
          ("b4", 380, 19_341_616, 19_186_376, 4_393_771_024, ("19M", "4.2B")),
          ("b6", 528, 43_040_704, 42_762_672, 19_067_593_536, ("43M", "19B")),
          ("b7", 600, 66_347_960, 65_963_040, 37_745_884_192, ("66M", "37B")))),
    *(Structure(f"regnet{name}", params, weights, macs, "regnet", (REGNET(*printed),), 224)
      for name, params, weights, macs, printed in (
          ("x_200mf", 2_684_792, 2_662_944, 199_039_872, ("2.7M", "0.2B")),
          ("x_400mf", 5_157_512, 5_119_840, 397_677_568, ("5.2M", "0.4B")),
          ("x_600mf", 6_196_040, 6_161_760, 600_890_112, ("6.2M", "0.6B")),
          ("x_800mf", 7_259_656, 7_221_344, 799_699_712, ("7.3M", "0.8B")),
          ("x_1.6gf", 9_190_136, 9_145_632, 1_602_849_792, ("9.2M", "1.6B")),
          ("x_4.0gf", 22_118_248, 22_041_184, 3_964_498_816, ("22.1M", "4.0B")),
          ("x_6.4gf", 26_209_256, 26_134_048, 6_460_291_264, ("26.2M", "6.5B")),
          ("x_8.0gf", 39_572_648, 39_481_184, 7_995_132_416, ("39.6M", "8.0B")),
          ("x_12gf", 46_106_056, 46_008_672, 12_086_678_016, ("46.1M", "12.1B")),
          ("x_16gf", 54_278_536, 54_166_368, 15_940_755_456, ("54.3M", "15.9B")),
          ("x_32gf", 107_811_560, 107_648_544, 31_735_929_792, ("107.8M", "31.7B")),
          ("y_200mf", 3_162_996, 3_137_152, 199_514_080, ("3.2M", "0.2B")),
          ("y_400mf", 4_344_144, 4_310_784, 401_842_848, ("4.3M", "0.4B")),
          ("y_600mf", 6_055_160, 6_018_784, 601_220_992, ("6.1M", "0.6B")),
          ("y_800mf", 6_263_168, 6_226_784, 797_176_832, ("6.3M", "0.8B")),
          ("y_3.2gf", 19_436_338, 19_356_768, 3_176_482_752, ("19.4M", "3.2B")),
          ("y_4.0gf", 20_646_656, 20_571_488, 3_973_288_448, ("20.6M", "4.0B")),
          ("y_6.4gf", 30_583_252, 30_483_936, 6_355_204_992, ("30.6M", "6.4B")),
          ("y_8.0gf", 39_180_068, 39_077_440, 7_963_057_312, ("39.2M", "8.0B")),
          ("y_12gf", 51_822_544, 51_707_232, 12_092_376_576, ("51.8M", "12.1B")),
          ("y_16gf", 83_590_140, 83_443_552, 15_911_510_272, ("83.6M", "15.9B")),
          ("y_32gf", 145_046_770, 144_857_952, 32_279_552_832, ("145.0M", "32.3B")))),
)
# fmt: on
