"""The one counter: params, nonzero, MACs and effective MACs of a network for one input, and MACs layer by layer.

MACs are multiply-accumulates of convolutions and linear layers as executed: torch's flop counter, halved.
Effective MACs skip the weights that are exactly zero: a theoretical figure.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

VERSION = 1


@dataclass(frozen=True)
class Cost:
    """Stored scalars of parameters, those that are not zero, and multiply-accumulates for one input."""

    params: int
    nonzero: int
    macs: int
    effective_macs: int


@torch.no_grad()
def cost(model: nn.Module, example: torch.Tensor) -> Cost:
    """Cost of ``model`` on the first image of ``example`` (B, C, H, W); the model stays as it was."""
    params = list(model.parameters())
    macs = layer_macs(model, example)
    skipped = 0
    for name, count in macs.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d | nn.Linear):
            skipped += count // module.weight.numel() * int((module.weight == 0).sum())
    return Cost(
        params=sum(p.numel() for p in params),
        nonzero=sum(int(torch.count_nonzero(p)) for p in params),
        macs=sum(macs.values()),
        effective_macs=sum(macs.values()) - skipped,
    )


@torch.no_grad()
def layer_macs(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """MACs by module name, for the first image of ``example``; their sum is the network's. Meta tensors will do.

    Every convolution and linear layer is there, the unused ones with 0, and every other module that multiplies by
    itself ("" is the network). What a module runs twice counts twice.
    """
    from torch.utils.flop_counter import FlopCounterMode

    probe = copy.deepcopy(model).eval()
    names = {module: name for name, module in probe.named_modules()}
    layers = {name for module, name in names.items() if isinstance(module, nn.Conv2d | nn.Linear)}
    flops = dict.fromkeys(names.values(), 0)
    running, seen = [""], 0  # the modules that are at work, the innermost last

    def settle() -> None:
        """What was counted since the last call belongs to the innermost module."""
        nonlocal seen
        flops[running[-1]] += counter.get_total_flops() - seen
        seen = counter.get_total_flops()

    def enter(module: nn.Module, _: object) -> None:
        settle()
        running.append(names[module])

    def leave(*_: object) -> None:
        settle()
        running.pop()

    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with FlopCounterMode(display=False) as counter:
        probe(example[:1])
    settle()
    return {name: count // 2 for name, count in flops.items() if count or name in layers}
