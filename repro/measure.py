"""The referee: what a network costs and how well it does, measured on the network that a method returned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from baselines.cost import cost
from baselines.errors import UserError
from baselines.task import EVAL_BATCH, Normalise, accuracy
from repro import architecture, codec, latency, packed
from repro.counting import counted, layer_costs
from repro.interchange import session, to_onnx
from repro.record import SCHEMA_VERSION, Measurement, Record, is_measurement, load_all

if TYPE_CHECKING:
    from repro.config import RunConfig
    from repro.ground import Dense, Ground

SAME = 1e-3  # largest difference of logits in ONNX, relative to the largest one if that is above 1
COSTS = ("params", "nonzero", "macs", "bit_ops")  # of a layer


def measure(ground: Ground, model: nn.Module, onnx: bytes | None, file: codec.Packed | None = None) -> Measurement:
    """Accuracy on the test set (fp32, eval mode), cost for one input, bits, and the sizes of the files that hold it.

    ``bits``: of the parameters as the packed file stores them; ``bytes``: that file, read back and found equal.
    ``onnx``: the net as an ONNX file, None where it cannot be exported. ``file``: ``written(model)``, if known.
    """
    example = images(ground)
    file = file or written(model)
    return Measurement(
        **accuracy(ground.engine.place(model), test_batches(ground), ground.data.subset),
        **dataclasses.asdict(cost(model, example)),
        bits=sum(file.bits.get(name, 0) for name, _ in model.named_parameters()),
        bytes=len(file.data),
        bit_ops=sum(layer.bit_ops for layer in layer_costs(model, example).values()),
        onnx_bytes=None if onnx is None else len(onnx),
    )


def measured_dense(ground: Ground, dense: Dense) -> Measurement:
    """The dense net, measured once and remembered by the hash of its weights and of the data."""
    from repro.ground import read_json, write_json

    data = hashlib.sha256(json.dumps(ground.data.sha256, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{dense.sha256[:16]}-{data}-{ground.engine.device.type}-{SCHEMA_VERSION}.json"
    path = ground.cache / "measured" / name
    known = read_json(path, is_measurement)
    if known is None:
        known = dataclasses.asdict(measure(ground, dense.model, exported(ground, dense.model)[0]))
        write_json(path, known)
    return Measurement(**known)


def compared(ground: Ground, dense: nn.Module, compressed: nn.Module, onnx: bytes | None) -> dict[str, Any]:
    """What a record holds of the compressed net, and of both together; ``onnx``: the compressed one."""
    example, file = images(ground), written(compressed)
    return {
        "compressed": measure(ground, compressed, onnx, file),
        "stored": file.stored(),
        "layers": layers(dense, compressed, example),
        "counted": counted(dense, compressed, example),
        "latency": timed(ground, dense, compressed, onnx),
    }


def timed(ground: Ground, dense: nn.Module, compressed: nn.Module, onnx: bytes | None) -> dict[str, Any] | None:
    """A record's ``latency``, measured for ``latency`` seconds a cell; None where one of the nets has no ONNX file.

    ``latency=`` not given: for ``latency.SECONDS``, at budget smoke not at all.
    """
    seconds = ground.cfg.latency
    if seconds is None:
        seconds = 0.0 if ground.budget == "smoke" else latency.SECONDS
    old = exported(ground, dense)[0] if seconds and onnx is not None else None
    if old is None:
        return None
    return latency.compare(dense, compressed, images(ground), files=(old, onnx), seconds=seconds)


def images(ground: Ground) -> torch.Tensor:
    """One image of zeros in the shape of the data, (1, C, H, W)."""
    return torch.zeros(1, *ground.data.test.shape(), device=ground.engine.device)


def written(model: nn.Module) -> codec.Packed:
    """The packed file, after a proof that it gives back every bit of the weights."""
    file = codec.pack(model)
    state, _ = codec.unpack(file.data)
    for name, value in model.state_dict().items():
        if not same_bits(value.detach().cpu(), state[name]):
            raise RuntimeError(f"'{name}' does not come back from its packed file: repro/codec.py is wrong")
    return file


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal in type, shape and every bit."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    one, two = (t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t.reshape(-1) for t in (a, b))
    return torch.equal(one, two)


@torch.no_grad()
def exported(ground: Ground, model: nn.Module) -> tuple[bytes | None, str]:
    """(the net as an ONNX file, ""); (None, why) where it cannot be exported or gives other logits there."""
    x, _ = next(test_batches(ground))
    try:
        file = to_onnx(model, images(ground))
        ours, theirs = ground.engine.place(model).eval()(x[:2]).cpu(), session(file)(x[:2])
    except UserError as error:
        return None, str(error)
    gap = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    if gap <= SAME or not ours.isfinite().all():
        return file, ""
    return None, f"In ONNX the logits are others, off by {gap:.2g} of the largest (allowed {SAME:g})."


def keep(ground: Ground, model: nn.Module, run_id: str) -> Path:
    """Put the net of a run into the cache: its packed file and its description."""
    root = architecture.choose_root(model, ground.baseline, ground.data.num_classes)
    facts = {"run": run_id, "input": list(ground.data.test.shape())}
    return packed.save(model, ground.cache / "nets" / run_id, root, facts)


def test_batches(ground: Ground) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The test set, normalised: reachable from here, never from a Task."""
    normalise = Normalise(ground.baseline.mean, ground.baseline.std, ground.engine)
    for x, y in ground.data.test.plain(EVAL_BATCH):
        yield normalise(x), y


def layers(dense: nn.Module, compressed: nn.Module, example: torch.Tensor) -> list[dict[str, Any]]:
    """What every layer of the dense net and what is left of it cost: the record's ``layers``.

    A layer that was replaced has ``compressed`` None and the costs of all that stands in its place; one that is gone
    has zeros. Layers that take no layer's place are left out: only the totals of the net hold them.
    """
    before, after = layer_costs(dense, example), layer_costs(compressed, example)

    def place(name: str) -> str:
        """The dense layer that a layer is, or is a part of."""
        while name and name not in before:
            name = name.rpartition(".")[0]
        return name

    rows = []
    for name, old in before.items():
        parts = [new for part, new in after.items() if place(part) == name]
        kept = name in after and after[name].out > 0
        shape = [after[name].out, after[name].into] if kept else None
        costs = {key: [getattr(old, key), sum(getattr(new, key) for new in parts)] for key in COSTS}
        rows.append({"name": name, "dense": [old.out, old.into], "compressed": shape, **costs})
    return rows


def compressed_net(ground: Ground, run_id: str) -> nn.Module:
    """The network that run ``run_id`` produced, from the cache; UserError where it is not there."""
    return ground.engine.place(packed.load(packed.kept(ground.cache, run_id)))


def refresh(cfg: RunConfig) -> tuple[list[Path], list[str]]:
    """Measure again the records of ``cfg.baseline`` whose nets are in the cache (or the dense one is given).

    With ``only`` a dense training is none of them, it has no latency; with ``only=untimed`` those without one alone,
    which so can be stopped and started again. The paths of the records written, and a sentence for each one that had to
    be left as it was.
    """
    from repro.ground import known_dense, prepare

    ground = prepare(cfg)
    paths, left = [], []
    for record in load_all(ground.results)[0]:
        if record.baseline != ground.baseline.name or (cfg.only and record.kind == "train"):
            continue
        if cfg.only == "untimed" and record.latency is not None:
            continue
        here = dataclasses.replace(ground, cfg=dataclasses.replace(cfg, seed=record.seed), budget=record.budget)
        try:
            dense = known_dense(here)
            if dense is None or dense.sha256 != record.provenance["dense_sha256"]:
                raise UserError(
                    "its dense net is not in the cache: give it with baseline.weights=FILE, or run it again"
                )
            paths.append(measured_again(here, record, dense).save(ground.results))
        except UserError as error:
            left.append(f"{record.method} {record.id}: {error}")
    return paths, left


def measured_again(ground: Ground, record: Record, dense: Dense) -> Record:
    """The record with everything that is measured on its nets (a dense training has only one) measured now.

    With ``only`` just the latency. UserError where a net is not in the cache.
    """
    if record.kind == "train":
        before = measured_dense(ground, dense)
        rows = layers(dense.model, dense.model, images(ground))
        return dataclasses.replace(record, dense=before, compressed=before, layers=rows)
    model = compressed_net(ground, record.id)
    file, _ = exported(ground, model)
    if ground.cfg.only:
        return dataclasses.replace(record, latency=timed(ground, dense.model, model, file))
    return dataclasses.replace(
        record, dense=measured_dense(ground, dense), **compared(ground, dense.model, model, file)
    )
