"""Latency in turns: a net against itself gives a ratio of 1, a net with half of its filters is faster.

    pytest tests/bench_latency.py

Ratios inside one run, because machines are noisy. On a loaded one only a single thread counts: two wait for each other
whenever another program takes a core.
"""

import copy
import time

import pytest
import torch

from baselines import base
from methods.kit import surgery
from repro import latency

EXAMPLE = torch.zeros(1, 3, 32, 32)


def halved(net):
    """The net without the second half of the filters of every convolution."""
    found = surgery.layers(net, EXAMPLE)
    keep = {name: torch.arange(layer.width) < layer.width // 2 for name, layer in found.items()}
    return surgery.remove(copy.deepcopy(net), EXAMPLE, keep)


@pytest.mark.parametrize(
    ("change", "low", "high"), [(copy.deepcopy, 0.85, 1.18), (halved, 1.5, 8.0)], ids=["itself", "halved"]
)
def test_vgg(change, low, high, benchmark):
    dense = base.load("vgg16_mnist5k").net(10).eval()
    compressed = change(dense)
    began = time.process_time()
    found = benchmark.pedantic(latency.compare, args=(dense, compressed, EXAMPLE), rounds=1)
    spent = time.process_time() - began
    ratios = {(c["threads"], c["batch"]): round(c["dense_ms"] / c["compressed_ms"], 3) for c in found["cells"]}
    benchmark.extra_info.update(ratios=str(ratios), load=found["load"], cpu_seconds=round(spent, 1))
    rounds = [cell["rounds"] for cell in found["cells"]]
    print(f"\ndense over compressed {ratios}, rounds {rounds}, load {found['load']}, {spent:.1f} CPU seconds")
    counted = [ratio for (threads, _), ratio in ratios.items() if threads == 1 or not found["loaded"]]
    assert all(low < ratio < high for ratio in counted)
