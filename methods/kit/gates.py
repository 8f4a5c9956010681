"""Gates: learnable factors on structures (channels, residual branches) of a net, and FISTA, which learns sparse ones.

The steps of a method: ``channels`` and ``branches`` (what can have a gate), ``install``, a training, ``fold`` (the
weights take the gates in; the function stays), and for what is switched off ``cut`` (branches) and surgery (channels).

A channel's gate stands where the next layers read it, behind its activation, and goes into their weights; so a gate at
0 still has a gradient. A branch's stands behind its last batch normalisation, before the addition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from methods.kit import surgery

VERSION = 1

Spot = tuple[str, int | None, int]  # module, its first gated input (None: its output is gated), inputs per gate
Places = dict[str, tuple[int, list[Spot]]]  # structure -> number of gates, where they act


class Gated(nn.Module):
    """A layer while it has gates: on its inputs from ``first`` on, or (None) one on its output.

    ``inputs`` neighbouring inputs share a gate, as where a map has been flattened.
    """

    def __init__(self, inner: nn.Module, gates: nn.Parameter, first: int | None, inputs: int) -> None:
        super().__init__()
        self.inner, self.gates, self.first, self.inputs = inner, gates, first, inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What ``inner`` gives, gated."""
        if self.first is None:
            return self.inner(x) * self.gates
        return self.inner(x * self.scale(x.shape[1]).view(-1, *[1] * (x.dim() - 2)))

    def scale(self, total: int) -> torch.Tensor:
        """One factor for each of ``total`` inputs."""
        own = self.gates.repeat_interleave(self.inputs)
        return F.pad(own, (self.first, total - self.first - len(own)), value=1.0)

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """``inner`` with weights that hold the gates: the same function."""
        weight = self.inner.weight
        if self.first is None:
            weight.mul_(self.gates)
            self.inner.bias.mul_(self.gates)
        else:
            weight.mul_(self.scale(weight.shape[1]).view(-1, *[1] * (weight.dim() - 2)))
        return self.inner


def channels(model: nn.Module, example: torch.Tensor) -> Places:
    """A gate for every channel (neuron) of the layers whose channels no addition couples, where they are read."""
    layers = surgery.layers(model, example, linear=True)
    return {name: (layer.width, list(layer.readers)) for name, layer in layers.items() if not layer.coupled}


def branches(model: nn.Module) -> Places:
    """One gate for every residual block: a module with a shortcut, whose branch ends with batch normalisation."""
    places: Places = {}
    for name, module in model.named_modules():
        norms = [child for child, m in module.named_children() if isinstance(m, surgery.BatchNorm)]
        if norms and any(hasattr(module, shortcut) for shortcut in surgery.SHORTCUTS):
            places[name] = (1, [(f"{name}.{norms[-1]}", None, 1)])
    return places


def install(model: nn.Module, places: Places, mean: float = 1.0, std: float = 0.0) -> dict[str, nn.Parameter]:
    """Put the gates on, in place, from N(mean, std^2): structure -> its gates."""
    device, gates = next(model.parameters()).device, {}
    for name, (size, spots) in places.items():
        gates[name] = nn.Parameter((mean + std * torch.randn(size)).to(device))
        for path, first, inputs in spots:
            model.set_submodule(path, Gated(model.get_submodule(path), gates[name], first, inputs))
    return gates


def fold(model: nn.Module) -> None:
    """Take the gates off, in place: the weights hold them from now on."""
    for path, module in reversed(list(model.named_modules())):  # the inner of two gates on one layer first
        if isinstance(module, Gated):
            model.set_submodule(path, module.folded())


def cut(model: nn.Module, name: str) -> None:
    """Leave of a residual block its shortcut, and the ReLU behind the addition where the shortcut computes anything.

    A plain shortcut hands on what has gone through a ReLU already.
    """
    block = model.get_submodule(name)
    shortcuts = [getattr(block, shortcut, None) for shortcut in surgery.SHORTCUTS]
    shortcut = next((s for s in shortcuts if s is not None), nn.Identity())
    model.set_submodule(name, shortcut if isinstance(shortcut, nn.Identity) else nn.Sequential(shortcut, nn.ReLU()))


class FISTA(torch.optim.Optimizer):
    """Beck and Teboulle's fast iterative shrinkage-thresholding for smooth loss + penalty * |m|_1 over m >= 0.

    ``step`` takes the gradient where the parameters are: at m_k, or at y_(k+1) once ``extrapolate`` has moved them
    there. ``settle`` moves them back to m_k. Nothing synchronises with the device.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, penalty: float) -> None:
        super().__init__(params, {"lr": lr, "penalty": penalty, "alpha": 0.0})  # a_0 = 0 makes a_1 = 1

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """m_(k+1) = prox(y_(k+1) - lr * gradient), with the threshold lr * penalty."""
        for group in self.param_groups:
            group["alpha"] = following(group["alpha"])
            for mask in group["params"]:
                state, moved = self.state[mask], mask - group["lr"] * mask.grad
                last = state.get("mask", mask)
                state["mask"] = shrink(moved, group["lr"] * group["penalty"])
                state["change"] = state["mask"] - last
                mask.copy_(state["mask"])

    @torch.no_grad()
    def extrapolate(self) -> None:
        """y_(k+1) = m_k + (a_k - 1) / a_(k+1) * (m_k - m_(k-1))."""
        for group in self.param_groups:
            push = (group["alpha"] - 1) / following(group["alpha"])
            for mask in group["params"]:
                if state := self.state[mask]:
                    mask.copy_(state["mask"] + push * state["change"])

    @torch.no_grad()
    def settle(self) -> None:
        """The parameters are m_k again."""
        for mask, state in self.state.items():
            if state:
                mask.copy_(state["mask"])


def following(alpha: float) -> float:
    """a_(k+1) = (1 + sqrt(1 + 4 a_k^2)) / 2."""
    return (1 + math.sqrt(1 + 4 * alpha**2)) / 2


def shrink(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """The m >= 0 nearest to ``values`` at a price of ``threshold`` * m: soft thresholding, then nothing negative."""
    return (values - threshold).clamp_min(0)


def positive(scores: Mapping[str, torch.Tensor], ratio: float) -> surgery.Selection:
    """Keep what has a positive gate and is not among the share ``ratio`` of all channels with the smallest ones.

    (Keep masks, layers left with one channel only so as not to be empty), like ``surgery.select_global``.
    """
    keep, emptied = surgery.select_global(scores, ratio, normalise=False)
    for name, score in scores.items():
        keep[name] &= score > 0
        if not keep[name].any():
            keep[name][score.argmax()] = True
    return keep, [name for name, score in scores.items() if name in emptied or not (score > 0).any()]
