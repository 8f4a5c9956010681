"""A compressed network on disk: NAME.packed holds its tensors, NAME.json says what they belong to. No pickle.

The JSON: ``format``, ``architecture`` (repro/architecture.py), ``facts`` (of whoever saved it), ``packed`` (size and
SHA-256 of the other file, repro/codec.py) and ``sha256`` of all that. It is written last and names the other file by
its hash: a kill between the two, or two files that do not belong together, is told in a sentence and never loaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.errors import UserError
from methods.kit import coding
from repro import architecture, codec
from repro.record import canonical, parse, plain, replace

FORMAT = 1
LARGEST = codec.LIMIT + codec.HEADER_LIMIT + (1 << 20)  # bytes of either file
KEYS = {"format", "architecture", "facts", "packed", "sha256"}
AGAIN = "copy both files again, or run it again"


def files(path: Path) -> tuple[Path, Path]:
    """(NAME.json, NAME.packed) of a path without suffix."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.packed")


def kept(cache: Path, run_id: str) -> Path:
    """Where the cache keeps the net of a run, without suffix; UserError where it is not there."""
    path = cache / "nets" / run_id
    if not any(file.is_file() for file in files(path)):
        raise UserError(f"The net of run '{run_id}' is not in the cache {cache}: run it again on this machine.")
    return path


def save(model: nn.Module, path: Path, root: architecture.Spec, facts: dict[str, Any]) -> Path:
    """Write ``path``.packed, then ``path``.json, each in one step; the path of the JSON.

    ``root``: ``architecture.choose_root``. ``facts``: JSON-able; ``export`` needs the net's "input", [C, H, W].
    UserError for a network that its description does not give back.
    """
    described, data = architecture.describe(model, root), codec.pack(model).data
    about, payload = files(path)
    content = {"format": FORMAT, "architecture": described, "facts": plain(facts), "packed": _fingerprint(data)}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(payload, data)
    replace(about, json.dumps({**content, "sha256": _digest(content)}, allow_nan=False))
    return about


def load(path: Path) -> nn.Module:
    """The network of ``save`` in eval mode on the CPU, with its codings; UserError for anything but a whole pair."""
    return read(path)[0]


def read(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """(the network, its facts) of ``path``.json and ``path``.packed; UserError as ``load``."""
    about, payload = files(path)
    for file, other in ((about, payload), (payload, about)):
        if not file.is_file():
            raise UserError(f"There is no file {file}: a network is {other.name} and {file.name} together; {AGAIN}.")
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} has over {LARGEST} bytes, more than this version writes: {AGAIN}.")
    content, data = _content(about), payload.read_bytes()
    if content["packed"] != _fingerprint(data):
        raise UserError(f"{payload} does not belong to {about.name}, or is damaged: {AGAIN}.")
    try:
        return restore(content["architecture"], data), content["facts"]
    except UserError as error:
        raise UserError(f"{about} and {payload.name} cannot be loaded; {AGAIN}. {error}") from error


def restore(described: dict[str, Any], data: bytes) -> nn.Module:
    """The network of a description and a packed file, in eval mode; UserError where they do not fit each other."""
    state, codings = codec.unpack(data)
    net = architecture.build(described)
    own = net.state_dict()
    for name in [*own, *state]:
        ours, theirs = _shape(own.get(name)), _shape(state.get(name))
        if ours != theirs:
            raise UserError(f"The described network has {ours} as '{name}', but the packed file {theirs}: {AGAIN}.")
    net.load_state_dict(state)
    for name, declared in codings.items():
        owner, _, key = name.rpartition(".")
        coding.attach(net.get_submodule(owner), key, declared)
    return net.eval()


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _content(about: Path) -> dict[str, Any]:
    """The JSON file, whole and of this version."""
    try:
        content = parse(about.read_text("utf-8"))
        version = content["format"]
        whole = content.keys() == KEYS and content.pop("sha256") == _digest(content)
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise UserError(
            f"{about} is no description of a network ({type(error).__name__}: {error}): {AGAIN}."
        ) from error
    if version != FORMAT:
        raise UserError(f"{about} has the format {version!r:.20}, and this version reads {FORMAT}: {AGAIN}.")
    if not whole or not isinstance(content["facts"], dict):
        raise UserError(f"{about} does not match its own checksum: it was altered or damaged; {AGAIN}.")
    return content


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()
