"""One run on several processes, as ``torchrun`` starts them: all do the same, each on its share of every batch.

Every process draws the same batches and takes its part of them. Right before any optimizer's step its gradients become
those of the whole batch, in one exchange, so the nets stay equal and need no wrapper. What is not exchanged, as in
torch's DistributedDataParallel: the statistics of batch normalisation are those of a part of the batch, and the buffers
of the first process count. Random draws inside a training (dropout) are each process's own. With one process nothing
of this happens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from baselines.errors import UserError
from baselines.faults import AGAIN, Stopped, asked_to_stop

PATIENCE = timedelta(days=2)  # while the first process measures; torchrun ends all of them when one dies


def world() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on; the first one prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def join(device: torch.device) -> torch.device:
    """Meet the processes that ``torchrun`` started beside this one (once); the device of this process.

    UserError where there are more processes than devices, or one device is asked for by number.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if device.index is not None:
            raise UserError(f"device.name={device} is one device, but torchrun gives each process its own: use cuda.")
        if local >= there:
            raise UserError(
                f"torchrun started more processes than the {there} GPUs here: use --nproc-per-node={there}."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Around what all processes do together: where one is gone, what a signal asked for, or UserError."""
    try:
        yield
    except RuntimeError as error:
        gone = UserError(f"Another process of this run has ended, so process {rank()} ends as well. {AGAIN}")
        raise asked_to_stop() or gone from error


def wait() -> None:
    """Until all processes are here; on the CPU, so that no GPU is kept busy."""
    if world() > 1:
        with exchange():
            dist.all_reduce(torch.zeros(1))


def from_first(value: Any) -> Any:
    """The first process's ``value`` on all."""
    if world() == 1:
        return value
    box = [value]
    with exchange():
        dist.broadcast_object_list(box)
    return box[0]


def any_asked_to_stop() -> BaseException | None:
    """What to raise where a signal asked one of the processes to stop: all get to know it behind the same step."""
    ask = asked_to_stop()
    if world() == 1:
        return ask
    heard = torch.tensor(float(ask is not None))
    with exchange():
        dist.all_reduce(heard)
    return ask or (Stopped() if heard else None)


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """The first process does what is inside, then the others: they find the files that it wrote."""
    if rank() > 0:
        wait()
    try:
        yield
    finally:
        if rank() == 0:
            wait()


@torch.no_grad()
def equalise(modules: Iterable[nn.Module]) -> None:
    """Give all processes the first one's parameters and buffers; RuntimeError where the nets are not the same."""
    if world() == 1:
        return
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    shapes = [(tuple(t.shape), t.dtype) for t in tensors]
    if shapes != from_first(shapes):
        raise RuntimeError(f"process {rank()} came to another network than the first one: its method is not repeatable")
    for tensor in tensors:
        whole = tensor.contiguous()
        with exchange():
            dist.broadcast(whole, 0)
        tensor.copy_(whole)


class Share:
    """The part that this process has of every batch of ``size`` images, and what becomes of the parts."""

    def __init__(self, size: int) -> None:
        """UserError for fewer images than processes."""
        if size < world():
            raise UserError(f"A batch of {size} images cannot be divided among {world()} processes: start fewer.")
        self.part = slice(size * rank() // world(), size * (rank() + 1) // world())
        self.weight = (self.part.stop - self.part.start) / size

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the batch, where ``value`` is the mean over this part."""
        value = value.detach()
        if world() > 1:
            value = value * self.weight
            with exchange():
                dist.all_reduce(value)
        return value

    def average(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Turn the gradients of the optimizer's parameters from those of this part into those of the batch."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if world() == 1 or not grads:
            return
        flat = self.mean(torch.cat([grad.reshape(-1) for grad in grads]))
        for grad, whole in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(whole.view_as(grad))

    @contextlib.contextmanager
    def averaging(self) -> Iterator[None]:
        """Inside, every optimizer (also one that a method steps itself) averages its gradients before its step."""
        hook = register_optimizer_step_pre_hook(self.average)
        try:
            yield
        finally:
            hook.remove()
