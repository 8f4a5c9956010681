"""What a run stands on, resolved from its configuration: baseline, data, device, folders, and the trained dense net."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from baselines import base, parallel, weights
from baselines import task as tasks
from baselines.base import Baseline, Recipe
from baselines.data import Data
from baselines.errors import Diverged, UserError
from baselines.task import Engine, Meter, Task
from repro.config import default_cache
from repro.latency import check_seconds
from repro.locks import alone
from repro.provenance import device_name
from repro.record import is_training, parse, plain, replace

if TYPE_CHECKING:
    from repro.config import RunConfig


@dataclass
class Ground:
    """Everything a run stands on, resolved from the configuration."""

    cfg: RunConfig
    baseline: Baseline
    data: Data
    engine: Engine
    budget: str
    cache: Path
    results: Path

    @property
    def dense_budget(self) -> str:
        """The budget that the dense net is trained at: the run's own, ``short`` for a run without training."""
        return "short" if self.budget == "zero" else self.budget


@dataclass
class Dense:
    """The trained baseline: ``given`` when its weights were not trained by this machine for this seed."""

    model: nn.Module
    sha256: str
    given: bool


class DenseDiverged(Diverged):
    """The training of a dense net diverged: its task, and the meter, curve and recipe up to there."""

    def __init__(self, sentence: str, task: Task, facts: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.task, self.facts = task, facts


def cache_dir(cfg: RunConfig) -> Path:
    """``cache=...``, else $REPRO_CACHE, else a folder in the home."""
    return (Path(cfg.cache) if cfg.cache else default_cache()).expanduser()


def results_dir(cfg: RunConfig) -> Path:
    """``results.dir=...``, else ./results."""
    return Path(cfg.results.dir or "results")


def prepare(cfg: RunConfig) -> Ground:
    """Seeds, data, device and folders of a run."""
    baseline = base.load(cfg.baseline.name)
    budget = cfg.budget or baseline.default_budget
    if budget not in baseline.budgets:
        raise UserError(f"{baseline.name} has no budget '{budget}'. Choose one of: {', '.join(baseline.budgets)}.")
    if cfg.latency:
        check_seconds(cfg.latency)
    if cfg.device.threads:
        torch.set_num_threads(cfg.device.threads)
    device = parallel.join(device_of(cfg))
    with parallel.first_ahead():
        data = baseline.data(cfg.data)
        ground = Ground(cfg, baseline, data, Engine(device), budget, cache_dir(cfg), results_dir(cfg))
        ground.engine = engine(ground)
    data.train, data.test = data.train.to(ground.engine.device), data.test.to(ground.engine.device)
    return ground


def device_of(cfg: RunConfig) -> torch.device:
    """The device as asked; UserError where it is not there."""
    name = cfg.device.name
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device.name={name}, but torch sees no such device here. Use device.name=cpu or auto.")
    return device


def engine(ground: Ground) -> Engine:
    """Precision and memory format: as asked, else the fastest, measured once per machine and kept."""
    ask, device = ground.cfg.device, ground.engine.device
    precision, channels_last = "fp32", False
    if ground.budget in ("short", "paper") and (ask.precision == "auto" or ask.channels_last is None):
        precision, channels_last = fastest(ground, device)
    if ask.precision != "auto":
        precision = ask.precision
    if ask.channels_last is not None:
        channels_last = ask.channels_last
    return Engine(device, precision, channels_last)


def fastest(ground: Ground, device: torch.device) -> tuple[str, bool]:
    """The measured choice for this baseline, device, thread count and torch, from the cache or measured now."""
    path = ground.cache / "speed.json"
    threads = f"{torch.get_num_threads()} threads"
    key = f"{ground.baseline.name} | {device_name(device)} | {threads} | torch {torch.__version__}"
    known = read_json(path, _are_choices) or {}
    if key not in known:
        example = torch.zeros(1, *ground.data.train.shape())
        known[key] = list(tasks.fastest(ground.baseline.net(ground.data.num_classes), example, device))
        write_json(path, known)
    return tuple(known[key])


def _are_choices(known: Any) -> bool:
    """Whether JSON is an object of pairs: a precision, and whether channels are last."""
    choices = [[precision, last] for precision in ("fp32", "bf16") for last in (False, True)]
    return isinstance(known, dict) and all(c in choices and isinstance(c[1], bool) for c in known.values())


def read_json(path: Path, holds: Callable[[Any], bool]) -> Any:
    """What ``write_json`` wrote; None where there is no file or, with a sentence, where it does not hold that."""
    if not path.is_file():
        return None
    with contextlib.suppress(ValueError, RecursionError):
        if holds(value := parse(path.read_text("utf-8"))):
            return value
    print(f"{path} is damaged and is not used: it is made again.", file=sys.stderr, flush=True)
    return None


def write_json(path: Path, value: Any) -> None:
    """Under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(value, indent=1, sort_keys=True))


def dense_net(ground: Ground) -> Dense:
    """The trained baseline: given weights, a checkpoint of the project, published weights, the cache, or trained."""
    model = given_net(ground)
    given = model is not None
    model = ground.engine.place(model if given else trained(ground)[0]).eval()
    return Dense(model, weights.digest(model.state_dict()), given)


def known_dense(ground: Ground) -> Dense | None:
    """``dense_net`` where nothing has to be trained for it, else None."""
    known = ground.cfg.baseline.weights or shipped(ground).exists() or ground.baseline.pretrained is not None
    return dense_net(ground) if known or _trained_place(ground)[1].exists() else None


def shipped(ground: Ground) -> Path:
    """Where the project brings the trained net along, if it does."""
    return weights.CHECKPOINTS / f"{ground.baseline.name}_{ground.dense_budget}.safetensors"


def given_net(ground: Ground) -> nn.Module | None:
    """The dense net that is not trained here: given weights, a checkpoint of the project, or published ones."""
    b, classes = ground.baseline, ground.data.num_classes
    if ground.cfg.baseline.weights:
        return weights.load(b.net(classes), Path(ground.cfg.baseline.weights).expanduser(), b.name)
    if shipped(ground).exists():
        return weights.load(b.net(classes), shipped(ground), b.name)
    return b.pretrained() if b.pretrained is not None else None


def trained(ground: Ground) -> tuple[nn.Module, dict[str, Any]]:
    """(the dense net trained at this budget and seed, its meter and curve): from the cache, or trained now."""
    b, seed = ground.baseline, ground.cfg.seed
    if not b.train:
        raise UserError(f"{b.name} is not trained here: it uses published weights, or baseline.weights=FILE.")
    recipe, path = _trained_place(ground)
    tasks.seed_everything(seed)
    model = b.net(ground.data.num_classes)
    turn = alone(ground.cache, path.stem, f"the training of the dense {b.name}, seed {seed}")
    with turn if parallel.rank() == 0 else contextlib.nullcontext():
        if parallel.from_first(path.exists()):
            state, facts = weights.read(path)
            if not is_training(facts) or facts["meter"].keys() != dataclasses.asdict(Meter()).keys():
                raise UserError(f"{path} does not say how its net was trained: delete it, and it is trained again.")
            return ground.engine.place(weights.fit(model, state, path, b.name)), facts
        return _trained_now(ground, model, recipe, path)


def _trained_now(ground: Ground, model: nn.Module, recipe: Recipe, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Train ``model`` and put it into the cache; see ``trained``."""
    b, e = ground.baseline, ground.engine
    arithmetic = f"{e.device.type}-{e.precision}-{'last' if e.channels_last else 'first'}"
    journal = ground.cache / "journal" / f"dense-{path.stem.rpartition('-')[2]}-{arithmetic}"
    dense_ground = dataclasses.replace(ground, budget=ground.dense_budget)
    task = Task(b, ground.data, **options_of(dense_ground), journal=journal, label=f"dense {b.name}")
    try:
        task.train_dense(ground.engine.place(model), recipe)
    except Diverged as error:
        raise DenseDiverged(str(error), task, _facts(task, recipe)) from error
    parallel.wait()  # for those that may have to read the journal
    facts = _facts(task, recipe)
    if parallel.rank() == 0:
        weights.save(model, path, facts)
        shutil.rmtree(journal, ignore_errors=True)
    return model, facts


def _facts(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What is kept beside a trained dense net."""
    meter = dataclasses.asdict(task.meter)
    return {"meter": meter, "curve": task.curve, "recipe": plain(dataclasses.asdict(recipe))}


def _trained_place(ground: Ground) -> tuple[Recipe, Path]:
    """(the recipe of the dense training, where its net lies in the cache once it is trained)."""
    b, seed, budget = ground.baseline, ground.cfg.seed, ground.dense_budget
    recipe = b.dense_recipe(budget)
    asked = [
        b.name,
        budget,
        seed,
        dataclasses.asdict(recipe),
        ground.data.sha256,
        ground.cfg.data.holdout,
        tasks.VERSION,
    ]
    key = hashlib.sha256(json.dumps(plain(asked), sort_keys=True).encode()).hexdigest()[:12]
    return recipe, ground.cache / "dense" / f"{b.name}-{budget}-seed{seed}-{key}.safetensors"


def options_of(ground: Ground) -> dict[str, Any]:
    """The keywords that every Task of this ground gets."""
    cfg = ground.cfg
    return {"budget": ground.budget, "seed": cfg.seed, "engine": ground.engine, "holdout": cfg.data.holdout}


def teacher(ground: Ground) -> nn.Module | None:
    """``baseline.teacher=FILE``: weights of this baseline's net or of one of its siblings; None: the dense net."""
    if not ground.cfg.baseline.teacher:
        return None
    path, b = Path(ground.cfg.baseline.teacher).expanduser(), ground.baseline
    state, _ = weights.read(path)
    fault = None
    for name, build in {b.name: b.net, **b.siblings}.items():
        try:
            return ground.engine.place(weights.fit(build(ground.data.num_classes), state, path, name))
        except UserError as error:
            fault = fault or error
    also = f" Weights of a sibling ({', '.join(b.siblings)}) are taken too." if b.siblings else ""
    raise UserError(f"{fault}{also}")
