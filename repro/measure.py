"""The referee: what a network costs and how well it does, measured on the network that a method returned."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from baselines import weights
from baselines.cost import cost
from baselines.errors import UserError
from baselines.task import EVAL_BATCH, Normalise, accuracy
from repro.record import Measurement, load_all

if TYPE_CHECKING:
    from repro.config import RunConfig
    from repro.ground import Ground


def measure(ground: Ground, model: nn.Module) -> Measurement:
    """Accuracy on the test set (fp32, eval mode), cost for one input, bits, and the size of the file that holds it.

    ``bits``: of the parameters as stored; ``bytes``: the safetensors file with parameters and buffers.
    """
    example = torch.zeros(1, *ground.data.test.shape(), device=ground.engine.device)
    counted = cost(model, example)
    return Measurement(
        **accuracy(ground.engine.place(model), test_batches(ground), ground.data.subset),
        **dataclasses.asdict(counted),
        bits=sum(p.numel() * p.element_size() * 8 for p in model.parameters()),
        bytes=file_size(model),
    )


def test_batches(ground: Ground) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The test set, normalised: reachable from here, never from a Task."""
    normalise = Normalise(ground.baseline.mean, ground.baseline.std, ground.engine)
    for x, y in ground.data.test.plain(EVAL_BATCH):
        yield normalise(x), y


def file_size(model: nn.Module) -> int:
    """Bytes of a file with all parameters and buffers of ``model``."""
    with tempfile.TemporaryDirectory() as folder:
        return weights.save(model, Path(folder, "net.safetensors")).stat().st_size


def layers(dense: nn.Module, compressed: nn.Module) -> list[dict]:
    """[out, in] of every convolution and linear layer before and after; ``compressed`` None where it is gone."""

    def shapes(model: nn.Module) -> dict[str, list[int]]:
        kinds = (nn.Conv2d, nn.Linear)
        return {name: list(m.weight.shape[:2]) for name, m in model.named_modules() if isinstance(m, kinds)}

    before, after = shapes(dense), shapes(compressed)
    return [{"name": name, "dense": shape, "compressed": after.get(name)} for name, shape in before.items()]


def resize(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module | None:
    """``model`` with every convolution, linear layer and BN in the shapes of ``state``; None when the names differ."""
    if set(model.state_dict()) != set(state):
        return None
    for name, module in model.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        for key in own:
            setattr(module, key, nn.Parameter(torch.empty_like(state[f"{name}.{key}".lstrip(".")])))
        for key, _ in list(module.named_buffers(recurse=False)):
            setattr(module, key, torch.empty_like(state[f"{name}.{key}".lstrip(".")]))
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.num_features = len(module.weight)
    model.load_state_dict(state)
    return model.eval()


def compressed_net(ground: Ground, run_id: str) -> nn.Module:
    """The network that run ``run_id`` produced, from the cache; UserError where it is not there."""
    path = ground.cache / "nets" / f"{run_id}.safetensors"
    if not path.is_file():
        raise UserError(f"The net of run '{run_id}' is not in the cache ({path}): run it again on this machine.")
    state, _ = weights.read(path)
    b, classes = ground.baseline, ground.data.num_classes
    for build in (b.net, b.student, *b.siblings.values()):
        model = resize(build(classes), state)
        if model is not None:
            return ground.engine.place(model)
    raise UserError(
        f"{path} holds no net of the family of {b.name}: its layers were replaced, and it must be run again."
    )


def refresh(cfg: RunConfig) -> list[Path]:
    """Measure again the runs of ``cfg.baseline`` whose nets are in the cache; the paths of the records written."""
    from repro.ground import prepare

    ground = prepare(cfg)
    written = []
    for record in load_all(ground.results)[0]:
        if (
            record.baseline != ground.baseline.name
            or not (ground.cache / "nets" / f"{record.id}.safetensors").is_file()
        ):
            continue
        record.compressed = measure(ground, compressed_net(ground, record.id))
        written.append(record.save(ground.results))
    return written
