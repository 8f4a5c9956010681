"""Trained weights on disk: safetensors with a checksum of their own, refused with a sentence when they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.errors import UserError
from baselines.faults import whole_file

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def save(model: nn.Module, path: Path, facts: dict[str, Any] | None = None) -> Path:
    """Write the state dict of ``model`` with its checksum and ``facts`` (JSON) under a temporary name, then rename."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(save(state, {"sha256": digest(state), "facts": json.dumps(facts or {})}))
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(state dict, facts) of a safetensors file; UserError for a missing, damaged or altered one."""
    from safetensors import safe_open

    if not os.path.isfile(path):
        raise UserError(f"There is no weights file {path}: pass an existing safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
        facts = json.loads(metadata.get("facts", "{}"))
    except Exception as error:  # of safetensors, torch, json and the system
        raise UserError(
            f"{path} is not a readable safetensors file ({error}): pass an intact one. Pickles (.pt, .pth) can run "
            "code and are not opened."
        ) from error
    if "sha256" in metadata and metadata["sha256"] != digest(state):
        raise UserError(f"{path} does not match its own checksum: it was altered or damaged; get it again.")
    if not isinstance(facts, dict):
        raise UserError(f"{path} has facts that are no JSON object: get it again.")
    return state, facts


def fit(model: nn.Module, state: dict[str, torch.Tensor], path: Path, net: str) -> nn.Module:
    """Load ``state`` into ``model`` in fp32; UserError naming the first name or shape that does not fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"holds '{unknown[0]}', which the net does not have"
        raise UserError(f"{path} {what}: these are weights of another net than {net}. Pass weights of {net}.")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{path}: '{name}' has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}: these are "
                f"weights of another net than {net}. Pass weights of {net}."
            )
        if value.is_complex() or value.is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{path}: '{name}' has {value.dtype}, expected {own[name].dtype}: pass such weights.")
    state = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def load(model: nn.Module, path: Path, net: str) -> nn.Module:
    """Fill ``model`` from a weights file; ``net`` is its name in messages."""
    return fit(model, read(path)[0], path, net)
