"""Popcount kernels: whole numbers against numpy, limits against the normalisation, networks against themselves."""

import copy
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import mutant, toy_task
from test_records import CELL, LATENCY, a_record
from torch import nn

from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.binarization.bnn import BNN
from methods.binarization.xnor_net import BinaryBlock, XNORNet
from methods.kit import coding, quant
from repro import boards, latency, popcount, show
from repro.popcount import BITS
from repro.record import load

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def binary(layer, sizes=False, bias=False):
    """The layer with random weights -1 and +1, or a random size for each filter, and a bias of whole numbers."""
    with torch.no_grad():
        size = torch.rand(len(layer.weight)) + 0.5 if sizes else torch.ones(len(layer.weight))
        size = size.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.weight.copy_(quant.signs(torch.randn_like(layer.weight)) * size)
        if layer.bias is not None:
            layer.bias.copy_(torch.randint(-9, 9, layer.bias.shape))
    return layer


def pictures(*shape):
    """Whole numbers, a fifth of them 0.0 and -0.0: signs of zeros count."""
    x = torch.randint(-2, 3, shape).float()
    return torch.where(torch.rand(shape) < 0.5, -x, x)


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def windows(x, conv):
    """(N, C, H, W) -> (N, C, rows, columns, kernel rows, kernel columns), padded with zeros."""
    (down, along), (rows, cols) = conv.padding, conv.kernel_size
    x = np.pad(x, ((0, 0), (0, 0), (down, down), (along, along)))
    (dy, dx), (gap, apart) = conv.stride, conv.dilation
    height, width = (x.shape[2] - gap * (rows - 1) - 1) // dy + 1, (x.shape[3] - apart * (cols - 1) - 1) // dx + 1
    out = np.zeros((*x.shape[:2], height, width, rows, cols))
    for r, s in itertools.product(range(rows), range(cols)):
        top, left = r * gap, s * apart
        out[..., r, s] = x[:, :, top : top + dy * (height - 1) + 1 : dy, left : left + dx * (width - 1) + 1 : dx]
    return out


def by_numpy(x, layer):
    """Oracle: +1 where x >= 0 and else -1, padding 0, multiplied and added up in float64."""
    signs = np.where(array(x) >= 0, 1.0, -1.0)
    bias = np.zeros(len(layer.weight)) if layer.bias is None else array(layer.bias)
    if isinstance(layer, nn.Linear):
        return signs @ array(layer.weight).T + bias
    return np.einsum("nchwrs,ocrs->nohw", windows(signs, layer), array(layer.weight)) + bias[:, None, None]


def is_exact(x, layer, module=popcount):
    found = module.Popcount(layer)(x)
    wanted = by_numpy(x, layer)
    return found.dtype == torch.float32 and found.shape == wanted.shape and bool((array(found) == wanted).all())


# ------------------------------------------------------------------------------------------------------- whole numbers

LAYERS = {
    "3x3 on 64 channels": ((2, 64, 8, 8), nn.Conv2d(64, 16, 3, padding=1)),
    "65 channels": ((1, 65, 9, 7), nn.Conv2d(65, 9, 3, padding=1)),
    "ResNet's 16 channels": ((2, 16, 16, 16), nn.Conv2d(16, 16, 3, padding=1)),
    "and its stride": ((2, 16, 16, 16), nn.Conv2d(16, 32, 3, stride=2, padding=1)),
    "12 channels, 2 taps a word": ((1, 12, 8, 8), nn.Conv2d(12, 10, 3, padding=1)),
    "3 channels, 10 taps a word": ((1, 3, 8, 8), nn.Conv2d(3, 5, 5, padding=2)),
    "33 channels, 2 words": ((1, 33, 6, 6), nn.Conv2d(33, 7, 3, padding=1)),
    "1x1": ((2, 40, 6, 6), nn.Conv2d(40, 24, 1)),
    "1x1 with a stride": ((1, 40, 9, 9), nn.Conv2d(40, 24, 1, stride=2)),
    "5x5, wide padding": ((1, 20, 7, 7), nn.Conv2d(20, 8, 5, padding=4)),
    "all else uneven": ((2, 20, 11, 13), nn.Conv2d(20, 9, (3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1))),
    "a dilation and a stride": ((1, 32, 12, 12), nn.Conv2d(32, 8, 3, stride=2, padding=2, dilation=2)),
    "4x4 outputs": ((3, 96, 4, 4), nn.Conv2d(96, 20, 3, padding=1)),
    "2x2 outputs": ((5, 96, 2, 2), nn.Conv2d(96, 20, 3, padding=1)),
    "3x5 outputs": ((3, 20, 3, 5), nn.Conv2d(20, 40, 3, padding=1)),
    "one output": ((9, 20, 3, 3), nn.Conv2d(20, 40, 3)),
    "only padding at corners": ((1, 8, 2, 2), nn.Conv2d(8, 4, 1, padding=2)),
    "7x7, ResNet-50's": ((1, 64, 7, 7), nn.Conv2d(64, 16, 3, padding=1)),
    "linear": ((3, 100), nn.Linear(100, 30)),
    "linear of 64 and one image": ((1, 64), nn.Linear(64, 10)),
    "linear of 70 rows": ((70, 33), nn.Linear(33, 17)),
    "linear on sequences": ((2, 5, 40), nn.Linear(40, 6)),
}


@pytest.mark.parametrize(("shape", "layer"), LAYERS.values(), ids=LAYERS)
def test_sums_are_exact(shape, layer):
    assert is_exact(pictures(*shape), binary(layer))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 130), st.integers(1, 40), st.sampled_from((1, 3, 5)), st.integers(1, 3),
    st.integers(0, 2), st.integers(1, 2), st.integers(1, 12), st.integers(1, 12), st.booleans(),
)  # fmt: skip
def test_random_layers_are_exact(images, channels, filters, size, stride, padding, dilation, high, wide, bias):
    reach = dilation * (size - 1) + 1 - 2 * padding
    shape = images, channels, max(high, reach), max(wide, reach)
    layer = nn.Conv2d(channels, filters, size, stride, padding, dilation, bias=bias)
    assert is_exact(pictures(*shape), binary(layer))


@pytest.mark.parametrize("words", [1, 4, 30, 31, 32, 33, 35, 63, 123, 124, 125, 127, 128, 248, 259])
def test_depths_where_the_way_of_counting_changes(words):
    """31 counts are held in bytes, and words are added by fours: nothing overflows, even if all bits differ."""
    torch.manual_seed(words)
    linear = binary(nn.Linear(BITS * words, 17, bias=False))
    linear.weight.data[:2] = -1.0
    linear.weight.data[2, ::2] = -1.0
    x = quant.signs(torch.randn(9, BITS * words))
    x[:4] = 1.0
    assert is_exact(x, linear)
    conv = nn.Conv2d(BITS * words, 9, 1, bias=False)
    conv.weight.data = linear.weight.data[:9, :, None, None]
    assert is_exact(x.T[None].reshape(1, -1, 3, 3).repeat(1, 1, 2, 3), conv)


def test_both_ways_of_counting_are_exact(monkeypatch):
    """The way that this CPU does not take, as for one that has, or lacks, an instruction that counts 512 bits."""
    here = popcount._compiled()
    source = Path(here.__file__).read_text().replace("cache=True, ", "")
    line = next(line for line in source.splitlines() if line.startswith("IN_ONE_STEP = "))
    other = ModuleType("other_way")
    exec(compile(source.replace(line, f"IN_ONE_STEP = {not here.IN_ONE_STEP}"), "other_way", "exec"), other.__dict__)
    monkeypatch.setattr(popcount, "_compiled", lambda: other)
    for words in (2, 37, 130):
        assert is_exact(torch.randn(9, BITS * words), binary(nn.Linear(BITS * words, 17, bias=False)))
    assert is_exact(pictures(2, 65, 9, 9), binary(nn.Conv2d(65, 9, 3, padding=1)))


def test_views_and_other_orders_of_memory():
    layer = binary(nn.Conv2d(20, 8, 3, padding=1))
    x = pictures(2, 40, 8, 8)[:, ::2]
    assert is_exact(x, layer) and is_exact(x.contiguous(memory_format=torch.channels_last), layer)
    assert is_exact(pictures(30, 4).T, binary(nn.Linear(30, 5)))


def test_the_fp32_simulation_gives_the_same():
    for layer in (binary(nn.Conv2d(48, 24, 3, padding=1)), binary(nn.Conv2d(48, 24, 3, 2, 1))):
        x = torch.randn(2, 48, 10, 10)
        assert torch.equal(popcount.Popcount(layer)(x), layer(quant.signs(x)))


def test_a_size_for_every_filter_and_a_real_bias():
    for shape, layer in (((2, 50, 8, 8), nn.Conv2d(50, 12, 3, padding=1)), ((4, 90), nn.Linear(90, 33))):
        layer = binary(layer, sizes=True)
        nn.init.normal_(layer.bias)
        x = torch.randn(shape)
        found = popcount.Popcount(layer)(x)
        assert np.allclose(array(found), by_numpy(x, layer), rtol=1e-6, atol=1e-5)
        assert torch.allclose(found, layer(quant.signs(x)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" - inside).numpy()", " - inside.mean((1, 2), keepdim=True).expand_as(inside)).numpy()"),
        ("torch.zeros(channels), torch", "torch.full((channels,), 1e-45), torch"),
        ("(self.signs > 0).permute", "(self.signs < 0).permute"),
        ("i % share * channels", "i % share"),
        ("x * dx // along", "x * dx"),
        ("np.zeros_like(self.scale) if layer.bias is None else", "np.zeros_like(self.scale) if True else"),
        ("block.reshape(-1), scale", "np.sort(block.reshape(-1)), scale"),
    ],
    ids=["all places alike", "sign(0) is -1", "signs", "taps of a word", "stride", "no bias", "order of blocks"],
)
def test_the_oracle_catches_mutants(old, new):
    mutated = mutant(popcount, old, new)
    assert not all(is_exact(pictures(*shape), binary(layer), mutated) for shape, layer in LAYERS.values())


def test_what_a_kernel_takes():
    assert popcount.is_binary(binary(nn.Conv2d(4, 4, 3), sizes=True)) and popcount.is_binary(binary(nn.Linear(4, 4)))
    conv = binary(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    grouped, same = binary(nn.Conv2d(4, 4, 3, groups=2)), binary(nn.Conv2d(4, 4, 3, padding="same"))
    ternary, broken = binary(nn.Linear(4, 4)), binary(nn.Linear(4, 4))
    with torch.no_grad():
        ternary.weight[1, 2], broken.weight[:] = 0, torch.nan
    for layer in (conv, grouped, same, ternary, broken, nn.Conv2d(4, 4, 3), nn.ReLU(), None):
        assert not popcount.is_binary(layer)


# ---------------------------------------------------------------------------------------- normalisations in front of it


def worn(net):
    """Normalisations as after a training; some factors are negative, one is zero."""
    for module in net.modules():
        if isinstance(module, NORMS):
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 3)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, 0, 0.5)
            with torch.no_grad():
                module.weight[0] = 0
    return net.eval()


def agree(limits):
    """The sign behind the normalisation is what the limit says: at the limit, at its neighbours, at random numbers."""
    for norm, places in ((worn(nn.BatchNorm2d(300)), (4, 5)), (worn(nn.BatchNorm1d(300)), ())):
        limit, falling = limits(norm)
        near = [limit, *(torch.nextafter(limit, torch.full((300,), to)) for to in (-torch.inf, torch.inf))]
        x = torch.cat([torch.stack(near), torch.randn(500, 300), 1e30 * torch.randn(9, 300)]).clamp(-3e38, 3e38)
        with torch.no_grad():
            x = x.reshape(-1, 300, *[1] * len(places)).expand(-1, -1, *places)
            signs = norm(x.contiguous()) >= 0
        wanted = (x.movedim(1, -1) >= limit) ^ falling
        if not torch.equal(wanted.movedim(-1, 1), signs):
            return False
    return bool(falling.any()) and not falling.all() and limit[0].isinf()


def test_a_limit_says_what_the_normalisation_would():
    assert agree(popcount.limits)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("number(high)), falling", "number(low)), falling"),
        ("falling = first & ~last", "falling = first & last"),
        ("torch.where(first, -torch.inf, torch.inf)", "torch.where(first, torch.inf, -torch.inf)"),
        ("torch.where(rank < 0, rank ^ 0x7FFFFFFF, rank)", "rank"),
    ],
)
def test_other_limits_do_not(old, new):
    assert not agree(mutant(popcount, old, new).limits)


def block_by_numpy(x, block):
    """BN, signs, the layer, and the mean magnitude under the filter; in float64."""
    norm, layer, shape = block.norm, block.layer, (1, -1) if x.dim() == 2 else (1, -1, 1, 1)
    mean, var, gain, bias = (
        array(t).reshape(shape) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    x = (array(x) - mean) / np.sqrt(var + norm.eps) * gain + bias
    out = by_numpy(torch.from_numpy(x), layer)
    if not block.scaled:
        return out
    sizes = np.abs(x)
    return out * (sizes.mean(1, keepdims=True) if x.ndim == 2 else windows(sizes, layer).mean((1, 4, 5))[:, None])


BLOCKS = {
    "3x3": ((2, 20, 8, 8), nn.Conv2d(20, 12, 3, padding=1, bias=False)),
    "few outputs": ((3, 20, 3, 3), nn.Conv2d(20, 12, 3, padding=1, bias=False)),
    "uneven": ((2, 40, 11, 13), nn.Conv2d(40, 9, (3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1), bias=False)),
    "linear": ((4, 50), nn.Linear(50, 9, bias=False)),
}


def follows(shape, layer, scaled, module=popcount):
    """Whether a kernel takes the whole block's place and gives what numpy gives; over 99.9 % of outputs, because numpy
    rounds a normalisation otherwise and a sign may be another one."""
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1])
    coding.attach_input(binary(layer, sizes=True), 1)
    net, x = worn(nn.Sequential(BinaryBlock(norm, layer, scaled))), torch.randn(shape)
    fast = module.network(net, x)
    alone = fast is not None and [node.op for node in fast.graph.nodes] == ["placeholder", "call_module", "output"]
    return alone and np.isclose(array(fast(x)), block_by_numpy(x, net[0]), rtol=1e-4, atol=1e-4).mean() > 0.999


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("shape", "layer"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_with_its_normalisation_and_k(shape, layer, scaled):
    assert follows(shape, layer, scaled)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.where(falling[:, None, None], -signs, signs)", "signs"),
        ("norm.running_mean * factor", "norm.running_mean"),
        ("_affine(norm, channels) if scaled else", "_affine(None, channels) if scaled else"),
    ],
    ids=["nothing turns over", "another shift", "K in front of the normalisation"],
)
def test_mutants_of_the_block(old, new):
    mutated = mutant(popcount, old, new)
    mutated.SAME = torch.inf  # or it would notice by itself
    assert not all(follows(*case, True, mutated) for case in BLOCKS.values())


# ------------------------------------------------------------------------------------------------------ whole networks


def made(method, build):
    """What a method makes of an untrained net, its normalisations worn."""
    torch.manual_seed(0)
    task = toy_task()
    task.fresh = build
    return worn(method.compress(None, task))


def kernels(net):
    return sum(isinstance(module, popcount.Popcount) for module in net.modules())


EXAMPLE = torch.zeros(1, 3, 16, 16)
NETS = {
    "bnn, plain": (BNN(), TinyPlain, 3),
    "bnn, residual": (BNN(), tiny_resnet, 7),
    "xnor_net, plain": (XNORNet(), TinyPlain, 2),
    "xnor_net, residual": (XNORNet(), tiny_resnet, 6),
    "xnor_net without K": (XNORNet(input_scale=False, relu=True), tiny_resnet, 6),
}


@pytest.mark.parametrize(("method", "build", "count"), NETS.values(), ids=NETS)
def test_a_network_gives_the_logits_of_its_simulation(method, build, count):
    net = made(method, build)
    before = copy.deepcopy(net.state_dict())
    fast = popcount.network(net, EXAMPLE)
    assert kernels(fast) == count and kernels(net) == 0
    for images in (1, 3, 20):
        x = torch.randn(images, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(popcount.session(fast, 1)(x), net(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_threads_share_the_images_and_torch_keeps_its_own():
    net, x = made(BNN(), TinyPlain), torch.randn(21, 3, 16, 16)
    run = popcount.session(popcount.network(net, EXAMPLE), 2)
    before = torch.get_num_threads()
    with torch.no_grad():
        assert torch.allclose(run(x), net(x), atol=1e-4) and torch.allclose(run(x[:1]), net(x[:1]), atol=1e-4)
    assert torch.get_num_threads() == before


class Choosing(nn.Module):
    """A way that depends on values."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def test_networks_without_kernels(monkeypatch):
    assert popcount.network(TinyPlain(), EXAMPLE) is None
    assert popcount.network(made(XNORNet(mode="bwn"), TinyPlain), EXAMPLE) is None
    net = made(BNN(), TinyPlain)
    assert popcount.network(Choosing(net), EXAMPLE) is None
    wrong = mutant(popcount, "(self.signs > 0).permute", "(self.signs < 0).permute")
    assert wrong.network(net, EXAMPLE) is None, "other logits are noticed"
    popcount._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "repro.popcount_kernel", None)
    monkeypatch.delattr("repro.popcount_kernel", raising=False)
    assert popcount.network(net, EXAMPLE) is None, "numba does not work"


def test_a_sign_that_others_read_too_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.sign, self.layer = quant.SignActivation(), binary(nn.Linear(40, 40))
            coding.attach_input(self.layer, 1)

        def forward(self, x):
            signs = self.sign(x)
            return self.layer(signs) + signs

    net, x = Both(), torch.randn(3, 40)
    fast = popcount.network(net, x)
    assert kernels(fast) == 1 and torch.equal(fast(x), net(x).detach())


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (2, 3, 7, 9)])
def test_the_pool(shape):
    x = torch.randn(shape)
    assert torch.equal(popcount.Halved()(x), nn.MaxPool2d(2)(x))
    assert not any(
        popcount._halves(pool) for pool in (nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True))
    )


# ------------------------------------------------------------------------------------------------- latency and records


def timed(monkeypatch, seconds, net=None):
    """A latency whose third turn takes ``seconds`` by batch, where onnxruntime takes 2."""
    now = [0.0]

    def turn(took):
        def run(images):
            now[0] += took(len(images))

        return run

    monkeypatch.setattr(latency, "session", lambda data, threads: turn(lambda _: 2.0))
    monkeypatch.setattr(popcount, "session", lambda fast, threads: turn(seconds.get))
    monkeypatch.setattr(latency, "cores", lambda: 1)
    net = net or made(BNN(), TinyPlain)
    return latency.compare(TinyPlain(), net, EXAMPLE, files=(b"", b""), clock=lambda: now[0], load=lambda: 0.0)


def test_a_cell_holds_the_faster_one_and_says_which(monkeypatch, tmp_path):
    found = timed(monkeypatch, {1: 3.0, 64: 0.5})
    assert found["kernel"] == "popcount" and "numba" in found["runtime"]
    assert [(c["batch"], c["kernel"], c["dense_ms"], c["compressed_ms"]) for c in found["cells"]] == [
        (1, "onnxruntime", 2000.0, 2000.0), (64, "popcount", 2000.0, 500.0),
    ]  # fmt: skip
    record = a_record(latency=found)
    assert load(record.save(tmp_path)).latency == found


def test_kernels_that_are_nowhere_faster_claim_nothing(monkeypatch, tmp_path):
    found = timed(monkeypatch, {1: 3.0, 64: 2.5})
    assert found["kernel"] == "no_fast_kernel" and "numba" not in found["runtime"]
    assert all("kernel" not in cell for cell in found["cells"])
    assert load(a_record(latency=found).save(tmp_path)).latency == found


def test_other_networks_have_two_turns(monkeypatch):
    found = timed(monkeypatch, {}, TinyPlain())
    assert found["kernel"] == "dense" and all("kernel" not in cell for cell in found["cells"])


@pytest.mark.parametrize(
    ("kernel", "cell"),
    [("popcount", {}), ("popcount", {"kernel": "xnor"}), ("dense", {"kernel": "popcount"})],
)
def test_records_with_half_of_it_are_refused(kernel, cell, tmp_path):
    bad = a_record(latency={**LATENCY, "kernel": kernel, "cells": [{**CELL, **cell}]})
    with pytest.raises(UserError, match="'latency' is"):
        bad.save(tmp_path)


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        (("popcount", "popcount"), "popcount kernel"),
        (("onnxruntime", "popcount"), "popcount kernel in part"),
        (("onnxruntime", "onnxruntime"), ""),
    ],
)
def test_the_boards_name_the_kernel_of_each_cell(kernels, words):
    """Of two seeds, in the cell of batch 1; that of batch 64 is the popcount kernel's in both."""
    runs = []
    for kernel in kernels:
        cells = [{**CELL, "batch": 1, "kernel": kernel}, {**CELL, "batch": 64, "kernel": "popcount"}]
        runs.append(a_record(latency={**LATENCY, "kernel": "popcount", "cells": cells}))
    assert boards._speed(runs) == {
        "speedup_batch1": 2.0,
        "speedup_batch1_kernel": words,
        "speedup_batch64": 2.0,
        "speedup_batch64_kernel": "popcount kernel",
        "latency": "",
    }


def test_the_command_line_names_the_kernel(capsys):
    cells = [{**CELL, "kernel": "popcount"}, {**CELL, "batch": 1, "kernel": "onnxruntime"}]
    show._console().print(show._latency({**LATENCY, "kernel": "popcount", "cells": cells}))
    assert capsys.readouterr().out.count("(popcount)") == 1
