"""How long two networks take on this machine, measured in turns: dense, compressed, dense, compressed, ...

Both run in onnxruntime on the CPU, on one thread and on all cores, with one image and with 64. Turns put what changes
on the machine on both alike; they also leave each network the caches as the other filled them. A compressed network
with binary layers takes a third turn, with the kernels of ``popcount``, and a cell holds whichever was faster.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.cost import cost
from baselines.errors import UserError
from methods.kit.coding import codings
from repro import popcount
from repro.interchange import cores, session, to_onnx
from repro.provenance import cpu_name

BATCHES = (1, 64)
SECONDS = 2.0  # for a cell; the four cells of a ResNet-56 take about 8 s
LIMIT = 20.0  # seconds that no cell passes but to reach FEWEST rounds
MOST, LEAST, FEWEST = 200, 5, 3  # rounds of a cell: at most; within SECONDS; within LIMIT
BUSY = 0.5  # cores kept busy by other work above which a figure is flagged
LOOK = 0.5  # seconds that other work is watched for
POPCOUNT = "popcount"

Clock = Callable[[], float]


def compare(
    dense: nn.Module,
    compressed: nn.Module,
    example: torch.Tensor,
    *,
    files: tuple[bytes, bytes] | None = None,
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
    load: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """The ``latency`` of a record: median and interquartile range in ms per batch, for each thread count and batch.

    ``kernel`` is "popcount" where that is the faster one in some cell; each cell then says "popcount" or "onnxruntime".
    ``example`` (N, C, H, W) gives the shape of an image; ``files`` are both networks as ONNX where they exist already;
    ``seconds`` (above 0, at most 20) is the time for one cell; ``load`` gives the cores that other work keeps busy.
    UserError for a network that ONNX does not take.
    """
    import onnxruntime

    check_seconds(seconds)
    busy = (load or other_work)()
    files = files or (to_onnx(dense, example), to_onnx(compressed, example))
    binary = popcount.network(compressed, example)
    cells = []
    for threads in sorted({1, cores()}):
        runs = {name: session(file, threads) for name, file in zip(("dense", "compressed"), files, strict=True)}
        if binary is not None:
            runs[POPCOUNT] = popcount.session(binary, threads)
        cells += _cells(runs, threads, example.shape[1:], seconds, clock)
    runtime, name = f"onnxruntime {onnxruntime.__version__}", kernel(dense, compressed, example)
    if any(cell.get("kernel") == POPCOUNT for cell in cells):
        runtime, name = f"{runtime}, {popcount.runtime()}", POPCOUNT
    else:
        cells = [{key: value for key, value in cell.items() if key != "kernel"} for cell in cells]
    return {
        "runtime": runtime, "device": processor(), "load": round(busy, 3), "loaded": busy > BUSY, "kernel": name,
        "cells": cells,
    }  # fmt: skip


def check_seconds(seconds: float) -> None:
    """UserError where no cell can be measured in so many seconds."""
    if not 0 < seconds <= LIMIT:
        raise UserError(f"A cell cannot be measured in {seconds} seconds: give more than 0 and at most {LIMIT:g}.")


def other_work(stat: Path = Path("/proc/stat"), sleep: Callable[[float], None] = time.sleep) -> float:
    """Cores that were busy while this process slept for half a second.

    The load average of the system would count this process's own training of the minute before; it is taken only
    where the kernel has no ``stat`` file.
    """
    if not stat.is_file():
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def ticks() -> tuple[int, int]:
        """(idle, all) ticks of all cores; waiting for a disk is idle."""
        fields = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)

    before = ticks()
    sleep(LOOK)
    idle, total = (after - old for after, old in zip(ticks(), before, strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total else 0.0


def _cells(
    runs: dict[str, Callable[[torch.Tensor], object]],
    threads: int,
    shape: Sequence[int],
    seconds: float,
    clock: Clock,
) -> list[dict[str, Any]]:
    """The cells of one thread count, on random images of ``shape`` (C, H, W)."""
    cells = []
    for batch in BATCHES:
        images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
        rounds = alternate([partial(run, images) for run in runs.values()], seconds, clock)
        found = dict(zip(runs, map(_milliseconds, zip(*rounds, strict=True)), strict=True))
        cell = {"threads": threads, "batch": batch, "rounds": len(rounds)}
        if POPCOUNT in found:
            fast, simulated = found.pop(POPCOUNT), found["compressed"]
            cell["kernel"] = POPCOUNT if fast < simulated else "onnxruntime"
            found["compressed"] = min(fast, simulated)
        for net, (median, spread) in found.items():
            cell |= {f"{net}_ms": median, f"{net}_spread_ms": spread}
        cells.append(cell)
    return cells


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float]:
    """(median, interquartile range) in ms."""
    low, median, high = statistics.quantiles((1000 * s for s in seconds), method="inclusive")
    return round(median, 5), round(high - low, 5)


def alternate(calls: Sequence[Callable[[], object]], seconds: float, clock: Clock) -> list[list[float]]:
    """Seconds of each call in each round; the calls take turns. The first round warms up and is left out.

    After ``seconds`` (the warm-up among them) it ends with 5 rounds, at 200 in any case, and with 3 or 4 where another
    one would go beyond 20 seconds.
    """
    began, rounds = clock(), []
    _round(calls, clock)
    while True:
        spent = clock() - began
        another = spent / (len(rounds) + 1)  # seconds
        needed = FEWEST if spent + another > LIMIT else LEAST if spent >= seconds else MOST
        if len(rounds) >= needed:
            return rounds
        rounds.append(_round(calls, clock))


def _round(calls: Sequence[Callable[[], object]], clock: Clock) -> list[float]:
    """Seconds of each call, one after the other."""
    times = []
    for call in calls:
        start = clock()
        call()
        times.append(clock() - start)
    return times


def kernel(dense: nn.Module, compressed: nn.Module, example: torch.Tensor) -> str:
    """What runs ``compressed`` in onnxruntime: "no_fast_kernel" where zeros or narrow weights are its gain, or "dense".

    All: it executes as many MACs as before. Narrow: its ``Coding`` says fewer bits; here they run as fp32.
    """
    old, new = cost(dense, example), cost(compressed, example)
    more_zeros = new.params - new.nonzero > old.params - old.nonzero
    return "no_fast_kernel" if new.macs >= old.macs and (more_zeros or _bits(compressed) < _bits(dense)) else "dense"


def _bits(net: nn.Module) -> int:
    """Bits of the narrowest weights of ``net``."""
    return min((coding.weight_bits for coding in codings(net).values()), default=32)


def processor() -> str:
    """The CPU by name and the cores that this process may use."""
    return f"{cpu_name()}, {cores()} cores"
