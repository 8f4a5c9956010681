"""``python -m repro export``: the net of a run as files that other programs read.

* packed: the pair of repro/packed.py, which any machine with this project loads without pickle;
* onnx: one file, weights inside, which runs without PyTorch;
* pt2: PyTorch's own ``torch.export`` format. It is written and never loaded here: reading a crafted file of that kind
  can run code, so load it only where you trust whoever made it.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from baselines.errors import UserError
from repro import packed
from repro.interchange import to_onnx
from repro.record import pick, replace

FORMATS = ("packed", "onnx", "pt2")
BATCH = 2  # images in the example: a batch of one would be taken for a constant


def export(run: str, form: str, out: Path, results: Path, cache: Path) -> list[Path]:
    """Write the net of the run whose id is, or starts with, ``run`` into the folder ``out``; the paths written."""
    if form not in FORMATS:
        raise UserError(f"There is no format '{form}'. Choose one of: {', '.join(FORMATS)}.")
    files = [*(results / "records").rglob("*.json"), *(cache / "nets").glob("*.json")]
    path = packed.kept(cache, pick(run, (file.stem for file in files), f"{results} or the cache {cache}"))
    net, facts = packed.read(path)
    if form == "packed":
        contents = {file.name: file.read_bytes() for file in reversed(packed.files(path))}
    else:
        example = torch.zeros(BATCH, *shape(facts, path.name))
        contents = {f"{path.name}.{form}": to_onnx(net, example) if form == "onnx" else to_pt2(net, example)}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        replace(out / name, data)
    return [out / name for name in contents]


def shape(facts: dict, run: str) -> list[int]:
    """[C, H, W] of an input, out of the facts that were saved with the net."""
    size = facts.get("input")
    if not (isinstance(size, list) and len(size) == 3 and all(type(n) is int and 0 < n <= 4096 for n in size)):
        raise UserError(f"The facts of {run} give its input as {size!r:.80}, not as [C, H, W]: run it again.")
    return size


def to_pt2(net: nn.Module, example: torch.Tensor) -> bytes:
    """The file of ``torch.export`` for any number of images; UserError for a net that it cannot trace."""
    file = io.BytesIO()
    try:
        program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file)
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UserError(f"The net cannot be exported to pt2 ({cause}): take format=packed or format=onnx.") from error
    return file.getvalue()
