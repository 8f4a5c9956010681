"""Popcount kernels against PyTorch's fp32 convolution of the same shape, and whole networks against onnxruntime.

    pytest tests/bench_popcount.py

One thread, CPU seconds, both sides in turns inside one run: other programs slow a clock on the wall. The kernel's time
is that of a call with real activations: making the bits is part of it. PyTorch convolves those activations as they are.
"""

import time
from functools import partial

import pytest
import torch
from llvmlite import binding
from oracle import toy_task, worn
from torch import nn

from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.vgg import VGG
from methods.binarization.bnn import BNN
from methods.binarization.xnor_net import XNORNet
from methods.kit import quant
from repro import popcount, popcount_kernel
from repro.interchange import session, to_onnx

COUNTS = popcount_kernel.IN_ONE_STEP
AVX2 = binding.get_host_cpu_features().get("avx2")
LIMITS = {1: 10.0, 64: 8.0} if COUNTS else dict.fromkeys((1, 64), 4.0 if AVX2 else 1.5)  # on the asserted shape
ASSERTED = ("", 256, 256, 16, 1)
SHAPES = (
    ASSERTED,  # net, input channels, filters, side of the input, stride; a side of 0: a linear layer
    ("VGG-16", 64, 64, 32, 1), ("VGG-16", 64, 128, 16, 1), ("VGG-16", 128, 128, 16, 1), ("VGG-16", 128, 256, 8, 1),
    ("VGG-16", 256, 256, 8, 1), ("VGG-16", 256, 512, 4, 1), ("VGG-16", 512, 512, 4, 1), ("VGG-16", 512, 512, 2, 1),
    ("VGG-16", 512, 512, 0, 1), ("VGG-16", 512, 10, 0, 1),
    ("ResNet-56", 16, 16, 32, 1), ("ResNet-56", 16, 32, 32, 2), ("ResNet-56", 32, 32, 16, 1),
    ("ResNet-56", 32, 64, 16, 2), ("ResNet-56", 64, 64, 8, 1), ("ResNet-56", 64, 10, 0, 1),
)  # fmt: skip
ROUNDS = {1: 15, 64: 5}
CALLS = 2e7  # MACs of fp32 in a round, at least one call


def cpu(call, times):
    """CPU seconds of a call: the mean of so many."""
    began = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - began) / times


@torch.inference_mode()
def ratio(channels, filters, side, stride, batch):
    """(PyTorch's CPU seconds, the kernel's): the best of the rounds, in turns, because machines are noisy."""
    if side:
        layer, x = nn.Conv2d(channels, filters, 3, stride, 1, bias=False), torch.randn(batch, channels, side, side)
    else:
        layer, x = nn.Linear(channels, filters, bias=False), torch.randn(batch, channels)
    layer.weight.copy_(quant.signs(layer.weight))
    kernel = popcount.Popcount(layer)
    assert torch.equal(kernel(x), layer(quant.signs(x)))
    times = max(1, int(CALLS / (layer.weight.numel() * batch * (side or 1) ** 2 / stride**2)))
    rounds = [(cpu(lambda: layer(x), times), cpu(lambda: kernel(x), 4 * times)) for _ in range(ROUNDS[batch])]
    return tuple(map(min, zip(*rounds, strict=True)))


@pytest.mark.parametrize("batch", [1, 64])
def test_layers(batch, benchmark):
    found = {}

    def all_shapes():
        for shape in SHAPES:
            found[shape] = ratio(*shape[1:], batch)

    benchmark.pedantic(all_shapes, rounds=1)
    print(f"\nbatch {batch}: CPU time of one thread, PyTorch fp32 / popcount")
    for (net, channels, filters, side, stride), (slow, fast) in found.items():
        kind = f"3x3, {side}x{side}, stride {stride}" if side else "linear"
        print(
            f"{net:10} {channels:4} -> {filters:4} {kind:23} {1e6 * slow / batch:8.1f} {1e6 * fast / batch:8.2f} us an "
            f"image {slow / fast:6.1f}x"
        )
    slow, fast = found[ASSERTED]
    benchmark.extra_info.update({str(shape): round(a / b, 1) for shape, (a, b) in found.items()})
    assert slow / fast >= LIMITS[batch]


NETS = {
    "BNN, VGG-16": (BNN(), VGG),
    "XNOR-Net, VGG-16": (XNORNet(), VGG),
    "BNN, ResNet-56": (BNN(), ResNetCifar),
    "XNOR-Net, ResNet-56": (XNORNet(), ResNetCifar),
}


@pytest.mark.parametrize(("method", "build"), NETS.values(), ids=NETS)
def test_networks(method, build, benchmark):
    task, example = toy_task(shape=(3, 32, 32)), torch.zeros(1, 3, 32, 32)
    task.fresh = build
    net = worn(method.compress(None, task), 0, 0.3)
    runs = [session(to_onnx(build().eval(), example)), session(to_onnx(net, example))]
    runs.append(popcount.session(popcount.network(net, example), 1))
    found = {}

    def turns():
        for batch, rounds in ROUNDS.items():
            x = torch.randn(batch, 3, 32, 32)
            times = [[cpu(partial(run, x), 1) for run in runs] for _ in range(rounds + 1)][1:]
            found[batch] = [1e3 * min(column) for column in zip(*times, strict=True)]

    benchmark.pedantic(turns, rounds=1)
    for batch, (dense, simulated, fast) in found.items():
        print(
            f"\nbatch {batch}: dense {dense:.2f} ms, binary {simulated:.2f} ms in onnxruntime, {fast:.2f} ms with "
            f"popcount: {dense / fast:.1f}x of dense",
            end="",
        )
    benchmark.extra_info.update(milliseconds=str(found))
    assert build is not VGG or not COUNTS or all(dense / fast >= 2 for dense, _, fast in found.values())
