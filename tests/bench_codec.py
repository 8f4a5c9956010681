"""15 million weights go into a file and come back in under ten seconds each way: ``pytest tests/bench_codec.py``.

One thread, CPU seconds. The tensors are those of VGG-16; each coding has to give every bit back.
"""

import time

import pytest
import torch

from baselines.models.vgg import VGG
from methods.kit.coding import Coding
from repro.codec import encode, unpack

LIMIT = 10.0  # CPU seconds each way


def normal(shape):
    return torch.randn(shape)


def sparse(shape):
    return torch.where(torch.rand(shape) < 0.1, torch.randn(shape), 0.0)


def shared(shape, levels=32):
    """``levels`` distinct values, the middle ones the most frequent."""
    levels = torch.randn(levels)
    index = (torch.randn(shape) * len(levels) / 8 + len(levels) / 2).long().clamp(0, len(levels) - 1)
    return levels[index]


def shared_and_sparse(shape):
    return torch.where(torch.rand(shape) < 0.1, shared(shape, 255), 0.0)


def binary(shape):
    return torch.where(torch.rand(shape) < 0.5, -1.0, 1.0) * torch.rand(shape[0]).reshape(-1, *[1] * (len(shape) - 1))


def ternary(shape):
    return torch.where(torch.rand(shape) < 0.5, 0.0, binary(shape))


CASES = {
    "dense": (normal, None),
    "dense fp16": (lambda shape: normal(shape).half().float(), Coding(bits=16)),
    "sparse 90 %": (sparse, None),
    "sparse 90 %, distances of 5 bits, huffman": (sparse, Coding(sparse=5, huffman=True)),
    "codebook 5 bits": (shared, Coding("codebook", bits=5)),
    "codebook 5 bits, huffman": (shared, Coding("codebook", bits=5, huffman=True)),
    "deep compression": (shared_and_sparse, Coding("codebook", bits=8, sparse=5, huffman=True)),
    "codebook 16 bits, huffman": (lambda s: shared(s, 60_000), Coding("codebook", bits=16, huffman=True)),
    "binary": (binary, Coding("binary")),
    "ternary": (ternary, Coding("ternary")),
}


@pytest.fixture(scope="module")
def shapes():
    """Name -> shape of the weights of VGG-16: 14,977,728 of them."""
    found = {name: p.shape for name, p in VGG().named_parameters() if p.ndim > 1}
    assert sum(shape.numel() for shape in found.values()) == 14_977_728
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request, shapes):
    """(coding's name, state, declared, packed)."""
    make, coding = CASES[request.param]
    state = {name: make(shape) for name, shape in shapes.items()}
    declared = dict.fromkeys(state, coding) if coding else {}
    return request.param, state, declared, encode(state, declared)


def timed(function, *args):
    """(result, CPU seconds): other programs slow a clock on the wall, not this."""
    began = time.process_time()
    return function(*args), time.process_time() - began


def test_writing(benchmark, case):
    name, state, declared, _ = case
    packed, seconds = benchmark.pedantic(timed, args=(encode, state, declared), rounds=2)
    bits = 8 * len(packed.data) / sum(tensor.numel() for tensor in state.values())
    benchmark.extra_info.update(bytes=len(packed.data), bits_per_weight=round(bits, 3), cpu_seconds=round(seconds, 2))
    print(f"{name}: written in {seconds:.2f} s, {bits:.3f} bits a weight")
    assert seconds < LIMIT


def test_reading(benchmark, case):
    name, state, declared, packed = case
    (back, codings), seconds = benchmark.pedantic(timed, args=(unpack, packed.data), rounds=2)
    benchmark.extra_info.update(cpu_seconds=round(seconds, 2))
    print(f"{name}: read in {seconds:.2f} s")
    assert all(torch.equal(back[key].view(torch.int32), tensor.view(torch.int32)) for key, tensor in state.items())
    assert codings == declared
    assert seconds < LIMIT
