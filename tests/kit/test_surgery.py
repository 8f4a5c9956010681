"""Surgery: what can be pruned, the published roundings, and removal that keeps the masked network's function."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
import torchvision
from oracle import size_of
from torch import nn

from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.kit import surgery


class Preact(nn.Module):
    """A pre-activation residual net: the BN behind an addition reads the stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)
        self.bn3, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.linear(self.bn3(x).relu().mean((2, 3)))


def bottlenecks():
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], width_per_group=8)


def dense_net():
    return torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2)


NETS = {
    "vgg": (lambda: VGG(width=0.125), 32),
    "tiny_resnet": (tiny_resnet, 16),
    "tiny_plain": (TinyPlain, 16),
    "resnet18": (torchvision.models.resnet18, 64),
    "resnet50": (torchvision.models.resnet50, 64),
}
SMALL = ("vgg", "tiny_resnet", "tiny_plain", "bottlenecks", "densenet", "preact")
MORE = {"densenet": (dense_net, 64), "preact": (Preact, 16), "mobilenet": (torchvision.models.mobilenet_v2, 32)}
MORE["bottlenecks"] = (bottlenecks, 32)


def build(make):
    """An untrained net whose BN statistics and shifts are far from the identity; every filter emits something."""
    net = make()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.bias, 0.2, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net.eval()


def random_scores(net, image):
    return {name: torch.rand(layer.width) for name, layer in surgery.layers(net, image).items()}


def after(conv):
    """Name of the batch normalisation behind a convolution."""
    head, _, last = conv.rpartition(".")
    return f"{head}.{int(last) + 1}" if last.isdigit() else f"{head}.{last.replace('conv', 'bn')}".strip(".")


@torch.no_grad()
def masked_output(net, keep, x):
    """Output of ``net`` with the channels that ``keep`` drops set to zero behind their batch normalisation."""
    hooks = [
        net.get_submodule(after(name)).register_forward_hook(
            lambda _, __, out, kept=kept: out * kept.view(1, -1, 1, 1).to(out)
        )
        for name, kept in keep.items()
    ]
    try:
        return net(x)
    finally:
        for hook in hooks:
            hook.remove()


# -- what can be pruned


def test_vgg_has_13_layers():
    found = surgery.layers(VGG(width=0.125), torch.zeros(1, 3, 32, 32))
    assert [layer.width for layer in found.values()] == [8, 8, 16, 16, 32, 32, 32] + [64] * 6
    assert all(layer.bn == after(name) for name, layer in found.items())
    assert not any(layer.coupled or layer.shared for layer in found.values())


def test_resnet56_order_and_stream():
    found = surgery.layers(ResNetCifar(56), torch.zeros(1, 3, 32, 32))
    blocks = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(9) for c in (1, 2)]
    assert list(found) == ["conv1", *blocks]
    assert {n for n, layer in found.items() if layer.shared} == {"conv1", *(b for b in blocks if b.endswith("conv2"))}


def test_resnet50_order_is_stem_then_shortcut_first():
    found = surgery.layers(torchvision.models.resnet50(), torch.zeros(1, 3, 32, 32))
    expected = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        expected.append(f"layer{stage}.0.downsample.0")
        expected += [f"layer{stage}.{b}.conv{c}" for b in range(blocks) for c in (1, 2, 3)]
    assert list(found) == expected
    assert len(expected) == 53
    stream = {n for n in expected if n.endswith(("conv3", "downsample.0"))}
    assert {n for n, layer in found.items() if layer.coupled} == stream
    assert {layer.group for n, layer in found.items() if n in stream} == {
        f"layer{s}.0.downsample.0" for s in range(1, 5)
    }
    assert not any(layer.shared for layer in found.values())


def test_output_and_grouped_convolutions_are_left_out():
    net = nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(4, 4, 1, groups=2),
            c=nn.Conv2d(4, 6, 1),
            d=nn.Conv2d(6, 5, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    assert list(surgery.layers(net, torch.zeros(1, 3, 8, 8))) == ["c"]


def test_net_without_convolutions():
    with pytest.raises(UserError, match="no convolution"):
        surgery.layers(lenet_300_100(), torch.zeros(1, 1, 28, 28))


# -- hidden linear layers


class Mixed(nn.Module):
    """Linear layers that nothing may be taken from: one scales channels, two are added, one forms the output."""

    def __init__(self):
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.one, self.two, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x).relu()
        scale = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        x = self.one((x * scale[:, :, None, None]).mean((2, 3)))
        return self.last(x + self.two(x.relu()))


LINEAR = {
    "lenet300": (lenet_300_100, (1, 28, 28), {"ip1": "relu1", "ip2": "relu2"}),
    "lenet5": (lenet5, (1, 28, 28), {"ip1": "relu1"}),
    "vgg": (lambda: VGG(width=0.125), (3, 32, 32), {"classifier.0": "classifier.1"}),
    "tiny_plain": (TinyPlain, (3, 16, 16), {"classifier.1": "classifier.2"}),
    "mixed": (Mixed, (3, 8, 8), {"squeeze": None}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_hidden_linear_layers_are_found_when_asked_for(name):
    make, shape, hidden = LINEAR[name]
    net = make()
    found = surgery.layers(net, torch.zeros(1, *shape), linear=True)
    assert [n for n in found if isinstance(net.get_submodule(n), nn.Linear)] == list(hidden)
    convolutions = {n: layer for n, layer in found.items() if n not in hidden}
    if convolutions:
        assert surgery.layers(net, torch.zeros(1, *shape)) == convolutions


@torch.no_grad()
@pytest.mark.parametrize("name", ["lenet300", "lenet5", "vgg", "tiny_plain"])
def test_removed_neurons_are_those_that_emit_zero(name):
    make, shape, hidden = LINEAR[name]
    net, x = build(make), torch.randn(4, *shape)
    keep = {n: torch.rand(len(net.get_submodule(n).weight)) > 0.4 for n in hidden}
    hooks = [
        net.get_submodule(behind).register_forward_hook(lambda _, __, out, kept=keep[n]: out * kept)
        for n, behind in hidden.items()
    ]
    right = net(x)
    for hook in hooks:
        hook.remove()
    masked = copy.deepcopy(net)
    surgery.mask(masked, keep, surgery.layers(net, x[:1], linear=True))
    pruned = surgery.remove(net, x[:1], keep)
    for other in (masked, pruned):
        assert torch.allclose(other(x), right, rtol=1e-4, atol=1e-5)
    assert [pruned.get_submodule(n).out_features for n in hidden] == [int(kept.sum()) for kept in keep.values()]


def test_neurons_count_in_a_macs_budget():
    net, x = lenet_300_100(), torch.zeros(1, 1, 28, 28)
    scores = {"ip1": torch.rand(300), "ip2": torch.rand(100)}
    keep, _ = surgery.macs_budget(net, x, scores, 0.5)
    left = size_of(surgery.remove(net, x, keep), (1, 28, 28))[1]
    assert 0.49 * 266_200 < left <= 0.5 * 266_200


# -- roundings and ratios


@pytest.mark.parametrize("width", [7, 10, 16, 20, 64, 100, 512])
def test_roundings_are_exact_arithmetic(width):
    scores = {"a": torch.arange(float(width))}
    for percent in range(100):
        keep, clamped = surgery.select(scores, percent / 100, "keep")
        exact = width * (100 - percent) // 100
        assert int(keep["a"].sum()) == max(1, exact)
        assert clamped == ([] if exact else ["a"])
        keep, clamped = surgery.select(scores, percent / 100, "removed")
        assert int(keep["a"].sum()) == width - width * percent // 100
        assert not clamped


def test_plain_int_would_miss_a_published_width():
    assert int(10 * (1 - 0.9)) == 0
    assert int(surgery.select({"a": torch.rand(10)}, 0.9, "keep")[0]["a"].sum()) == 1


def test_highest_scores_stay_and_of_equals_the_later():
    keep, _ = surgery.select({"a": torch.tensor([3.0, 1.0, 2.0, 1.0]), "b": torch.tensor([5.0, 5.0])}, (0.25, 0.5))
    assert keep["a"].tolist() == [True, False, True, True]
    assert keep["b"].tolist() == [False, True]


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, math.nan])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(UserError, match=rf"ratio {ratio} of a lies outside \[0, 1\)"):
        surgery.select({"a": torch.rand(4)}, ratio)
    with pytest.raises(UserError, match="outside"):
        surgery.select_global({"a": torch.rand(4)}, ratio)


def test_wrong_number_of_ratios_names_both():
    with pytest.raises(UserError, match="3 pruning ratios were given, but there are 2 convolutions"):
        surgery.select({"a": torch.rand(4), "b": torch.rand(4)}, (0.1, 0.2, 0.3))


def test_unusable_scores_and_roundings():
    with pytest.raises(UserError, match="scores of a are not finite"):
        surgery.select({"a": torch.tensor([1.0, math.nan])}, 0.5)
    with pytest.raises(UserError, match="no rounding 'up'"):
        surgery.select({"a": torch.rand(2)}, 0.5, "up")
    with pytest.raises(UserError, match="nothing to prune"):
        surgery.select({}, 0.5)


def test_global_ratio_compares_layers_and_leaves_none_empty():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([0.01, 0.02, 0.03, 0.04])}
    keep, clamped = surgery.select_global(scores, 0.5)  # normalised, the two layers are alike
    assert [k.tolist() for k in keep.values()] == [[False, False, True, True]] * 2
    assert not clamped
    keep, clamped = surgery.select_global(scores, 0.5, normalise=False)
    assert keep["a"].all()
    assert keep["b"].tolist() == [False, False, False, True]
    assert clamped == ["b"]


def test_coupled_layers_get_one_score():
    net, x = torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32)
    found, scores = surgery.layers(net, x), random_scores(net, x)
    together = surgery.couple(scores, found)
    stage = ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    expected = sum(scores[n] / scores[n].mean() for n in stage) / 3
    for name in stage:
        torch.testing.assert_close(together[name], expected)
    assert together["layer1.0.conv1"] is scores["layer1.0.conv1"]
    x = torch.zeros(1, 3, 16, 16)
    scores = random_scores(tiny_resnet(), x)
    assert surgery.couple(scores, surgery.layers(tiny_resnet(), x)) == scores


# -- removal


@pytest.mark.parametrize("together", [True, False], ids=["coupled-equal", "each-for-itself"])
@pytest.mark.parametrize("name", NETS)
def test_removed_equals_masked_behind_bn(name, together):
    make, side = NETS[name]
    net, x = build(make), torch.randn(3, 3, side, side)
    found, scores = surgery.layers(net, x), random_scores(net, x)
    keep, _ = surgery.select(surgery.couple(scores, found) if together else scores, 0.5)
    expected = masked_output(net, keep, x)
    with torch.no_grad():
        assert (net(x) - expected).abs().max() > 1e-2
        pruned = surgery.remove(copy.deepcopy(net), x, keep)
        scale = max(1.0, float(expected.abs().max()))
        assert (pruned(x) - expected).abs().max() <= 1e-5 * scale
    widths = {n: m.out_channels for n, m in pruned.named_modules() if isinstance(m, nn.Conv2d)}
    for layer in found.values():
        mates = [n for n, other in found.items() if other.group == layer.group]
        left = layer.width if layer.shared else int(torch.stack([keep[n] for n in mates]).any(0).sum())
        assert widths[layer.name] == left
    if together and name.startswith("resnet"):
        assert pruned.fc.in_features == net.fc.in_features // 2


def test_a_mask_that_leaves_the_bn_shift_is_caught(monkeypatch):
    net, x = build(tiny_resnet), torch.randn(3, 3, 16, 16)
    keep, _ = surgery.select(random_scores(net, x), 0.5)
    monkeypatch.setattr(surgery, "_vectors", lambda conv, bn: [])
    with torch.no_grad():
        assert (surgery.remove(copy.deepcopy(net), x, keep)(x) - masked_output(net, keep, x)).abs().max() > 1e-2


def test_convolutions_without_bn():
    net, x = lenet5().eval(), torch.randn(2, 1, 28, 28)
    keep, _ = surgery.select(random_scores(net, x), 0.3)
    expected = copy.deepcopy(net)
    for name, kept in keep.items():
        expected.get_submodule(name).register_forward_hook(lambda _, __, out, k=kept: out * k.view(1, -1, 1, 1))
    pruned = surgery.remove(net, x, keep)
    assert (pruned.conv1.out_channels, pruned.conv2.out_channels, pruned.ip1.in_features) == (14, 35, 35 * 16)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), expected(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MORE)
def test_nets_whose_channels_pass_further_bns(name):
    make, side = MORE[name]
    net, x = build(make), torch.randn(2, 3, side, side)
    found = surgery.layers(net, x)
    keep, _ = surgery.select(surgery.couple(random_scores(net, x), found), 0.5)
    masked = copy.deepcopy(net)
    surgery.mask(masked, keep, found)
    silent = []

    def listen(module, args, gone):
        silent.append(float(args[0][:, gone].abs().max()))

    for layer in found.values():
        for reader, start, inputs in layer.readers:
            gone = start + (~keep[layer.name]).nonzero().flatten()
            if inputs == 1:
                masked.get_submodule(reader).register_forward_pre_hook(lambda m, a, gone=gone: listen(m, a, gone))
    with torch.no_grad():
        expected = masked(x)
        pruned = surgery.remove(copy.deepcopy(net), x, keep)
        torch.testing.assert_close(pruned(x), expected, atol=1e-5, rtol=1e-5)
    assert silent
    assert max(silent) == 0
    assert sum(p.numel() for p in pruned.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())


def test_masked_channels_are_exactly_zero():
    net, x = build(tiny_resnet), torch.randn(2, 3, 16, 16)
    found = surgery.layers(net, x)
    keep, _ = surgery.select(random_scores(net, x), 0.5)
    surgery.mask(net, keep, found)
    seen = {}
    for name in keep:
        net.get_submodule(after(name)).register_forward_hook(lambda _, __, out, n=name: seen.update({n: out.clone()}))
    with torch.no_grad():
        net(x)
    for name, kept in keep.items():
        assert seen[name][:, ~kept].abs().max() == 0
        assert seen[name][:, kept].abs().amax((0, 2, 3)).min() > 0


def test_removal_leaves_modes_flags_and_whole_layers():
    net = build(TinyPlain).train()
    net.features[1].eval()
    net.classifier.requires_grad_(False)
    modes = {name: module.training for name, module in net.named_modules()}
    before = copy.deepcopy(net.state_dict())
    image = torch.zeros(1, 3, 16, 16)
    surgery.remove(net, image, {"features.4": torch.arange(12) < 5})
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        f"classifier.{i}.{kind}" for i in (1, 3) for kind in ("weight", "bias")
    }
    after_it = net.state_dict()
    assert torch.equal(after_it["features.0.weight"], before["features.0.weight"])
    assert torch.equal(after_it["features.4.weight"], before["features.4.weight"][:5])
    assert torch.equal(after_it["features.5.running_var"], before["features.5.running_var"][:5])
    assert torch.equal(after_it["classifier.1.weight"], before["classifier.1.weight"][:, : 5 * 16])


def test_unfit_masks():
    net, x = tiny_resnet(), torch.zeros(1, 3, 16, 16)
    for keep, sentence in (
        ({"conv9": torch.ones(8, dtype=torch.bool)}, "'conv9' is no prunable convolution"),
        ({"conv1": torch.ones(3, dtype=torch.bool)}, "mask of conv1 has 3 entries, but the layer has 8 filters"),
        ({"conv1": torch.zeros(8, dtype=torch.bool)}, "mask of conv1 keeps no filter"),
    ):
        with pytest.raises(UserError, match=sentence):
            surgery.remove(net, x, keep)


def test_held_filters_stay_zero_and_the_others_move():
    net, x = build(tiny_resnet), torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        net.layer1[0].conv1.weight[0] = 0  # a filter of zeros whose BN still emits something: not held
    keep, _ = surgery.select(random_scores(net, x), 0.5)
    keep["layer1.0.conv1"][:] = True
    surgery.remove(net, x, keep)
    after_step = surgery.hold(net, x)
    with torch.no_grad():
        for param in net.parameters():
            param += 1
    after_step(0)
    stream = [n for n in keep if n == "conv1" or n.endswith("conv2")]
    for name in stream:
        conv, bn = net.get_submodule(name), net.get_submodule(after(name))
        for vector in (conv.weight.flatten(1).abs().sum(1), bn.weight, bn.bias):
            assert torch.equal(vector != 0, keep[name])
    assert (net.layer1[0].conv1.weight != 0).any()
    assert (net.layer1[0].conv1.weight[0] == 1).all()


def test_one_graph_per_removal_and_budget(monkeypatch):
    import torch_pruning as tp

    built = []
    build_dependency = tp.DependencyGraph.build_dependency
    monkeypatch.setattr(
        tp.DependencyGraph, "build_dependency", lambda *a, **k: (built.append(1), build_dependency(*a, **k))[1]
    )
    net, x = VGG(width=0.125), torch.zeros(1, 3, 32, 32)
    scores = random_scores(net, x)
    built.clear()
    keep, _ = surgery.macs_budget(net, x, scores, 0.5)
    assert len(built) == 1
    surgery.remove(net, x, keep)
    assert len(built) == 2


# -- MAC budget


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("choose", [surgery.select, surgery.select_global])
def test_budget_is_met_and_tight(name, choose):
    make, side = {**NETS, **MORE}[name]
    net, x = build(make), torch.zeros(1, 3, side, side)
    whole, target = size_of(net, x.shape[1:])[1], 0.5
    scores = surgery.couple(random_scores(net, x), surgery.layers(net, x))
    keep, _ = surgery.macs_budget(net, x, scores, target, choose)
    left = size_of(surgery.remove(copy.deepcopy(net), x, keep), x.shape[1:])[1]
    assert left <= (1 - target) * whole
    # the next milder choice on a grid of ratios saves too little
    milder = [choose(scores, i / 100)[0] for i in range(100)]
    kept = int(sum(k.sum() for k in keep.values()))
    milder = [m for m in milder if int(sum(k.sum() for k in m.values())) > kept]
    assert size_of(surgery.remove(copy.deepcopy(net), x, milder[-1]), x.shape[1:])[1] > (1 - target) * whole


def test_budget_counts_what_removal_leaves():
    for name in (*SMALL, "mobilenet"):
        make, side = {**NETS, **MORE}[name]
        net, x = build(make), torch.zeros(1, 3, side, side)
        keep, _ = surgery.select(random_scores(net, x), 0.4)
        counts = surgery.module_macs(net, x)
        assert sum(counts.values()) == size_of(net, x.shape[1:])[1]
        expected = surgery.macs_left(net, counts, keep, surgery.layers(net, x))
        assert size_of(surgery.remove(net, x, keep), x.shape[1:])[1] == pytest.approx(expected, rel=1e-9)


def test_budgets_that_cannot_be_met():
    net, x = tiny_resnet(), torch.zeros(1, 3, 16, 16)
    scores = random_scores(net, x)
    with pytest.raises(UserError, match=r"reduction 1.2 lies outside \[0, 1\)"):
        surgery.macs_budget(net, x, scores, 1.2)
    with pytest.raises(UserError, match=r"0.99 is out of reach: with one filter per pruned layer it is 0\.\d+"):
        surgery.macs_budget(net, x, scores, 0.99)
    keep, clamped = surgery.macs_budget(net, x, scores, 0)
    assert all(kept.all() for kept in keep.values())
    assert not clamped
