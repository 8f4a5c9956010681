"""Pruning of single weights: which ones stay, that the others stay gone, and what a pruned net no longer uses.

A removed connection is a weight that is exactly zero. Nothing else is remembered, so a net that was pruned before keeps
its zeros. The steps of a method: ``weights`` (what can be pruned), ``largest`` or ``beyond`` (keep masks, True = kept),
``prune`` (zero the rest), ``prune_unused`` (zero what is cut off), ``hold`` (what is zero stays zero).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from baselines.errors import UserError

VERSION = 1
SLACK = 1e-6
BatchNorm = nn.modules.batchnorm._BatchNorm

Keep = dict[str, torch.Tensor]


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight of every convolution and linear layer by the layer's name, in order of definition.

    Biases and normalisation are not among them. UserError when there is none.
    """
    found = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    if not found:
        raise UserError("This network has neither a convolution nor a linear layer: there are no weights to prune.")
    return found


def largest(values: Mapping[str, torch.Tensor], sparsity: float) -> tuple[Keep, list[str]]:
    """Keep all but the int(n * sparsity) smallest magnitudes of the n weights of all tensors together.

    int() takes the exact product (1e-6 of slack for its rounding). Of equal magnitudes the first goes first. A tensor
    that would lose everything keeps its largest weight; the names of such tensors come second. UserError for a sparsity
    outside [0, 1) or weights that are not finite.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"The sparsity {sparsity} lies outside [0, 1): give the share of weights to remove.")
    sizes = {name: magnitudes(name, value) for name, value in values.items()}
    every = torch.cat([size.flatten() for size in sizes.values()])
    kept = torch.ones(len(every), dtype=torch.bool)
    kept[every.argsort(stable=True)[: int(len(every) * sparsity + SLACK)]] = False
    keep, clamped = {}, []
    for (name, size), part in zip(sizes.items(), kept.split([s.numel() for s in sizes.values()]), strict=True):
        if not part.any():
            clamped.append(name)
            part[size.argmax()] = True
        keep[name] = part.view_as(size)
    return keep, clamped


def beyond(name: str, weight: torch.Tensor, quality: float) -> tuple[torch.Tensor, bool]:
    """Keep the magnitudes of at least ``quality`` times the standard deviation of the tensor, zeros included.

    Han et al., NIPS 2015, Sec. 4. The largest weight stays in any case: the second value is True where it had to.
    UserError for a negative quality or weights that are not finite.
    """
    if not quality >= 0:
        raise UserError(f"The quality {quality} of {name} is no threshold: give a number from 0 on, such as 1.")
    size = magnitudes(name, weight)
    keep = size >= quality * weight.detach().cpu().double().std(unbiased=False)
    clamped = not keep.any()
    if clamped:
        keep.view(-1)[size.argmax()] = True
    return keep, clamped


def magnitudes(name: str, weight: torch.Tensor) -> torch.Tensor:
    """|w| on the CPU, contiguous; UserError for weights that are not finite."""
    size = weight.detach().abs().cpu().contiguous()
    if not size.isfinite().all():
        raise UserError(f"The weights of {name} are not finite numbers: the network has diverged; train it again.")
    return size


def prune(params: Mapping[str, torch.Tensor], keep: Mapping[str, torch.Tensor]) -> None:
    """Zero in place what ``keep`` drops."""
    for name, kept in keep.items():
        params[name].data.masked_fill_(~kept.to(params[name].device), 0)


def hold(model: nn.Module) -> Callable[[int], None]:
    """An ``after_step`` for training: weights that are zero now are zero after every step. Does not synchronise.

    The other weights move as if the removed ones were not there: momentum and weight decay act on each by itself.
    """
    removed = [(weight, weight.detach() == 0) for weight in weights(model).values()]

    def after_step(step: int) -> None:
        for weight, gone in removed:
            weight.data.masked_fill_(gone, 0)

    return after_step


def prune_unused(model: nn.Module, example: torch.Tensor) -> None:
    """Zero, in place, what no path from an input to an output runs through: weights, and the biases that are left.

    A neuron without inputs loses its outputs, one without outputs its inputs, and so on along the net. Weights that
    only ever read padding go as well. What a neuron without inputs emitted, a constant, is lost; a channel into which
    several convolutions are added lives as long as one of them has inputs. ``example`` is (1, C, H, W).
    """
    for _ in range(2):  # a neuron without inputs has no path from its bias to the output once its outputs are gone
        prune(dict(model.named_parameters()), _used(model, example))


def _used(model: nn.Module, example: torch.Tensor) -> Keep:
    """Which entries of every parameter a path runs through, or, for biases, begins at.

    On a copy in which all connections are positive (1 / fan-in), normalisation is the identity, biases are 0 and
    max-pools average, signals cannot cancel: the summed output has a gradient wherever there is a path. Activations
    have to keep positive values positive and 0 at 0, as ReLU does.
    """
    probe = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
    for module in list(probe.modules()):
        if isinstance(module, BatchNorm):
            module.reset_running_stats()
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
    named = dict(probe.named_parameters())
    for name, param in named.items():
        present = (param.data != 0).double() * (not name.endswith("bias"))
        param.data = present / present[0].numel()
    with torch.enable_grad():
        output = probe(torch.ones_like(example[:1], device="cpu", dtype=torch.double)).sum()
    grads = torch.autograd.grad(output, list(named.values()), allow_unused=True, materialize_grads=True)
    return {name: grad != 0 for name, grad in zip(named, grads, strict=True)}
