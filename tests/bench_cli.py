"""Start-up: `python -m repro list` against a bare `python -c "import torch"`, in alternation."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 2.0  # times the bare import


def seconds(*words):
    """Wall-clock time of one Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def test_list_takes_at_most_twice_the_import_of_torch(benchmark):
    bare, ours = [], []
    seconds("-m", "repro", "list")  # compiles
    benchmark.pedantic(
        lambda: ours.append(seconds("-m", "repro", "list")),
        setup=lambda: bare.append(seconds("-c", "import torch")),
        rounds=7,
    )
    ratio = min(ours) / min(bare)
    benchmark.extra_info["ratio"] = round(ratio, 3)
    print(f"\nlist {min(ours):.2f} s, import torch {min(bare):.2f} s: {ratio:.2f} times")
    assert ratio <= LIMIT
