"""What a run shows: a training's bar on a terminal or a line a minute in a log, its time, and how far a search is."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from baselines.task import Task

MEASURED = 8  # steps before the estimate
LONG = 3600.0  # seconds from which a shorter budget is suggested


class Progress:
    """Counts the steps of one ``compress`` over all its train calls."""

    def __init__(self) -> None:
        self.total, self.done, self.here, self.images = 0, 0, 0, 0  # here: steps of this process
        self.began = self.shown = time.perf_counter()
        self.bar = None

    def whole(self, steps: int) -> None:
        """The number of steps of all train calls together."""
        self.total = max(self.total, steps)

    def resume(self, steps: int) -> None:
        """So many steps were done in an earlier process."""
        self.done = steps

    def step(self, task: Task, loss: torch.Tensor, images: int) -> None:
        """One step is done; the loss is read from the device only when a line is due."""
        now = time.perf_counter()
        if self.here == 0:
            self.began = self.shown = now
        self.here += 1
        self.done += 1
        if self.here == MEASURED:
            self._estimate(task, (now - self.began) / (MEASURED - 1), images)
        self.images += images
        if self.bar is not None:
            self.bar.update(0, completed=self.done)
            if self.done >= self.total:
                self.bar.stop()
                self.bar = None
        elif now - self.shown > 60:
            self.shown = now
            rate = self.images / (now - self.began)
            print(f"step {self.done} of {self.total}, loss {float(loss.detach()):.3f}, {rate:.0f} images/s", flush=True)

    def validated(self, nets: int, top1: float) -> None:
        """A search has judged so many nets, the last with ``top1`` percent: a line a minute, as no steps are done."""
        now = time.perf_counter()
        if self.bar is None and now - self.shown > 60:
            self.shown = now
            print(f"{nets} nets validated, the last with {top1:.2f} % right", flush=True)

    def _estimate(self, task: Task, seconds: float, images: int) -> None:
        left = seconds * (self.total - self.done)
        if left < 5:
            return
        name = task._label or task._baseline.name
        print(f"{name}: about {duration(left)} left ({images / seconds:.0f} images/s on this machine)", flush=True)
        if left > LONG and task.budget == "paper" and "short" in task._baseline.budgets:
            per_epoch = len(task.train_set) // task._baseline.finetune.batch_size
            short = task._baseline.finetune.epochs * per_epoch * seconds
            print(f"budget=short would take about {duration(short)}", flush=True)
        if sys.stderr.isatty():
            from rich.progress import Progress as Bar

            self.bar = Bar(transient=True)
            self.bar.add_task("training", total=self.total, completed=self.done)
            self.bar.start()


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
