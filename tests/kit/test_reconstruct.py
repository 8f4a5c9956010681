"""Reconstruction's numerics against torch's convolution, numpy's least squares, and a written-out residual block."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant
from torch import nn

from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.kit import reconstruct, surgery
from methods.kit.features import Site
from methods.kit.reconstruct import Moments, Output, Reader

EXAMPLE = torch.zeros(1, 3, 16, 16)


def generator():
    return torch.Generator().manual_seed(1)


def used(net):
    """The net with BN statistics and scales away from the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return net.eval()


# -- samples

LAYERS = {
    "3x3": nn.Conv2d(4, 5, 3, padding=1),
    "strided": nn.Conv2d(4, 5, 3, stride=(2, 3), padding=(0, 2), bias=False),
    "dilated": nn.Conv2d(4, 5, (3, 2), padding=2, dilation=(2, 1)),
    "same": nn.Conv2d(4, 5, (3, 5), padding="same"),
    "reflect": nn.Conv2d(4, 5, 5, padding=2, padding_mode="reflect"),
    "1x1": nn.Conv2d(4, 5, 1, stride=2),
}


@torch.no_grad()
def outputs_at_places(module, kind):
    """Largest difference between the layer's output at drawn places and patches times kernels, and the places."""
    layer, x = LAYERS[kind], torch.randn(3, 4, 9, 11)
    layer = layer.to(memory_format=torch.channels_last)
    maps = layer(x)
    places = module.draw(x, layer, 4000, generator())
    read = module.patches(x, layer, places)
    ours = torch.einsum("mik,oik->mo", read, module.kernels(layer))
    ours = ours if layer.bias is None else ours + layer.bias
    there = maps[places.image, :, places.row, places.column]
    return (ours - there).abs().max().item(), places, maps.shape


@pytest.mark.parametrize("kind", LAYERS)
def test_patches_times_kernels_are_the_output_at_every_place(kind):
    far, places, shape = outputs_at_places(reconstruct, kind)
    assert far < 1e-5
    drawn = set(zip(places.image.tolist(), places.row.tolist(), places.column.tolist(), strict=True))
    assert drawn == {(i, r, c) for i in range(shape[0]) for r in range(shape[2]) for c in range(shape[3])}
    assert places.image.bincount().tolist() == [4000] * 3


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("strided", "p[:, None] * stride + ", "p[:, None] + "),
        ("dilated", "stride + dilation * torch", "stride + torch"),
        (
            "reflect",
            'mode = "constant" if module.padding_mode == "zeros" else module.padding_mode',
            'mode = "constant"',
        ),
        ("3x3", "found.permute(0, 3, 1, 2)", "found.permute(0, 3, 2, 1)"),
    ],
)
def test_the_place_oracle_catches_a_changed_line(kind, old, new):
    assert outputs_at_places(mutant(reconstruct, old, new), kind)[0] > 1e-3


def test_a_linear_layer_reads_its_whole_input():
    layer, x = nn.Linear(12, 5, bias=False), torch.randn(3, 12)
    places = reconstruct.draw(x, layer, 2, generator())
    assert places.image.tolist() == [0, 0, 1, 1, 2, 2] and not places.row.any() and not places.column.any()
    read = reconstruct.patches(x, layer, places)
    ours = torch.einsum("mik,oik->mo", read, reconstruct.kernels(layer))
    assert torch.allclose(ours, layer(x)[places.image], atol=1e-6)


def test_a_reader_tells_its_channels_from_the_others():
    maps = torch.randn(2, 4, 3, 3)
    weight = torch.randn(5, 36)
    reader = Reader("", 9, 9, 3)  # the last three of four channels, flattened
    part = reader.part(weight[:, :, None])
    ours = torch.einsum("nck,ock->no", maps[:, 1:].flatten(2), part)
    assert torch.allclose(
        ours, F.linear(maps.flatten(1), weight) - F.linear(maps[:, 0].flatten(1), weight[:, :9]), atol=1e-4
    )
    for layer in (nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last), nn.Linear(36, 5)):
        net, before = nn.ModuleDict({"layer": layer}), layer.weight.detach().clone()
        reader = Reader("layer", 1, 1, 3) if isinstance(layer, nn.Conv2d) else Reader("layer", 9, 9, 3)
        part = reader.part(reconstruct.kernels(layer))
        reader.set(net, part * torch.tensor([1.0, 2.0, 3.0])[:, None])
        factors = torch.ones(5, 4, 3, 3) * torch.tensor([1.0, 1.0, 2.0, 3.0])[:, None, None]
        assert torch.equal(layer.weight, before * factors.view(before.shape))


def test_the_pass_ends_at_the_last_tap_and_the_net_is_left_as_it_was():
    net, later = TinyPlain().train(), []
    net.features[1].eval()
    modes = [module.training for module in net.modules()]
    net.classifier[1].register_forward_hook(lambda *_: later.append(1))
    x = torch.randn(2, 3, 16, 16)
    taps = {Site("features.2"): torch.clone, Site("features.4"): torch.clone}
    with reconstruct.inputs(net, taps) as run:
        found = run(x)
        again = run(x)
    assert not later and list(found) == list(taps)
    with torch.no_grad():
        before_relu = net.eval().features[1](net.features[0](x))
        assert torch.equal(found[Site("features.2")], before_relu)
        assert torch.equal(again[Site("features.4")], net.features[3](before_relu.relu()))
    assert not any(module._forward_pre_hooks for module in net.modules())
    net.train().features[1].eval()
    assert modes == [module.training for module in net.modules()]


def test_a_module_that_is_called_twice_has_two_sites():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    twice = nn.Sequential(net[0], net[1], nn.Linear(2, 2), net[1])
    x = torch.randn(4, 2)
    with reconstruct.inputs(twice, {Site("1", 1): torch.clone}) as run:
        found = run(x)[Site("1", 1)]
    assert torch.equal(found, twice[2](twice[1](twice[0](x))))


def test_all_nets_are_sampled_at_the_same_places():
    net = used(tiny_resnet())
    other = copy.deepcopy(net)
    other.layer2[0].conv2.weight.data.mul_(2)
    batches = [(torch.randn(3, 3, 16, 16), None), (torch.randn(2, 3, 16, 16), None)]
    end = Site("layer2.0.relu2")
    found = list(reconstruct.samples([net, other], "layer2.0.conv2", batches, 7, generator(), end))
    assert [len(ours[0]) for ours, _ in found] == [21, 14]
    for (read, total), (read2, total2) in found:
        assert torch.equal(read, read2) and not torch.equal(total, total2)
        branch = torch.einsum("mik,oik->mo", read, reconstruct.kernels(net.layer2[0].conv2))
        bn = net.layer2[0].bn2
        twice = branch * (bn.weight / (bn.running_var + bn.eps).sqrt())
        assert torch.allclose(total2 - total, twice, atol=1e-4)


# -- least squares


def rows(samples=60, inputs=7, targets=3, seed=0):
    g = np.random.default_rng(seed)
    x = g.normal(size=(samples, inputs)) @ g.normal(size=(inputs, inputs)) + g.normal(size=inputs)
    return x, x @ g.normal(size=(inputs, targets)) + g.normal(size=(samples, targets)) + 2


def moments_of(x, y, parts=3):
    found = Moments()
    for i in range(parts):
        found.add(torch.tensor(x[i::parts]), torch.tensor(y[i::parts]))
    return found


def far_from_numpy(module, intercept):
    x, y = rows()
    found = module.Moments()
    for part in range(3):
        found.add(torch.tensor(x[part::3]), torch.tensor(y[part::3]))
    ours = module.solve(*found.products(intercept)).numpy()
    columns = np.column_stack([x, np.ones(len(x))]) if intercept else x
    return np.abs(ours - np.linalg.lstsq(columns, y)[0][: x.shape[1]]).max()


@pytest.mark.parametrize("intercept", [False, True])
def test_least_squares_are_numpys(intercept):
    assert far_from_numpy(reconstruct, intercept) < 1e-8


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.xx += x.T @ x", "self.xx = x.T @ x"),
        ("self.xy - torch.outer(self.x, self.y) / self.samples", "self.xy + 0"),
        ("torch.cholesky_solve(right, factor) / norm", "torch.cholesky_solve(right, factor)"),
        ("self.samples += len(x)", "self.samples = len(x)"),
    ],
)
def test_numpys_least_squares_catch_a_changed_line(old, new):
    assert far_from_numpy(mutant(reconstruct, old, new), True) > 1e-4


def test_dependent_columns_share_and_empty_ones_get_nothing():
    x, y = rows()
    x = np.column_stack([x, x[:, :2], np.zeros(len(x))])  # two columns twice, one empty
    ours = reconstruct.solve(*moments_of(x, y).products(False)).numpy()
    assert np.allclose(ours[:2], ours[7:9], atol=1e-4) and not ours[9].any()
    assert np.allclose(x @ ours, x @ np.linalg.lstsq(x, y)[0], atol=1e-6)
    few = reconstruct.solve(*moments_of(x[:4], y[:4]).products(False)).numpy()  # fewer samples than columns
    assert np.allclose(x[:4] @ few, y[:4], atol=1e-6) and np.abs(few).max() < 100


def test_an_input_that_never_changes_is_left_to_the_intercept():
    x, y = rows()
    x[:, 2] = 0.1
    xx, xy = moments_of(x, y).products(True)
    assert not xx[2].any() and not xx[:, 2].any() and not xy[2].any()
    moving = [0, 1, 3, 4, 5, 6]
    right = np.linalg.lstsq(np.column_stack([x[:, moving], np.ones(len(x))]), y)[0][:-1]
    ours = reconstruct.solve(xx, xy).numpy()
    assert np.allclose(ours[moving], right) and not ours[2].any()


def test_columns_of_nothing_but_zeros():
    assert not reconstruct.solve(torch.zeros(3, 3).double(), torch.zeros(3, 2).double()).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite(value):
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        Moments().add(torch.full((2, 2), value), torch.zeros(2, 1))


# -- what an output lacks


def normed(x, bn):
    shape = (1, -1, 1, 1)
    x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
    return x * bn.weight.view(shape) + bn.bias.view(shape)


def everywhere(monkeypatch, module=reconstruct):
    """Sample every place of every image once."""

    def all_places(x, layer, locations, generator):
        with torch.no_grad():
            n, _, height, width = layer(x).shape
        grid = torch.meshgrid(*(torch.arange(k) for k in (n, height, width)), indexing="ij")
        return module.Places(*(part.flatten() for part in grid))

    monkeypatch.setattr(module, "draw", all_places)


@torch.no_grad()
def test_the_end_of_a_branch_lacks_what_the_sum_lacks(monkeypatch):
    everywhere(monkeypatch)
    dense = used(tiny_resnet())
    net = copy.deepcopy(dense)
    net.layer1[0].conv2.weight.data.mul_(0.7)  # the shortcut of layer2 is off
    layers, x = surgery.layers(net, EXAMPLE), torch.randn(2, 3, 16, 16)
    sums, blocks = [], (dense.layer2[0], net.layer2[0])
    for whole, block in zip((dense, net), blocks, strict=True):
        x1 = whole.layer1(normed(whole.conv1(x), whole.bn1).relu())
        inner = normed(block.conv1(x1), block.bn1).relu()
        sums.append(normed(block.conv2(inner), block.bn2) + block.shortcut(x1))
    (reader,) = reconstruct.readers(layers["layer2.0.conv1"])
    output = Output(net, layers, reader)
    assert (reader.name, output.in_branch, output.intercept, output.bn) == (
        "layer2.0.conv2",
        True,
        True,
        "layer2.0.bn2",
    )
    ((read, gap),) = output.gaps(dense, EXAMPLE, [(x, None)], 1, generator())
    right = (sums[0] - sums[1]).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.allclose(gap, right, atol=1e-5)
    now = torch.einsum("mck,ock->mo", read.double(), output.weight)
    constant = now - (sums[1] - net.layer2[0].shortcut(x1)).permute(0, 2, 3, 1).flatten(0, 2)
    assert constant.std(0).max() < 1e-5  # the output behind BN, but for BN's constants


@torch.no_grad()
def test_another_layer_lacks_what_its_own_output_lacks(monkeypatch):
    everywhere(monkeypatch)
    dense = used(TinyPlain())
    net = copy.deepcopy(dense)
    net.features[0].weight.data[:3] = 0
    layers, x = surgery.layers(net, EXAMPLE), torch.randn(2, 3, 16, 16)
    output = Output(net, layers, reconstruct.readers(layers["features.0"])[0])
    ((_, gap),) = output.gaps(dense, EXAMPLE, [(x, None)], 1, generator())
    right = dense.features[:6](x) - net.features[:6](x)
    assert torch.allclose(gap, right.permute(0, 2, 3, 1).flatten(0, 2), atol=1e-5)


@torch.no_grad()
def test_changes_are_meant_behind_batch_normalisation():
    net, x = used(tiny_resnet()), torch.randn(2, 3, 16, 16)
    block = net.layer2[0]
    block.bn2.weight.data[3] = 1e-9  # muted: stays as it is
    layers, inner = surgery.layers(net, EXAMPLE), torch.randn(2, 12, 8, 8)
    output = Output(net, layers, reconstruct.readers(layers["layer2.0.conv1"])[0])
    before, weight = normed(block.conv2(inner), block.bn2), block.conv2.weight.clone()
    change, shift = torch.randn(12, 12, 9).double(), torch.randn(12).double()
    output.add(change, shift)
    right = F.conv2d(inner, change.view(12, 12, 3, 3).float(), padding=1) + shift.view(1, -1, 1, 1)
    right[:, 3] = 0
    assert torch.allclose(normed(block.conv2(inner), block.bn2) - before, right.float(), atol=1e-4)
    assert torch.equal(block.conv2.weight[3], weight[3]) and net(x).isfinite().all()


# -- how many filters stay


def widths(net, ratio=None, ratios=(), macs_reduction=None):
    return reconstruct.widths(net, EXAMPLE, surgery.layers(net, EXAMPLE), ratio, ratios, macs_reduction)


def test_the_dials_in_their_order():
    net = tiny_resnet()
    assert widths(net) == ({"layer1.0.conv1": 4, "layer2.0.conv1": 6, "layer3.0.conv1": 8}, [])
    assert widths(net, ratio=0.3, ratios=(0.9,) * 7)[0] == {
        "layer1.0.conv1": 5,
        "layer2.0.conv1": 8,
        "layer3.0.conv1": 11,
    }
    rates = (0, 0.5, 0, 0.25, 0, 0, 0)
    assert widths(net, ratios=rates)[0] == {"layer1.0.conv1": 4, "layer2.0.conv1": 9, "layer3.0.conv1": 16}
    found = widths(net, macs_reduction=0.3, ratio=0.9)[0]
    assert all(0.5 <= found[name] / width < 0.9 for name, width in zip(found, (8, 12, 16), strict=True))


def test_one_filter_stays_and_is_reported():
    assert widths(TinyPlain(), ratio=0.95) == ({"features.0": 1, "features.4": 1}, ["features.0", "features.4"])


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({"ratios": (0, 0.5, 0.5, 0, 0, 0, 0)}, "ratio 0.5 is for layer1.0.conv2, whose outputs are added"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 7 convolutions"),
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"macs_reduction": 2.0}, r"2.0 lies outside \[0, 1\)"),
    ],
)
def test_bad_rates(dials, words):
    with pytest.raises(UserError, match=words):
        widths(tiny_resnet(), **dials)


@pytest.mark.parametrize(("images", "locations", "words"), [(0, 10, "images=0"), (1, -1, "locations=-1")])
def test_nothing_to_sample(images, locations, words):
    with pytest.raises(UserError, match=f"{words} leaves nothing to reconstruct from"):
        reconstruct.check_samples(images, locations)
