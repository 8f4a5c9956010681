"""dense (or start=RUN) -> compress -> measure -> record: one page, the same for every method."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from baselines import parallel, weights
from baselines import task as tasks
from baselines.cost import cost
from baselines.errors import Diverged, UserError
from baselines.task import Meter, Task
from repro import registry
from repro.ground import (
    Dense,
    DenseDiverged,
    Ground,
    cache_dir,
    dense_net,
    options_of,
    prepare,
    results_dir,
    teacher,
    trained,
)
from repro.locks import alone
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
from repro.record import (
    MAX_COUNT,
    Measurement,
    Record,
    canonical,
    code_hash,
    identity,
    is_stale,
    kit_versions,
    load,
    load_all,
    plain,
)

if TYPE_CHECKING:
    from methods.base import Method
    from repro.config import RunConfig

__all__ = ["cache_dir", "prepare", "results_dir", "run", "train_dense"]


def run(cfg: RunConfig) -> Record | None:
    """One method on one baseline: compress the dense net (or the net of ``start``), measure it, write its record.

    Where another process makes the same record, wait for it and take it. None on all processes but the first, where
    torchrun started several: they only train.
    """
    ground = prepare(cfg)
    dense = dense_net(ground)
    with its_turn(ground, dense) as other:
        found = (other, None, None) if other else made(ground, dense)
        if found is None or parallel.rank() > 0:
            return None
        record, model, journal = found
        if other:
            return other
        try:
            if model is not None:
                keep(ground, model, record.id)
        finally:  # a net that cannot be kept is an error, but no reason to lose the record
            record.save(ground.results)
        shutil.rmtree(journal, ignore_errors=True)
        return record


@contextlib.contextmanager
def its_turn(ground: Ground, dense: Dense) -> Iterator[Record | None]:
    """Alone with the run of ``ground``; its record where another process made it while this one waited, else None."""
    if parallel.rank() > 0:
        yield parallel.from_first(None)
        return
    facts, run_id = asked(ground), id_of(ground, dense)
    path = Path(ground.results, "records", *(facts[key] for key in ("baseline", "budget", "method")), f"{run_id}.json")
    before, what = _content(path), f"{facts['method']} on {ground.baseline.name}, seed {ground.cfg.seed}"
    with alone(ground.results, run_id, what), alone(ground.cache, f"journal-{run_id}", what):
        other = load(path) if _content(path) not in (None, before) else None
        yield parallel.from_first(None if other is None or is_stale(other, registry.ROOT) else other)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def asked(ground: Ground) -> dict[str, Any]:
    """What a run is asked for, as its record writes it."""
    cfg = ground.cfg
    return {
        "method": method_name(cfg), "baseline": ground.baseline.name, "budget": ground.budget, "seed": cfg.seed,
        "parent": cfg.start, "hyperparameters": plain(dataclasses.asdict(cfg.method)),
        "options": resolved_options(ground),
    }  # fmt: skip


def id_of(ground: Ground, dense: Dense) -> str:
    """The id of the record that a run will have."""
    return identity(**asked(ground), weights=dense.sha256 if dense.given else None)


def made(ground: Ground, dense: Dense, resume: bool = True) -> tuple[Record, torch.nn.Module | None, Path] | None:
    """(the record of a run, its net or None where it diverged, its journal); the record is not written.

    None on all processes but the first.

    ``resume``: what a killed run left in the journal is not done again.
    """
    cfg, entry = ground.cfg, registry.entries()[method_name(ground.cfg)]
    before, run_id = measured_dense(ground, dense), id_of(ground, dense)
    code = code_hash(entry.path)
    model = compressed_net(ground, parent_id(ground)) if cfg.start else copy.deepcopy(dense.model)
    source = provenance(ground, dense.sha256, code, kit_versions(entry.path))
    journal = ground.cache / "journal" / journal_name(run_id, source, weights.digest(model.state_dict()), ground)
    tasks.seed_everything(cfg.seed)
    task = Task(
        ground.baseline, ground.data, dense.model, **options_of(ground),
        teacher=teacher(ground), journal=journal if resume else None, label=f"{entry.name} on {ground.baseline.name}",
    )  # fmt: skip
    model = compressed(cfg.method, model, task)
    parallel.wait()  # for those that may have to read the journal
    if parallel.rank() > 0:
        return None
    found = {"compressed": ruins(ground, task)} if model is None else results(ground, dense.model, model, task)
    record = Record(
        kind="run", **asked(ground), family=entry.family, recipe=recipe_of(cfg), dense=before,
        after_compression=after_compression(ground, task), starts_from="scratch" if task.from_scratch else "trained",
        given_weights=dense.given, validation_seen=not cfg.data.holdout,
        **found, details=task.details,
        **story(task.meter, task.curve, diverged=model is None), provenance=source,
    )  # fmt: skip
    return record, model, journal


def journal_name(run_id: str, source: dict[str, Any], start: str, ground: Ground) -> str:
    """A name for what a run has done so far, another one when anything changes that its numbers come from.

    That is: what was asked for, the method's code, kit and task, the data, the dense net, the net that compress begins
    with (``start``), the recipe behind ``train``, and the arithmetic. Threads and packages do not count: a run may go
    on with other ones.
    """
    names = ("code_hash", "kit_versions", "data_sha256", "dense_sha256", "device", "precision", "channels_last")
    facts = [*(source[name] for name in names), start, plain(dataclasses.asdict(ground.baseline.finetune))]
    return f"{run_id}-{hashlib.sha256(canonical(facts).encode()).hexdigest()[:12]}"


def compressed(method: Method, model: torch.nn.Module, task: Task) -> torch.nn.Module | None:
    """What ``compress`` returns; None where a training diverged, or left a net that is of no use to what follows."""
    try:
        return method.compress(model, task)
    except Exception as error:
        if not isinstance(error, Diverged) and (task.trained is None or tasks.works(task.trained, task.batches(2))):
            raise
        print(error, file=sys.stderr, flush=True)
        return None


def results(ground: Ground, dense: torch.nn.Module, model: torch.nn.Module, task: Task) -> dict[str, Any]:
    """What a record holds of the net that a method returned."""
    file, fault = exported(ground, model)
    if fault:
        task.report(onnx=fault)
    return compared(ground, dense, model, file)


def ruins(ground: Ground, task: Task) -> Measurement:
    """The net that was in training when it diverged: what it costs, and no accuracy."""
    return Measurement(top1=None, **dataclasses.asdict(cost(task.trained, images(ground))))


def train_dense(cfg: RunConfig) -> Record | None:
    """Train the baseline's dense net (or take it from the cache) and write its record (the first process alone)."""
    ground = prepare(cfg)
    record = made_dense(ground)
    if parallel.rank() > 0:
        return None
    record.save(ground.results)
    return record


def made_dense(ground: Ground) -> Record | None:
    """The record of a dense training, which is not written; None on all processes but the first."""
    if ground.budget == "zero":
        raise UserError("budget=zero trains nothing: use budget=smoke, short or paper to train a dense net.")
    entry = registry.entries()["dense"]
    try:
        model, facts = trained(ground)
    except DenseDiverged as error:
        print(error, file=sys.stderr, flush=True)
        measured, sha256, rows, facts = ruins(ground, error.task), None, [], error.facts
    else:
        if parallel.rank() > 0:
            return None
        measured, sha256 = measure(ground, model, exported(ground, model)[0]), weights.digest(model.state_dict())
        rows = layers(model, model, images(ground))
    return Record(
        kind="train", method="dense", family=entry.family, baseline=ground.baseline.name, budget=ground.budget,
        seed=ground.cfg.seed, options=resolved_options(ground), dense=measured, compressed=measured,
        starts_from="scratch", validation_seen=not ground.cfg.data.holdout, details={"recipe": facts["recipe"]},
        layers=rows, **story(Meter(**facts["meter"]), facts["curve"], diverged=sha256 is None),
        provenance=provenance(ground, sha256, code_hash(entry.path), kit_versions(entry.path)),
    )  # fmt: skip


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


def story(meter: Meter, curve: list[list[float]], diverged: bool = False) -> dict[str, Any]:
    """Meter, curve and status of a record: a loss that is no number, or too large for a record, is null."""
    curve = [[value if abs(value) <= MAX_COUNT else None for value in point] for point in curve]
    diverged = diverged or any(None in point for point in curve)
    return {"meter": dataclasses.asdict(meter), "curve": curve, "status": "diverged" if diverged else "ok"}
