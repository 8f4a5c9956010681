"""Where a number comes from: code, packages, device, data and weights."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from baselines import parallel

if TYPE_CHECKING:
    from repro.ground import Ground

PACKAGES = ("torch", "torchvision", "timm", "numpy", "torch-pruning", "hydra-core")


def provenance(ground: Ground, dense_sha256: str, code: str, kit: dict[str, int]) -> dict[str, Any]:
    """Where a number comes from: code, packages, device, data and weights."""
    e = ground.engine
    commit, dirty = git_state()
    return {
        "commit": commit, "dirty": dirty, "packages": packages(), "python": platform.python_version(),
        "device": device_name(e.device), "precision": e.precision, "channels_last": e.channels_last,
        "threads": torch.get_num_threads(), "processes": parallel.world(),
        "data_sha256": ground.data.sha256, "dense_sha256": dense_sha256, "code_hash": code, "kit_versions": kit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """A GPU's name; of a CPU the name and the vector instructions that torch uses, since sums round differently."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    return f"{device.type} ({cpu_name()}{instructions})"


def cpu_name() -> str:
    """The CPU by name, where the system gives one, else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def packages() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether a Python file differs from it) of the checkout this code runs from; None where there is none.

    $REPRO_COMMIT says it for a copy without its history: a commit, with "+" behind it where files differed.
    """
    given = os.environ.get("REPRO_COMMIT")
    if given:
        return given.rstrip("+"), given.endswith("+")

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not some other repository that this code happens to lie in
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno", "--", ":(top)*.py"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
