"""dense (or start=RUN) -> compress -> measure -> record: one page, the same for every method."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from baselines import parallel, weights
from baselines import task as tasks
from baselines.errors import UserError
from baselines.task import Meter, Task
from repro import registry
from repro.ground import Ground, cache_dir, dense_net, options_of, prepare, results_dir, teacher, trained
from repro.measure import (
    compared,
    compressed_net,
    exported,
    images,
    keep,
    layers,
    measure,
    measured_dense,
    test_batches,
)
from repro.provenance import provenance
from repro.record import Record, code_hash, identity, kit_versions, load_all, plain

if TYPE_CHECKING:
    from repro.config import RunConfig

__all__ = ["cache_dir", "prepare", "results_dir", "run", "train_dense"]


def run(cfg: RunConfig) -> Record | None:
    """One method on one baseline: compress the dense net (or the net of ``start``), measure it, write its record.

    None on all processes but the first, where torchrun started several: they only train.
    """
    ground = prepare(cfg)
    entry = registry.entries()[method_name(cfg)]
    dense = dense_net(ground)
    before = measured_dense(ground, dense)
    options = resolved_options(ground)
    hyperparameters = plain(dataclasses.asdict(cfg.method))
    run_id = identity(
        method=entry.name, baseline=ground.baseline.name, budget=ground.budget, seed=cfg.seed, parent=cfg.start,
        hyperparameters=hyperparameters, options=options, weights=dense.sha256 if dense.given else None,
    )  # fmt: skip
    code = code_hash(entry.path)
    journal = ground.cache / "journal" / f"{run_id}-{code[:8]}"
    model = compressed_net(ground, parent_id(ground)) if cfg.start else copy.deepcopy(dense.model)
    tasks.seed_everything(cfg.seed)
    task = Task(
        ground.baseline, ground.data, dense.model, **options_of(ground),
        teacher=teacher(ground), journal=journal, label=f"{entry.name} on {ground.baseline.name}",
    )  # fmt: skip
    model = cfg.method.compress(model, task)
    parallel.wait()  # for those that may have to read the journal
    if parallel.rank() > 0:
        return None
    file, fault = exported(ground, model)
    if fault:
        task.report(onnx=fault)
    record = Record(
        kind="run", method=entry.name, family=entry.family, recipe=recipe_of(cfg), baseline=ground.baseline.name,
        budget=ground.budget, seed=cfg.seed, hyperparameters=hyperparameters, options=options, dense=before,
        compressed=measure(ground, model, file), after_compression=after_compression(ground, task),
        details=task.details, starts_from="scratch" if task.from_scratch else "trained",
        given_weights=dense.given, validation_seen=not cfg.data.holdout, parent=cfg.start,
        **compared(ground, dense.model, model, file),
        **story(task.meter, task.curve),
        provenance=provenance(ground, dense.sha256, code, kit_versions(entry.path)),
    )  # fmt: skip
    try:
        keep(ground, model, record.id)
    finally:  # a net that cannot be kept is an error, but no reason to lose the record
        record.save(ground.results)
    shutil.rmtree(journal, ignore_errors=True)
    return record


def train_dense(cfg: RunConfig) -> Record | None:
    """Train the baseline's dense net (or take it from the cache) and write its record (the first process alone)."""
    ground = prepare(cfg)
    if ground.budget == "zero":
        raise UserError("budget=zero trains nothing: use budget=smoke, short or paper to train a dense net.")
    model, facts = trained(ground)
    if parallel.rank() > 0:
        return None
    measured = measure(ground, model, exported(ground, model)[0])
    entry = registry.entries()["dense"]
    record = Record(
        kind="train", method="dense", family=entry.family, baseline=ground.baseline.name, budget=ground.budget,
        seed=cfg.seed, options=resolved_options(ground), dense=measured, compressed=measured, starts_from="scratch",
        validation_seen=not cfg.data.holdout, details={"recipe": facts["recipe"]},
        layers=layers(model, model, images(ground)),
        **story(Meter(**facts["meter"]), facts["curve"]),
        provenance=provenance(
            ground, weights.digest(model.state_dict()), code_hash(entry.path), kit_versions(entry.path)
        ),
    )  # fmt: skip
    record.save(ground.results)
    return record


def method_name(cfg: RunConfig) -> str:
    """The stem of the file that defines the configured method."""
    return type(cfg.method).__module__.rsplit(".", 1)[-1]


def recipe_of(cfg: RunConfig) -> str | None:
    """The recipe whose values the method has, as a key of its class; None for the defaults or changed values."""
    values = plain(dataclasses.asdict(cfg.method))
    for key, fields in type(cfg.method).recipes.items():
        if key.split("/")[0] == cfg.baseline.name and values == plain(dataclasses.asdict(type(cfg.method)(**fields))):
            return key
    return None


def resolved_options(ground: Ground) -> dict[str, Any]:
    """What of the baseline and the data changes the result."""
    cfg = ground.cfg
    options: dict[str, Any] = {"data": ground.data.name, "holdout": cfg.data.holdout}
    if cfg.baseline.teacher:
        options["teacher_sha256"] = weights.digest(weights.read(Path(cfg.baseline.teacher).expanduser())[0])
    return options


def parent_id(ground: Ground) -> str:
    """The id in ``start=ID`` after a look at its record: same baseline, one that is there."""
    found = next((r for r in load_all(ground.results)[0] if r.id == ground.cfg.start), None)
    if found is None:
        raise UserError(f"start={ground.cfg.start}: there is no such record in {ground.results}. Run the parent first.")
    if found.baseline != ground.baseline.name:
        raise UserError(
            f"start={found.id} is a run on {found.baseline}, not on {ground.baseline.name}: use its baseline."
        )
    return found.id


def after_compression(ground: Ground, task: Task) -> dict[str, float] | None:
    """Accuracy of the net as it entered its only train call; None where there was none, several, or a new net."""
    if task.meter.train_calls != 1 or task.from_scratch or task.entered_training is None:
        return None
    return accuracy_of(ground, task.entered_training)


def accuracy_of(ground: Ground, model: torch.nn.Module) -> dict[str, float]:
    """top1, top5 (and subset_top1) on the test set."""
    return tasks.accuracy(model, test_batches(ground), ground.data.subset)


def story(meter: Meter, curve: list[list[float]]) -> dict[str, Any]:
    """Meter, curve and status of a record: diverged when a loss was not a number."""
    finite = all(math.isfinite(point[1]) for point in curve)
    return {"meter": dataclasses.asdict(meter), "curve": plain(curve), "status": "ok" if finite else "diverged"}
