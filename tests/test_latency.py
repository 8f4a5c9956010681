"""Latency: turns, warm-up, rounds, medians and spread on a clock that the test turns; when no speed-up is claimed."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from baselines import base
from baselines.errors import UserError
from methods.kit import surgery
from methods.kit.coding import Coding, attach
from repro import latency

EXAMPLE = torch.zeros(1, 3, 16, 16)
FILES = (b"dense", b"compressed")


class Clock:
    """Time that passes only while a fake network runs."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def net(self, name, seconds):
        """A call that takes the next of ``seconds``, over and over, and writes ``name`` into the log."""
        times = itertools.cycle(seconds)

        def run(*_):
            self.log.append(name)
            self.now += next(times)

        return run


def a_net():
    return base.load("tiny_plain_synthetic").net(4).eval()


# ------------------------------------------------------------------------------------------- turns and rounds


def test_the_nets_take_turns_and_the_first_round_is_left_out():
    clock = Clock()
    rounds = latency.alternate([clock.net("d", [8.0, 0.25, 0.5]), clock.net("c", [4.0, 0.125, 0.25])], 9.0, clock)
    assert "".join(clock.log) == "dc" * (len(rounds) + 1)
    assert rounds[:3] == [[0.25, 0.125], [0.5, 0.25], [8.0, 4.0]]


@pytest.mark.parametrize(
    ("call", "seconds", "rounds"),
    [
        (2**-10, 4.0, 200),  # never more than 200
        (2**-3, 4.0, 15),  # a warm-up and 15 rounds of a quarter of a second: 4 seconds
        (2**-3, 20.0, 79),
        (2**-3, 0.001, 5),  # however tight, 5 rounds
        (1.0, 4.0, 5),  # and more seconds than asked for
        (1.75, 4.0, 4),  # a sixth round of 3.5 seconds would end behind 20: the warm-up and 4 take 17.5
        (2.0, 4.0, 4),  # they take 20 seconds
        (2.25, 4.0, 3),
        (30.0, 4.0, 3),  # never fewer than 3
    ],
)
def test_rounds(call, seconds, rounds):
    clock = Clock()
    assert len(latency.alternate([clock.net("d", [call]), clock.net("c", [call])], seconds, clock)) == rounds
    assert clock.now <= latency.LIMIT or rounds == latency.FEWEST


# ------------------------------------------------------------------------------------------- the table


@pytest.fixture
def machine(monkeypatch):
    """Two cores, and sessions that run on the clock: call i takes ``seconds[name][i]`` times threads and batch."""
    clock = Clock()
    clock.seconds = {
        FILES[0]: [0.05, *np.random.default_rng(0).lognormal(-6, 1, 200)],
        FILES[1]: [0.04, *np.random.default_rng(1).lognormal(-7, 1, 200)],
    }

    def session(data, threads):
        calls = {}

        def run(images):
            clock.log.append((data, threads, tuple(images.shape)))
            count = calls[len(images)] = calls.get(len(images), -1) + 1
            clock.now += clock.seconds[data][count] * threads * len(images)

        return run

    monkeypatch.setattr(latency, "session", session)
    monkeypatch.setattr(latency, "cores", lambda: 2)
    return clock


def compare(machine, **options):
    net = a_net()
    return latency.compare(net, net, EXAMPLE, **{"files": FILES, "clock": machine, **options})


def test_medians_and_spread(machine):
    found = compare(machine)
    assert [(c["threads"], c["batch"]) for c in found["cells"]] == [(1, 1), (1, 64), (2, 1), (2, 64)]
    for cell in found["cells"]:
        for data, name in zip(FILES, ("dense", "compressed"), strict=True):
            counted = machine.seconds[data][1 : cell["rounds"] + 1]  # the first one warms up
            low, median, high = np.percentile(counted, (25, 50, 75)) * 1000 * cell["threads"] * cell["batch"]
            assert cell[f"{name}_ms"] == pytest.approx(median, abs=1e-5)
            assert cell[f"{name}_spread_ms"] == pytest.approx(high - low, abs=2e-5)


def test_turns_in_every_cell(machine):
    found = compare(machine)
    expected = [
        (data, cell["threads"], (cell["batch"], 3, 16, 16))
        for cell in found["cells"]
        for _ in range(cell["rounds"] + 1)
        for data in FILES
    ]
    assert machine.log == expected


def test_one_core_has_no_second_half(machine, monkeypatch):
    monkeypatch.setattr(latency, "cores", lambda: 1)
    assert [(c["threads"], c["batch"]) for c in compare(machine)["cells"]] == [(1, 1), (1, 64)]


@pytest.mark.parametrize(("busy", "loaded"), [(0.0, False), (0.5, False), (0.51, True), (1.3, True)])
def test_other_work_before_the_start_flags_the_figures(machine, busy, loaded):
    def load():
        assert not machine.log, "the load is read before anything runs"
        return busy

    found = compare(machine, load=load)
    assert (found["load"], found["loaded"]) == (busy, loaded)
    assert len(found["cells"]) == 4


def test_other_work_is_what_is_busy_while_this_process_sleeps(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    monkeypatch.setattr(latency.os, "cpu_count", lambda: 4)
    # user nice system idle iowait irq softirq steal guest guest_nice; guest time is part of user time
    stat.write_text("cpu  1000 0 500 9000 100 0 0 0 40 0\ncpu0 1 2 3 4 5 6 7 8\n")

    def sleep(seconds):
        assert seconds == 0.5
        stat.write_text("cpu  1030 10 510 9140 110 0 0 0 90 0\ncpu0 1 2 3 4 5 6 7 8\n")

    assert latency.other_work(stat, sleep) == pytest.approx(4 * 50 / 200)
    assert latency.other_work(stat, lambda _: None) == 0, "no tick passed"
    monkeypatch.setattr(latency.os, "getloadavg", lambda: (0.75, 9.0, 9.0))
    assert latency.other_work(tmp_path / "none") == 0.75


@pytest.mark.parametrize("seconds", [0, -1.0, 20.5, float("nan")])
def test_seconds_that_no_cell_can_have(machine, seconds):
    with pytest.raises(UserError, match=rf"measured in {seconds} seconds: give more than 0 and at most 20\."):
        compare(machine, seconds=seconds)


def test_files_that_exist_are_not_exported_again(machine, monkeypatch):
    monkeypatch.setattr(latency, "to_onnx", lambda *_: pytest.fail("exported again"))
    compare(machine)


def test_without_files_each_net_is_exported(machine, monkeypatch):
    dense, compressed, asked = a_net(), a_net(), []
    monkeypatch.setattr(latency, "to_onnx", lambda net, example: asked.append(net) or FILES[len(asked) - 1])
    latency.compare(dense, compressed, EXAMPLE, clock=machine)
    assert asked == [dense, compressed] and {data for data, _, _ in machine.log} == set(FILES)


def test_a_real_measurement_has_the_form_of_a_record():
    net = a_net()
    found = latency.compare(net, copy.deepcopy(net), EXAMPLE, seconds=0.01)
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"runtime", "device", "cells", "load", "loaded", "kernel"}
    assert found["runtime"].startswith("onnxruntime 1.") and found["device"].endswith(" cores")
    for cell in found["cells"]:
        times = {f"{name}{part}_ms" for name in ("dense", "compressed") for part in ("", "_spread")}
        assert set(cell) == {"threads", "batch", "rounds", *times}
        assert cell["rounds"] >= 5 and min(cell["dense_ms"], cell["compressed_ms"]) > 0
        assert min(cell["dense_spread_ms"], cell["compressed_spread_ms"]) >= 0


# ------------------------------------------------------------------------------------------- what is claimed


def masked(net):
    with torch.no_grad():
        net.features[4].weight[:, :, 0] = 0
    return net


def pruned(net):
    found = surgery.layers(net, EXAMPLE)
    keep = {name: torch.arange(layer.width) < layer.width // 2 for name, layer in found.items()}
    return surgery.remove(net, EXAMPLE, keep)


def coded(net, coding):
    attach(net.features[0], "weight", coding)
    return net


def unbiased(net):
    net.features[0].bias = None
    return net


def wider(net):
    return nn.Sequential(net, nn.Linear(4, 4))


KERNELS = {
    "the dense net": (lambda net: net, "dense"),
    "masked": (masked, "no_fast_kernel"),
    "pruned": (pruned, "dense"),
    "pruned, then masked": (lambda net: masked(pruned(net)), "dense"),
    "binary": (lambda net: coded(net, Coding("binary")), "no_fast_kernel"),
    "codebook of 4 bits": (lambda net: coded(net, Coding("codebook", bits=4)), "no_fast_kernel"),
    "fp16": (lambda net: coded(net, Coding(bits=16)), "no_fast_kernel"),
    "fp32, declared": (lambda net: coded(net, Coding(bits=32)), "dense"),
    "pruned and binary": (lambda net: coded(pruned(net), Coding("binary")), "dense"),
    "without a bias": (unbiased, "dense"),
    "wider": (wider, "dense"),
    "wider and masked": (lambda net: wider(masked(net)), "no_fast_kernel"),
}


@pytest.mark.parametrize(("change", "kernel"), KERNELS.values(), ids=KERNELS)
def test_kernel(change, kernel):
    net = a_net()
    assert latency.kernel(copy.deepcopy(net), change(net), EXAMPLE) == kernel


def test_kernel_is_in_the_record(machine):
    found = latency.compare(a_net(), masked(a_net()), EXAMPLE, files=FILES, clock=machine)
    assert found["kernel"] == "no_fast_kernel"
