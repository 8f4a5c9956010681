"""ONNX: a network as one file that runs without PyTorch, and that file as a function."""

from __future__ import annotations

import copy
import io
import itertools
import os
import warnings
from collections.abc import Callable

import torch
from torch import nn

from baselines.errors import UserError

INPUT, OUTPUT = "images", "logits"
LIMIT = 2**31  # bytes from which a protobuf message, and so one ONNX file, cannot be


def to_onnx(net: nn.Module, example: torch.Tensor) -> bytes:
    """The ONNX file of ``net`` in eval mode: weights inside, input "images" (N, C, H, W) for any N, output "logits".

    Traced on ``example`` (N, C, H, W) with the older exporter of PyTorch, which takes a tenth of the time of
    ``torch.export``; batch normalisation is folded into the convolution before it. The net stays as it was. UserError
    for a net that cannot be exported or is of 2 GB.
    """
    size = sum(t.numel() * t.element_size() for t in itertools.chain(net.parameters(), net.buffers()))
    if size >= LIMIT:
        raise UserError(
            f"The network holds {size / 1e9:.1f} GB, and one ONNX file holds less than {LIMIT / 1e9:.1f} GB: export a "
            "smaller one."
        )
    file, axes = io.BytesIO(), {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    names = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_axes": axes}
    try:
        twin = copy.deepcopy(net).cpu().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(twin, (example.cpu(),), file, **names, dynamo=False)
    except Exception as error:
        raise UserError(
            f"The network cannot be exported to ONNX ({_line(error)}): use tensor operations that ONNX has, in modules "
            "that can be copied."
        ) from error
    return file.getvalue()


def session(data: bytes, threads: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """The file as a function from images to logits, in onnxruntime on ``threads`` CPU threads; 0: all cores.

    Its threads rest between two calls: by default they would spin and slow down whatever runs next. UserError for a
    file that onnxruntime cannot run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        loaded = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(
            f"onnxruntime cannot run this file of {len(data)} bytes ({_line(error)}): give a whole ONNX file with "
            "operators that it has for the CPU."
        ) from error
    return lambda images: torch.from_numpy(loaded.run([OUTPUT], {INPUT: images.detach().cpu().numpy()})[0])


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _line(error: Exception) -> str:
    """The kind of the error and the first line of its text."""
    return f"{type(error).__name__}: {' '.join(next(iter(str(error).strip().splitlines()), '').split())}"
