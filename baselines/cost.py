"""The one counter: params, nonzero, MACs and effective MACs of a network for one input.

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
    from torch.utils.flop_counter import FlopCounterMode

    params = list(model.parameters())
    skipped = 0

    def count_zero_products(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal skipped
        places = output.numel() // module.weight.shape[0]
        skipped += int((module.weight == 0).sum()) * places

    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count_zero_products)
    with FlopCounterMode(display=False) as counter:
        probe(example[:1])
    macs = counter.get_total_flops() // 2
    return Cost(
        params=sum(p.numel() for p in params),
        nonzero=sum(int(torch.count_nonzero(p)) for p in params),
        macs=macs,
        effective_macs=macs - skipped,
    )
