"""GhostNet: the Ghost module in numpy, s = 1 against the net itself, published sizes, Eq. 4 and 5, and the file."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from oracle import mutant, size_of, toy_task, worn
from torch import nn

from baselines import base
from baselines.cost import cost
from baselines.errors import UserError
from baselines.models.imagenet import resnet50
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.compact import ghostnet
from methods.compact.ghostnet import Bottlenecks, Ghost, GhostNet, to_ghosts
from repro import architecture
from repro.interchange import session, to_onnx

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


# -- the module --------------------------------------------------------------------------------------------------------


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def correlated(x, weight, stride):
    """One image (C, H, W) under filters (O, C, k, k) with k // 2 zeros around it, written out."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
    rows, columns = ((side - k) // stride + 1 for side in x.shape[1:])
    out = np.zeros((len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride : row * stride + k, column * stride : column * stride + k]
            out[:, row, column] = (weight * window).sum((1, 2, 3))
    return out


def normalised(maps, bn, relu):
    mean, var, weight, bias = (array(t)[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    maps = (maps - mean) / np.sqrt(var + bn.eps) * weight + bias
    return np.maximum(maps, 0) if relu else maps


def by_hand(module, image, outputs, stride, ratio, relu):
    """The Ghost module's definition: intrinsic maps, then of each one its ratio - 1 ghosts, as many as are wanted."""
    (conv, bn), maps = module.primary[:2], []
    intrinsic = normalised(correlated(image, array(conv.weight), stride), bn, relu)
    if ratio > 1:
        filters = array(module.cheap[0].weight)
        maps = [correlated(intrinsic[[i // (ratio - 1)]], filters[[i]], 1)[0] for i in range(len(filters))]
        maps = list(normalised(np.stack(maps), module.cheap[1], relu))
    assert len(intrinsic) == math.ceil(outputs / ratio)
    return np.stack([*intrinsic, *maps])[:outputs]


SETTINGS = [  # outputs, kernel, stride, ratio, cheap kernel, relu
    (6, 3, 1, 2, 3, True), (7, 3, 2, 3, 5, True), (5, 1, 1, 4, 1, False), (7, 3, 1, 2, 3, False), (4, 3, 1, 1, 3, True),
    (3, 1, 2, 5, 3, True),
]  # fmt: skip


def is_a_ghost_module(module):
    """Oracle: outputs are those of numpy, for settings of which some do not divide."""
    image = torch.randn(3, 6, 7)
    for outputs, kernel, stride, ratio, cheap, relu in SETTINGS:
        made = module.Ghost(3, outputs, kernel, stride, kernel // 2, 1, ratio, cheap, relu)
        worn(made, 0, 0.5)
        with torch.no_grad():
            ours = made(image[None])[0]
        try:
            right = by_hand(made, array(image), outputs, stride, ratio, relu)
        except AssertionError:
            return False
        if ours.shape != right.shape or not np.allclose(ours, right, atol=1e-5):
            return False
    return True


def test_the_module_is_that_of_numpy():
    assert is_a_ghost_module(ghostnet)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ghosts[:, : -self.surplus] if", "ghosts[:, self.surplus :] if"),
        ("math.ceil(out_channels / ratio)", "max(1, out_channels // ratio)"),
        ("self.cheap = normalised(depthwise, relu)", "self.cheap = normalised(depthwise, True)"),
        ("normalised(convolution, relu), None", "normalised(convolution, False), None"),
        ("torch.cat([maps, ", "torch.cat([maps.relu(), "),
    ],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not is_a_ghost_module(mutant(ghostnet, old, new))


def costs_as_the_paper_says(module):
    """Oracle: the counter's MACs and weights of a convolution over those of a Ghost module are Eq. 4 and Eq. 5."""
    image = torch.zeros(1, 10, 9, 9)
    for c, n, k, s, d in ((10, 12, 3, 2, 3), (10, 12, 3, 4, 5), (10, 8, 1, 2, 3)):
        ghost = module.Ghost(c, n, k, 1, k // 2, 1, s, d)
        whole, ours = cost(nn.Conv2d(c, n, k, padding=k // 2, bias=False), image), cost(ghost, image)
        speed = (n * c * k * k) / (n / s * c * k * k + (s - 1) * n / s * d * d)
        weights = ours.params - 2 * n
        if not (math.isclose(whole.macs / ours.macs, speed) and math.isclose(whole.params / weights, speed)):
            return False
    return True


def test_speed_up_and_compression():
    assert costs_as_the_paper_says(ghostnet)
    assert not costs_as_the_paper_says(mutant(ghostnet, "intrinsic * (ratio - 1), cheap", "intrinsic * ratio, cheap"))


# -- in a net ----------------------------------------------------------------------------------------------------------


def bottlenecks():
    """A ResNet whose blocks call one ReLU three times, with projections."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, width_per_group=8)


def without_bn():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def used(build):
    """The net as after a training, biases included."""
    torch.manual_seed(1)
    net = worn(build(), 0, 0.5)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.5)
    return net


@torch.no_grad()
def is_the_same_net(module):
    """Oracle: one map for each map, begun with the trained weights, is the net itself."""
    for build in (TinyPlain, tiny_resnet, bottlenecks, without_bn):
        dense, x = used(build), torch.randn(2, 3, 16, 16)
        net = module.to_ghosts(copy.deepcopy(dense), ratio=1).eval()
        if not torch.allclose(net(x), dense(x), atol=1e-4, rtol=1e-3):
            return False
    return True


def test_one_map_for_each_is_an_ordinary_net():
    assert is_the_same_net(ghostnet)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("own_norm.running_mean -= conv.bias", "own_norm.running_mean += conv.bias"),
        ("kernel, relu is not None)", "kernel, True)"),
        ("for gone in (norm, relu):", "for gone in (relu,):"),
        ("calls[gone.target] == 1", "calls[gone.target] >= 1"),
        ("own.weight.copy_(conv.weight[:count])", "own.weight.copy_(conv.weight[-count:].flip(0))"),
    ],
)
def test_the_net_itself_catches_a_changed_line(old, new):
    assert not is_the_same_net(mutant(ghostnet, old, new))


def test_every_convolution_and_its_bn_and_relu_are_replaced():
    net = to_ghosts(bottlenecks())
    ghosts = {name: m.relu for name, m in net.named_modules() if isinstance(m, Ghost)}
    assert len(ghosts) == 1 + 4 * 4
    assert {name.split(".")[-1]: relu for name, relu in ghosts.items()} == {
        "conv1": True, "conv2": True, "conv3": False, "0": False,
    }  # fmt: skip
    inside = [m for g in net.modules() if isinstance(g, Ghost) for m in g.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]) == len(inside) == 2 * 17
    assert isinstance(net.relu, nn.Identity) and isinstance(net.layer1[0].relu, nn.ReLU), "one is called once"
    assert type(to_ghosts(bottlenecks(), first=False).conv1) is nn.Conv2d


def test_grouped_convolutions_stay():
    net = to_ghosts(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2)))
    assert type(net[0]) is nn.Conv2d
    with torch.no_grad():
        assert net(torch.randn(2, 4, 12, 12)).shape == (2, 8, 4, 4)


# -- published sizes ---------------------------------------------------------------------------------------------------


def as_counted(norm=True):
    """VGG-16 without BN behind its hidden layer."""
    net = VGG()
    if not norm:
        net.classifier[1] = nn.Identity()
    return net


def sized(build, shape, module=ghostnet, **fields):
    """(params, MACs) on the meta device."""
    with torch.device("meta"):
        return size_of(module.to_ghosts(build(), **fields), shape)


PUBLISHED = {(2, 3): (7_650_474, 158_109_696), (4, 3): (3_982_362, 80_432_640), (2, 1): (7_633_578, 157_003_776),
             (2, 5): (7_684_266, 160_321_536), (2, 7): (7_734_954, 163_639_296)}  # fmt: skip


@pytest.mark.parametrize(("ratio", "kernel"), PUBLISHED)
def test_ghost_vgg16_has_the_published_size(ratio, kernel):
    params, macs = PUBLISHED[ratio, kernel]
    assert sized(lambda: as_counted(False), CIFAR, ratio=ratio, kernel=kernel) == (params, macs)
    assert sized(VGG, CIFAR, ratio=ratio, kernel=kernel) == (params + 1024, macs), "the baseline's has that BN"


def test_other_nets_have_the_published_size():
    assert sized(lambda: ResNetCifar(56), CIFAR) == (438_010, 65_139_328)
    first = mutant(ghostnet, "for node in plain[int(not first) :]:", "for node in plain[1:]:")
    assert sized(lambda: ResNetCifar(56), CIFAR, first) != (438_010, 65_139_328)
    params, macs = sized(resnet50, IMAGENET, first=False)
    assert (round(params / 1e4), round(macs / 1e7)) == (1395, 215)  # as others count the authors' net: 13.95M, 2.15G
    params, macs = sized(resnet50, IMAGENET, first=False, ratio=4)
    assert (round(params / 1e4), round(macs / 1e7)) == (815, 118)


def test_the_printed_macs_of_vgg16_say_that_the_first_convolution_is_replaced():
    rows = [row for row in GhostNet.reported if row.baseline == "vgg16_cifar10"]
    assert len(rows) == 7
    for first, met in ((True, 7), (False, 4)):
        counts = [sized(lambda: as_counted(False), CIFAR, **GhostNet.recipes[row.recipe], first=first) for row in rows]
        assert sum(macs // 10**6 == row.macs / 1e6 for (_, macs), row in zip(counts, rows, strict=True)) == met
        assert all(round(params, -5) == row.params for (params, _), row in zip(counts, rows, strict=True))


@pytest.mark.parametrize(
    ("width", "size"),
    [(0.5, (2_587_292, 42_328_152)), (1.0, (5_182_508, 141_150_512)), (1.3, (7_358_820, 227_003_256))],
)
def test_ghostnet_has_the_published_size(width, size):
    with torch.device("meta"):
        assert size_of(Bottlenecks(1000, width), IMAGENET) == size == ghostnet_by_hand(width)


def ghostnet_by_hand(width, side=112, classes=1000):
    """(params, MACs) of GhostNet on 224 x 224 from Table 1 and arithmetic alone; widths are multiples of 4."""

    def even(value):
        near = max(4, int(value + 2) // 4 * 4)
        return near if near >= 0.9 * value else near + 4

    params = macs = 0

    def conv(out, into, k, side, rest=2):
        nonlocal params, macs
        params, macs = params + out * into * k * k + rest * out, macs + out * into * k * k * side**2

    def ghost(into, out, side):
        conv(math.ceil(out / 2), into, 1, side)
        conv(math.ceil(out / 2), 1, 3, side)

    into = even(16 * width)
    conv(into, 3, 3, side)
    for k, hidden, out, se, stride in TABLE_1:
        hidden, out, before = even(hidden * width), even(out * width), side
        ghost(into, hidden, before)
        if stride == 2:
            side //= 2
            conv(hidden, 1, k, side)
        if se:
            conv(even(hidden / 4), hidden, 1, 1, rest=1)
            conv(hidden, even(hidden / 4), 1, 1, rest=1)
        ghost(hidden, out, side)
        if stride == 2 or into != out:
            conv(into, 1, k, side)
            conv(out, into, 1, side)
        into = out
    last = even(960 * width)
    conv(last, into, 1, side)
    conv(1280, last, 1, 1, rest=1)
    conv(classes, 1280, 1, 1, rest=1)
    return params, macs


TABLE_1 = [  # kernel, expansion, outputs, squeeze, stride
    (3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2), (5, 120, 40, 1, 1), (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1), (3, 672, 112, 1, 1),
    (5, 672, 160, 1, 2), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1),
]  # fmt: skip


def test_timms_weights_fit():
    import timm

    with torch.device("meta"):
        ours, theirs = Bottlenecks().net.state_dict(), timm.create_model("ghostnet_100").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


# -- compress ----------------------------------------------------------------------------------------------------------


def asked(dense, **fields):
    """What compress makes of ``dense``, its task, and how it asked for training."""
    task, calls = toy_task(), []
    train = task.train
    task.train = lambda net, epochs, **options: calls.append((epochs, options)) or train(net, epochs, **options)
    return GhostNet(**fields).compress(dense, task), task, calls


def test_the_net_is_drawn_anew_and_trained_as_the_paper_does():
    dense = used(tiny_resnet)
    before = copy.deepcopy(dense.state_dict())
    net, task, calls = asked(dense)
    assert calls == [(164.0, {"lr": 0.1})] and task.from_scratch
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not torch.equal(net.conv1.primary[0].weight, dense.conv1.weight[:4])
    assert torch.equal(net.conv1.primary[1].running_mean, torch.zeros(4))


def test_inherit_begins_with_the_first_trained_filters():
    dense = used(tiny_resnet)
    net, task, _ = asked(copy.deepcopy(dense), inherit=True, ratio=3)
    assert not task.from_scratch and net.conv1.primary[0].weight.shape[0] == 3
    block = dense.layer2[0]
    for ours, theirs, bn in ((net.conv1, dense.conv1, dense.bn1), (net.layer2[0].conv2, block.conv2, block.bn2)):
        count = len(ours.primary[0].weight)
        assert torch.equal(ours.primary[0].weight, theirs.weight[:count])
        assert torch.equal(ours.primary[1].running_var, bn.running_var[:count])
        assert torch.equal(ours.primary[1].bias, bn.bias[:count])
    assert torch.equal(net.linear.weight, dense.linear.weight)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(net.conv1(x)[:, :3], dense.bn1(dense.conv1(x)).relu()[:, :3], atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 33])
def test_ghostnet_takes_the_tasks_images_and_classes(side):
    task = toy_task((1, side, side))
    net = GhostNet(net="ghostnet", width=0.1).compress(tiny_resnet(), task)
    assert task.from_scratch and net.net.conv_stem.in_channels == 1
    with torch.no_grad():
        assert net(torch.randn(1, 1, side, side)).shape == (1, 4)


def test_ghostnet_trains():
    task = toy_task(budget="smoke")
    net = GhostNet(net="ghostnet", width=0.1, lr=0.01).compress(tiny_resnet(), task)
    assert task.meter.steps > 0 and all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("fields", [{"ratio": 3}, {"inherit": True, "ratio": 1}, {"net": "ghostnet", "width": 0.1}])
def test_described_as_data_and_built_again_and_in_onnx(fields):
    net, *_ = asked(used(tiny_resnet), **fields)
    root = architecture.choose_root(net, base.load("tiny_resnet_synthetic"), 4)
    built = architecture.build(json.loads(json.dumps(architecture.describe(net, root))))
    built.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x), built.eval()(x))
    assert size_of(net, (3, 16, 16)) == size_of(built, (3, 16, 16))
    with torch.no_grad():
        assert torch.allclose(session(to_onnx(net, x))(x), net(x), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"net": "ghostnetv2"}, "no net 'ghostnetv2': choose baseline or ghostnet"),
        ({"ratio": 0}, "ratio=0 is no number of maps"),
        ({"kernel": 4}, "kernel=4 has no middle"),
        ({"kernel": -1}, "kernel=-1 has no middle"),
        ({"width": 0.0}, "width=0 leaves no channel"),
        ({"net": "ghostnet", "inherit": True}, "inherit=true is for net=baseline"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        GhostNet(**fields).compress(tiny_resnet(), toy_task())


def test_a_net_without_convolutions():
    with pytest.raises(UserError, match="no convolution to put a Ghost module in place of"):
        to_ghosts(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
