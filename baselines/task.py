"""Task: a method's whole world. Training batches, THE train loop, validation, the budget and the meter.

The test set is not in it: a search cannot reward itself on test images by accident.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import math
import os
import random
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from baselines import parallel
from baselines.base import Baseline, Recipe
from baselines.cost import Cost, cost
from baselines.data import ArraySplit, Augment, Data, Split
from baselines.errors import Diverged, UserError
from baselines.faults import AGAIN, out_of_memory, steps, whole_file
from baselines.progress import Progress
from baselines.validations import Validations
from baselines.weights import digest

VERSION = 1
SMOKE_STEPS = 4  # optimiser steps of one compress (or one dense training) at budget "smoke"
EVAL_BATCH = 250
VALIDATION_SHARE = 0.1
HOPELESS = 4.0  # times the fastest step on two images above which a choice is not measured on a batch
LONG = 10.0  # seconds of one step above which it is not repeated: starting up does not show in it
EXPLODED = 1000.0  # times the first loss of a training (or 1 where that is less): no committed record passes 4


@dataclass
class Meter:
    """What a method has used: counted here, stored in the record."""

    train_calls: int = 0
    steps: int = 0
    images: int = 0
    epochs: float = 0.0
    validations: int = 0
    seconds: float = 0.0


@dataclass
class Engine:
    """How arithmetic is done: device, precision of the training's forward pass, memory format."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    channels_last: bool = False

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=memory)

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


class Normalise:
    """uint8 (or float in 0..255) images to normalised float32, as one multiply-add."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], engine: Engine) -> None:
        scale = 1 / (255 * torch.tensor(std))
        self.scale = scale.view(1, -1, 1, 1).to(engine.device)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1).to(engine.device)
        self.engine = engine

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) normalised, in the engine's memory format."""
        memory = torch.channels_last if self.engine.channels_last else torch.contiguous_format
        x = x.to(self.engine.device, non_blocking=True).to(torch.float32, memory_format=memory)
        return torch.addcmul(self.shift, x, self.scale)


@torch.no_grad()
def accuracy(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], subset: Sequence[int] | None = None
) -> dict[str, float]:
    """top1 and top5 in percent, in fp32 and eval mode; with ``subset`` also top1 among those classes only."""
    was_training = model.training
    model.eval()
    right = {"top1": 0, "top5": 0, "subset_top1": 0}
    total = 0
    for x, y in batches:
        logits = model(x).float()
        y = y.to(logits.device)
        best = logits.topk(min(5, logits.shape[1])).indices
        right["top1"] += (best[:, 0] == y).sum()
        right["top5"] += (best == y[:, None]).sum()
        if subset is not None:
            classes = torch.tensor(subset, device=logits.device)
            right["subset_top1"] += (classes[logits[:, classes].argmax(1)] == y).sum()
        total += len(y)
    model.train(was_training)
    if subset is None:
        del right["subset_top1"]
    return {key: 100.0 * int(value) / total for key, value in right.items()}


class Task:
    """What a method sees: the shape of the problem, training data, the loop, and nothing of the test set.

    ``dense`` is the trained baseline (the default teacher). ``journal`` is a folder where every finished ``train``
    call and what ``validate`` found are kept, so that a killed run continues instead of starting again.
    """

    def __init__(
        self,
        baseline: Baseline,
        data: Data,
        dense: nn.Module | None = None,
        *,
        budget: str = "smoke",
        seed: int = 0,
        engine: Engine | None = None,
        teacher: nn.Module | None = None,
        journal: Path | None = None,
        holdout: bool = False,
        label: str = "",
    ) -> None:
        if budget not in baseline.budgets:
            raise UserError(f"{baseline.name} has no budget '{budget}'. Choose one of: {', '.join(baseline.budgets)}.")
        self.engine = engine or Engine()
        self.budget, self.seed = budget, seed
        self.num_classes = data.num_classes
        whole = data.train.to(self.engine.device)
        held = torch.randperm(len(whole), generator=torch.Generator().manual_seed(20))
        cut = max(1, int(len(whole) * VALIDATION_SHARE))
        self._validation = whole.subset(held[:cut].sort().values)
        self.train_set: Split = whole.subset(held[cut:].sort().values) if holdout else whole
        self.example = torch.zeros(1, *whole.shape(), device=self.engine.device)
        self.meter = Meter()
        self.details: dict[str, Any] = {}
        self.curve: list[list[float]] = []
        self.entered_training: nn.Module | None = None
        self.trained: nn.Module | None = None
        self.from_scratch = False
        self._baseline, self._dense, self._teacher, self._journal = baseline, dense, teacher, journal
        self._normalise = Normalise(baseline.mean, baseline.std, self.engine)
        self._augment = Augment(baseline.crop, baseline.flip, baseline.augment == "resized")
        self._asked = 0.0
        self._label = label
        self._progress = Progress()
        self._validations = Validations(journal / "validations.json") if journal else None

    # -- the shape of the problem ------------------------------------------------------------------------------

    def stages(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The named stages of a net of this baseline's family, in order: those that ``model`` has."""
        modules = dict(model.named_modules())
        return [(name, modules[name]) for name in self._baseline.stages if name in modules]

    def fresh(self) -> nn.Module:
        """The baseline's architecture, untrained, on the device."""
        self.from_scratch = True
        return self.engine.place(self._baseline.net(self.num_classes))

    def student(self) -> nn.Module:
        """The baseline's smaller sibling, untrained, on the device."""
        self.from_scratch = True
        return self.engine.place(self._baseline.student(self.num_classes))

    def sibling(self, name: str) -> nn.Module:
        """Another net of the family, untrained; KeyError names those there are."""
        if name not in self._baseline.siblings:
            raise KeyError(f"no sibling '{name}'; there are: {', '.join(self._baseline.siblings) or 'none'}")
        return self.engine.place(self._baseline.siblings[name](self.num_classes))

    @property
    def teacher(self) -> nn.Module:
        """The trained teacher: eval mode, no gradients. By default the dense net."""
        if self._teacher is None:
            if self._dense is None:
                raise UserError(f"{self._baseline.name} has no trained net to teach with: run 'train' first.")
            self._teacher = copy.deepcopy(self._dense)
        return self._teacher.eval().requires_grad_(False)

    # -- data --------------------------------------------------------------------------------------------------

    def batches(self, n: int, batch_size: int = 100) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``n`` training images (all there are, if fewer) in a fixed random order: normalised, not augmented."""
        order = torch.randperm(len(self.train_set), generator=torch.Generator().manual_seed(21))[:n]
        for x, y in self.train_set.subset(order).plain(batch_size):
            yield self._normalise(x), y.to(self.engine.device)

    def stream(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """An endless, independent, augmented stream of training batches, the same for the same name and seed."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, name))
        while True:
            for x, y in self.train_set.epoch(self._augment, self._baseline.finetune.batch_size, generator):
                yield self._normalise(x), y.to(self.engine.device)

    def validate(self, model: nn.Module) -> float:
        """top-1 in percent on the fixed tenth of the training set (held out of training with data.holdout=true).

        What a killed run's journal holds of a net with these weights, as the so many-th of the run, is not done again.
        """
        number, kept = self.meter.validations, self._validations
        self.meter.validations += 1
        name = digest(model.state_dict()) if kept else ""
        if kept and (found := kept.known(number, name)):
            top1, seconds = found
            self.report(earlier_seconds=self.details.get("earlier_seconds", 0.0) + seconds)
        else:
            began = time.perf_counter()
            batches = ((self._normalise(x), y) for x, y in self._validation.plain(EVAL_BATCH))
            top1 = accuracy(model, batches)["top1"]
            if kept and parallel.rank() == 0:
                kept.keep(number, name, top1, time.perf_counter() - began)
        top1 = parallel.from_first(top1)
        self._progress.validated(self.meter.validations, top1)
        return top1

    def cost(self, model: nn.Module) -> Cost:
        """params, nonzero, macs, effective_macs of ``model``: the same counter as the record's."""
        return cost(model, self.example)

    @property
    def dense_recipe(self) -> Recipe:
        """The schedule that the dense net is trained by at this budget, on images of full size: for what is trained
        anew as it was (Liu et al. 2019). Where no dense net is trained here, the one that methods get."""
        b = self._baseline
        return replace(b.dense_recipe(self.budget) if b.train else b.finetune, sizes=())

    def report(self, **facts: object) -> None:
        """Facts for the record, such as report(clamped=["features.0"])."""
        self.details.update(facts)

    # -- training ----------------------------------------------------------------------------------------------

    def train(
        self,
        model: nn.Module,
        epochs: float,
        of: float | None = None,
        lr: float | None = None,
        **options: Any,
    ) -> nn.Module:
        """Train ``model`` in place for the budget's share of ``epochs`` (of the method's total ``of``).

        At budget ``paper`` that is ``epochs``; at ``short`` the same proportion of the baseline's fixed total; at
        ``smoke`` a few steps; at ``zero`` none. ``lr`` replaces the recipe's. The other keywords:

        loss(model, x, y) -> scalar; also_train: modules with parameters of their own; optimizer(params); data: an
        ArraySplit instead of the training set; after_backward(step), after_step(step), after_epoch(epoch);
        step(model, x, y, optimizer) -> loss: the whole update; state: everything with a state_dict, or dicts, that the
        callbacks remember, restored on resume; recipe: a schedule of the method's own.

        Raises ValueError when a method trains for more epochs than its ``of``.
        """
        of = epochs if of is None else of
        if self._asked + epochs > of * (1 + 1e-9):
            raise ValueError(f"compress asks for {self._asked + epochs:g} epochs in total but declared of={of:g}")
        recipe = options.pop("recipe", None) or self._baseline.finetune
        data = options.get("data") or self.train_set
        per_epoch = max(1, len(data) // recipe.batch_size)
        steps = self.steps(epochs, of, per_epoch)
        self._asked += epochs
        if lr is not None:
            recipe = replace(recipe, lr=lr)
        if steps:
            self._progress.whole(max(steps, self._steps(of, of, per_epoch)))
            Fit(self, model, recipe, steps, per_epoch, **options).run()
        return model.eval()

    def steps(self, epochs: float, of: float, per_epoch: int | None = None) -> int:
        """Steps of the next ``train(model, epochs, of=of)``: for what has to happen so often in all (GAL's masks)."""
        per_epoch = per_epoch or max(1, len(self.train_set) // self._baseline.finetune.batch_size)
        first, last = (self._steps(share, of, per_epoch) for share in (self._asked, self._asked + epochs))
        return max(1, last - first) if epochs and self.budget != "zero" else last - first

    def rounds(self, n: int) -> int:
        """How many of a search's ``n`` rounds (episodes, generations) the budget grants: at ``paper`` all of them.

        At ``short`` a tenth, rounded up; at ``smoke`` at most 3; at ``zero`` at most 1.
        """
        return {"paper": n, "short": math.ceil(n / 10), "smoke": min(n, 3), "zero": min(n, 1)}[self.budget]

    def train_dense(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Train the baseline's own net from scratch by ``recipe``."""
        per_epoch = max(1, len(self.train_set) // recipe.batch_size)
        steps = SMOKE_STEPS if self.budget == "smoke" else max(1, round(recipe.epochs * per_epoch))
        self._progress.whole(steps)
        Fit(self, model, recipe, steps, per_epoch).run()
        return model.eval()

    def _steps(self, asked: float, of: float, per_epoch: int) -> int:
        """Steps that the budget grants after ``asked`` of ``of`` epochs."""
        share = asked / of if of else 0.0
        total = {
            "smoke": SMOKE_STEPS,
            "zero": 0,
            "short": self._baseline.finetune.epochs * per_epoch,
            "paper": of * per_epoch,
        }[self.budget]
        return round(total * share)


class Fit:
    """One training: the loop behind ``Task.train``. No synchronisation with the device inside a step."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        recipe: Recipe,
        steps: int,
        per_epoch: int,
        *,
        loss: Callable | None = None,
        also_train: Sequence[nn.Module] = (),
        optimizer: Callable | None = None,
        data: ArraySplit | None = None,
        after_backward: Callable[[int], None] | None = None,
        after_step: Callable[[int], None] | None = None,
        after_epoch: Callable[[int], None] | None = None,
        step: Callable | None = None,
        state: Sequence[Any] = (),
    ) -> None:
        self.task, self.recipe, self.steps, self.per_epoch = task, recipe, steps, per_epoch
        self.model = task.engine.place(model)
        self.also = [task.engine.place(module) for module in also_train]
        self.data = data.to(task.engine.device) if data is not None else task.train_set
        self.loss = loss or self._cross_entropy
        self.after_backward, self.after_step, self.after_epoch = after_backward, after_step, after_epoch
        self.step, self.update = step, self._own_update if step else self._update
        params = [p for module in (model, *self.also) for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer(params) if optimizer else self._sgd(params)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.generator = torch.Generator().manual_seed(seed_of(task.seed, f"train {task.meter.train_calls}"))
        self.state = [*state]
        self.share = parallel.Share(min(recipe.batch_size, len(self.data)))
        self.epoch_began = (0, self.generator.get_state())
        self.parts = 1
        self.losses: list[tuple[int, torch.Tensor, float]] = []
        self.journal = Journal(task, self) if task._journal else None

    def _sgd(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        r = self.recipe
        nesterov = r.nesterov and r.momentum > 0
        fused = self.task.engine.device.type == "cuda"
        return torch.optim.SGD(params, r.lr, r.momentum, weight_decay=r.weight_decay, nesterov=nesterov, fused=fused)

    def _cross_entropy(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=self.recipe.label_smoothing)

    def _update(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> torch.Tensor:
        value = None
        while value is None:
            value = self._gradients(model, x, y, optimizer)
        if self.after_backward:
            self.share.average(optimizer)
            self.after_backward(self.done)
        optimizer.step()
        return value

    def _gradients(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> torch.Tensor | None:
        """Fill the gradients of the batch, part by part; its loss, or None where the memory asks for smaller parts.

        Gradients of parts add up to those of the batch, but batch norm sees each part alone.
        Several processes cut nothing: more of them take smaller parts each.
        """
        total = 0.0
        try:
            for i, (images, labels) in enumerate(zip(x.chunk(self.parts), y.chunk(self.parts), strict=True)):
                with self.task.engine.autocast():
                    value = self.loss(model, images, labels)
                if i == 0:
                    optimizer.zero_grad(set_to_none=True)
                value = value * (len(labels) / len(y))
                value.backward()
                total = total + value.detach()
            return total
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(y) // (2 * self.parts) < 2 or parallel.world() > 1:
                raise
        self.parts *= 2  # outside of the handler, which keeps the activations alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"Too little memory for {len(y)} images at once: each step takes them in {self.parts} parts.", flush=True)
        return None

    def _own_update(self, *given: Any) -> torch.Tensor:
        """A method's ``step``, which cannot be cut into parts."""
        try:
            return self.step(*given)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"There is not enough memory for a step of {self.recipe.batch_size} images, and this method's steps "
                f"cannot be cut into parts: use a device with more memory, such as device.name=cpu. {AGAIN}"
            ) from error

    def run(self) -> None:
        """Train to the last step, or continue where the journal ends; then fill the meter."""
        task = self.task
        if task.entered_training is None:
            task.entered_training = copy.deepcopy(self.model)
        task.trained = self.model
        self.done, self.began = 0, time.perf_counter()
        if self.journal and self.journal.restore():
            self._tell_parts()
            return
        try:
            with steps(), self._together():
                self._loop()
        finally:
            self._account()
            self._tell_parts()
        if not finite(self.model):
            raise self._diverged("its weights are not finite numbers")
        if self.journal and parallel.rank() == 0:
            self.journal.finish()
        if ask := parallel.any_asked_to_stop():  # in the last step
            raise ask

    def _tell_parts(self) -> None:
        if self.parts > 1:
            self.task.report(batch_split={"images": self.recipe.batch_size, "parts": self.parts})

    def _account(self) -> None:
        """Fill the meter and the curve with what was done."""
        meter, curve = self.task.meter, self.task.curve
        meter.train_calls += 1
        meter.steps += self.done
        meter.images += self.done * min(self.recipe.batch_size, len(self.data))
        meter.epochs = round(meter.epochs + self.done / self.per_epoch, 6)
        meter.seconds += time.perf_counter() - self.began
        start = curve[-1][0] if curve else 0
        curve += [[start + i, round(float(value), 5), lr] for i, value, lr in self.losses]

    def _keep(self, value: torch.Tensor) -> None:
        """Keep the loss of a step for the curve; Diverged where it is no number or ``EXPLODED``."""
        self.losses.append((self.done, value.detach(), self.optimizer.param_groups[0]["lr"]))
        first, last = (float(self.losses[i][1]) for i in (0, -1))
        if not math.isfinite(last) or abs(last) > EXPLODED * max(1.0, abs(first)):
            self.done += 1
            raise self._diverged(f"its loss went from {first:.3g} to {last:.3g}")

    def _diverged(self, why: str) -> Diverged:
        name = self.task._label or self.task._baseline.name
        return Diverged(
            f"{name}: the network has diverged in step {self.done} of {self.steps} of a training ({why}). "
            "A smaller learning rate may help."
        )

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Around the loop of several processes: one start, random draws of each one's own, one end."""
        if parallel.world() == 1:
            yield
            return
        modules = (self.model, *self.also, *(thing for thing in self.state if isinstance(thing, nn.Module)))
        parallel.equalise(modules)
        if parallel.rank() > 0:
            name = f"process {parallel.rank()}, call {self.task.meter.train_calls}, step {self.done}"
            seed_everything(seed_of(self.task.seed, name))
        with self.share.averaging():
            yield
        parallel.equalise(modules)
        set_random_state(parallel.from_first(random_state()))

    def _loop(self) -> None:
        task, modules = self.task, (self.model, *self.also)
        every, first = max(1, self.steps // 20), parallel.rank() == 0
        for module in modules:
            module.train()
        while self.done < self.steps:
            for x, y in self._epoch():
                self._set_rate()
                value = self.update(
                    self.model, self._resize(task._normalise(x)), y.to(task.engine.device), self.optimizer
                )
                if self.after_step:
                    self.after_step(self.done)
                if self.done % every == 0 or self.done == self.steps - 1:
                    self._keep(self.share.mean(value))
                self.done += 1
                if first:
                    task._progress.step(task, value, len(y) * parallel.world())
                if self.done == self.steps:
                    break
                self._stop_if_asked()
            if self.after_epoch:
                parallel.equalise(modules)  # it may measure them
                self.after_epoch((self.done - 1) // self.per_epoch)
            self.epoch_began = (self.done, self.generator.get_state())
            if self.journal and first and self.done < self.steps:
                self.journal.partial()

    def _epoch(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch that are left: all, unless the training was stopped in the middle of it."""
        began, state = self.epoch_began
        self.generator.set_state(state)
        batches = self.data.epoch(self.task._augment, self.recipe.batch_size, self.generator, self.share.part)
        return itertools.islice(batches, self.done - began, None)

    def _stop_if_asked(self) -> None:
        """Behind a step: put the training on disk and end, where a signal asked for it."""
        if ask := parallel.any_asked_to_stop():
            if self.journal and parallel.rank() == 0:
                self.journal.partial(at_once=True)
            parallel.wait()  # a process that ends makes torchrun end the others
            raise ask

    def _set_rate(self) -> None:
        factor = self.recipe.factor(self.done / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        side = self.recipe.size(self.done / self.steps)
        if side is None or side == x.shape[-1]:
            return x
        return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


class Journal:
    """Keeps a training on disk: the k-th finished ``train`` call, and the last epoch of an unfinished one."""

    SECONDS = 60.0  # least time between two partial checkpoints

    def __init__(self, task: Task, fit: Fit) -> None:
        self.task, self.fit, self.saved_at = task, fit, time.perf_counter()
        name = f"call{task.meter.train_calls}"
        self.whole, self.part = (task._journal / f"{name}{end}" for end in (".pt", ".part.pt"))

    def _things(self) -> list[Any]:
        return [self.fit.model, *self.fit.also, *self.fit.state]

    def _pack(self) -> dict[str, Any]:
        fit, task = self.fit, self.task
        return {
            "things": [t if isinstance(t, dict) else t.state_dict() for t in self._things()],
            "meter": task.meter.__dict__,
            "curve": task.curve,
            "losses": [[i, float(value), lr] for i, value, lr in fit.losses],
            "rng": random_state(),
            "generator": fit.epoch_began[1],
            "epoch_began": fit.epoch_began[0],
            "parts": fit.parts,
            "optimizer": fit.optimizer.state_dict(),
            "done": fit.done,
            "steps": fit.steps,
        }

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()  # torch hides from its caller that a file could not be written
        torch.save(value, packed)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            file.write(packed.getbuffer())
            file.flush()
            os.fsync(file.fileno())

    def partial(self, at_once: bool = False) -> None:
        """Keep the state behind a step, at most once a minute unless ``at_once``."""
        if at_once or time.perf_counter() - self.saved_at > self.SECONDS:
            spent = self.task.meter.seconds + time.perf_counter() - self.fit.began
            self._write(self.part, self._pack() | {"meter": {**self.task.meter.__dict__, "seconds": spent}})
            self.saved_at = time.perf_counter()

    def finish(self) -> None:
        """Keep the finished call and drop its partial state."""
        self._write(self.whole, self._pack())
        self.part.unlink(missing_ok=True)

    def restore(self) -> bool:
        """Load this call: True when it is finished; False when the loop has to run, from ``fit.done`` on."""
        found = ((path, kept) for path in (self.whole, self.part) if (kept := _intact(path)) is not None)
        path, kept = next(found, (None, None))
        if kept is None or kept["steps"] != self.fit.steps:
            return False
        try:
            self._unpack(kept)
            self.task._progress.resume(self.task.meter.steps + (0 if path == self.whole else self.fit.done))
        except Exception as error:  # of load_state_dict, and of whatever else does not fit
            raise UserError(
                f"{path} was kept by other code and does not fit this run: delete {path.parent} and start again."
            ) from error
        return path == self.whole

    def _unpack(self, kept: dict[str, Any]) -> None:
        """Put everything back to what ``_pack`` kept."""
        fit, task = self.fit, self.task
        for thing, value in zip(self._things(), kept["things"], strict=True):
            if isinstance(thing, dict):
                thing.clear()
                thing.update(value)
            else:
                thing.load_state_dict(value)
        task.meter = Meter(**kept["meter"])
        task.curve = kept["curve"]
        set_random_state(kept["rng"])
        fit.generator.set_state(kept["generator"])
        fit.optimizer.load_state_dict(kept["optimizer"])
        fit.losses = [(i, torch.tensor(value), lr) for i, value, lr in kept["losses"]]
        fit.done, fit.parts = kept["done"], kept["parts"]
        fit.epoch_began = (kept["epoch_began"], kept["generator"])


def _intact(path: Path) -> dict[str, Any] | None:
    """What a file of a journal holds; None, with a sentence, where it is damaged (cut off when the power went)."""
    if not path.exists():
        return None
    with contextlib.suppress(Exception):  # of zipfile, pickle, torch and the system
        with zipfile.ZipFile(path) as file:  # torch.load itself does not look at the checksums
            whole = file.testzip() is None
        kept = torch.load(path, weights_only=True, map_location="cpu") if whole else None
        if isinstance(kept, dict) and "steps" in kept:
            return kept
    print(f"{path} is damaged and is not used: that part of the training is done again.", file=sys.stderr, flush=True)
    return None


def finite(model: nn.Module) -> bool:
    """Whether every parameter of ``model`` is a finite number: one answer from the device."""
    values = [p.detach().isfinite().all() for p in model.parameters()]
    return not values or bool(torch.stack(values).all())


@torch.no_grad()
def works(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether the parameters and all logits of ``model`` are finite numbers."""
    return finite(model) and all(bool(model.eval()(x).isfinite().all()) for x, _ in batches)


def seed_of(seed: int, name: str) -> int:
    """An independent seed for every named use of randomness."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big")


def seed_everything(seed: int) -> None:
    """torch, numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The global generators of torch, numpy and Python, in types that ``torch.load(weights_only=True)`` reads."""
    name, keys, *rest = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": random.getstate(),
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest]}  # fmt: skip


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global generators back to a kept ``random_state()``."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        own = state["cuda"] if parallel.world() == 1 else state["cuda"][:1] * torch.cuda.device_count()
        torch.cuda.set_rng_state_all(own)


def fastest(model: nn.Module, example: torch.Tensor, device: torch.device, batch_size: int = 64) -> tuple[str, bool]:
    """(precision, channels_last) of the fastest training step on this device, measured on a copy of ``model``.

    fp32 in the default memory format stays unless another choice is at least 5 % faster. What takes over HOPELESS times
    as long as another for two images is not tried on a batch: one bf16 step of a ResNet-50 takes minutes on a CPU that
    has no such arithmetic.
    """
    x = torch.randn(batch_size, *example.shape[1:], device=device)
    y = torch.zeros(batch_size, dtype=torch.long, device=device)

    def seconds(choice: tuple[str, bool], images: int) -> float:
        return _step_seconds(Engine(device, *choice), model, x[:images], y[:images])

    plain, *others = [(precision, last) for precision in ("fp32", "bf16") for last in (False, True)]
    few = {choice: seconds(choice, 2) for choice in (plain, *others)}
    tried = [choice for choice in others if few[choice] <= HOPELESS * min(few.values())]
    times = {choice: seconds(choice, batch_size) for choice in (plain, *tried)}
    best = min(times, key=times.get)
    return best if times[best] < 0.95 * times[plain] else plain


def _step_seconds(engine: Engine, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    net = engine.place(copy.deepcopy(model).train())
    x = x.contiguous(memory_format=torch.channels_last) if engine.channels_last else x
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        with engine.autocast():
            value = F.cross_entropy(net(x), y)
        value.backward()
        value.item()
        best = min(best, time.perf_counter() - began)
        if best > LONG:
            break
    return best
