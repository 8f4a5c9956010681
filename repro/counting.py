"""The counting rules of the papers, and what each layer of a network costs.

A rule counts a dense and a compressed network in the way of some paper: parameters and operations of both. It may say
None: it has no meaning for this pair. A paper's row names its rule; the boards show it beside the physical count.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from baselines.cost import Cost, cost, layer_macs
from methods.kit.coding import codings, input_bits

if TYPE_CHECKING:
    from repro.record import Measurement

Counts = dict[str, int]  # params, macs, dense_params, dense_macs
Rule = Callable[[nn.Module, nn.Module, torch.Tensor], Counts | None]
Layer = nn.Conv2d | nn.Linear
BatchNorm = nn.modules.batchnorm._BatchNorm
# What a rule takes of each net's costs: which parameters, which multiply-accumulates, and operations for each of these.
# ``nonzero`` is how papers that prune single weights count: what is zero is gone.
TAKEN = {
    "mac": ("params", "macs", 1),
    "two_per_mac": ("params", "macs", 2),
    "nonzero": ("nonzero", "effective_macs", 1),
}


def counted(dense: nn.Module, compressed: nn.Module, example: torch.Tensor) -> dict[str, Counts]:
    """Both networks by every rule that has a meaning for them, on the first image of ``example`` (B, C, H, W)."""
    found = {name: rule(dense, compressed, example) for name, rule in RULES.items()}
    return {name: counts for name, counts in found.items() if counts is not None}


def of_costs(rule: str, dense: Cost | Measurement, compressed: Cost | Measurement) -> Counts | None:
    """Both networks by a rule that takes all from their costs, just counted or kept in a record; None by another."""
    if rule not in TAKEN:
        return None
    params, macs, operations = TAKEN[rule]
    counts = {"params": getattr(compressed, params), "macs": operations * getattr(compressed, macs)}
    return {**counts, "dense_params": getattr(dense, params), "dense_macs": operations * getattr(dense, macs)}


def _by_costs(rule: str, dense: nn.Module, compressed: nn.Module, example: torch.Tensor) -> Counts | None:
    return of_costs(rule, cost(dense, example), cost(compressed, example))


@torch.no_grad()
def hrank_out_only(dense: nn.Module, compressed: nn.Module, example: torch.Tensor) -> Counts | None:
    """HRank's count: a layer loses the filters that are gone, but no filter loses an input channel.

    Every convolution and linear layer of the dense net counts with the filters that the compressed one has left, each
    with all of the dense net's inputs. Gone is a filter that is not there, or whose weights, bias and batch
    normalisation (weight and bias) are all zero: one with a shift left still says something. Biases: those of
    convolutions are parameters but no operations, those of linear layers are both (one operation for each output).
    Batch normalisation is neither. None unless the two nets have layers of the same names and kernels, none of them
    wider in the compressed net, and the dense net multiplies in these layers only.
    """
    macs, old = layer_macs(dense, example), _layers(dense)
    new = _layers(compressed)
    if macs.keys() != old.keys() or old.keys() != new.keys() or not all(_fits(new[n], old[n]) for n in old):
        return None
    silent = _silent(compressed, example)
    whole = [_out_only(layer, len(layer.weight), macs[name]) for name, layer in old.items()]
    left = [_out_only(layer, len(new[name].weight) - silent[name], macs[name]) for name, layer in old.items()]
    (params, macs_left), (dense_params, dense_macs) = (map(sum, zip(*pairs, strict=True)) for pairs in (left, whole))
    return {"params": params, "macs": macs_left, "dense_params": dense_params, "dense_macs": dense_macs}


RULES: dict[str, Rule] = {
    **{name: functools.partial(_by_costs, name) for name in TAKEN},
    "hrank_out_only": hrank_out_only,
}


def _layers(model: nn.Module) -> dict[str, Layer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def _fits(new: Layer, old: Layer) -> bool:
    """Whether ``new`` can be what is left of ``old``: the same kernel, no more filters, no more inputs."""
    a, b = new.weight.shape, old.weight.shape
    return a[2:] == b[2:] and a[0] <= b[0] and a[1] <= b[1]


def _out_only(layer: Layer, filters: int, macs: int) -> tuple[int, int]:
    """(params, operations) of a dense layer of so many MACs with only ``filters`` of its filters."""
    biases = 0 if layer.bias is None else filters
    places = macs // layer.weight.numel()
    operations = filters * layer.weight[0].numel() * places + (biases * places if isinstance(layer, nn.Linear) else 0)
    return filters * layer.weight[0].numel() + biases, operations


def _silent(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """How many filters of each layer are there and all zero, in the batch normalisations that read them too."""
    probe = copy.deepcopy(model).eval()
    made: list[tuple[str, torch.Tensor]] = []
    norms: dict[str, list[BatchNorm]] = {name: [] for name in _layers(probe)}

    def reads(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        for name, output in made:
            if output is inputs[0]:
                norms[name].append(norm)

    for name, layer in _layers(probe).items():
        layer.register_forward_hook(lambda _, __, output, name=name: made.append((name, output)))
    for norm in probe.modules():
        if isinstance(norm, BatchNorm):
            norm.register_forward_pre_hook(reads)
    probe(example[:1])
    return {name: int(_zero(layer, norms[name]).sum()) for name, layer in _layers(probe).items()}


def _zero(layer: Layer, norms: list[BatchNorm]) -> torch.Tensor:
    """Which filters are zero throughout: (filters,) bool. None is where a normalisation has no weight: it shifts."""
    zero = (layer.weight == 0).flatten(1).all(1)
    if any(norm.weight is None for norm in norms):
        return torch.zeros_like(zero)
    for vector in (layer.bias, *(vector for norm in norms for vector in (norm.weight, norm.bias))):
        if vector is not None:
            zero &= vector == 0
    return zero


# ------------------------------------------------------------------------------------------- layer by layer


@dataclass(frozen=True)
class LayerCost:
    """One layer: outputs and inputs of its weight, its own parameters, and what one image costs in it.

    ``bit_ops`` are MACs times the bits of a weight times the bits of an activation: 32 x 32 unless declared otherwise.
    """

    out: int
    into: int
    params: int
    nonzero: int
    macs: int
    bit_ops: int


def layer_costs(model: nn.Module, example: torch.Tensor) -> dict[str, LayerCost]:
    """Every convolution and linear layer, and all else that multiplies, by name: MACs and bit-operations add up."""
    declared, found = codings(model), {}
    for name, macs in layer_macs(model, example).items():
        module = model.get_submodule(name)
        own = list(module.parameters(recurse=False))
        coding = declared.get(f"{name}.weight".lstrip("."))
        found[name] = LayerCost(
            *_shape(module),
            params=sum(p.numel() for p in own),
            nonzero=sum(int(torch.count_nonzero(p)) for p in own),
            macs=macs,
            bit_ops=macs * (coding.weight_bits if coding else 32) * input_bits(module),
        )
    return found


def _shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of the weight; zeros where a module has no such thing."""
    weight = getattr(module, "weight", None)
    known = isinstance(weight, torch.Tensor) and weight.dim() > 1
    return (weight.shape[0], weight.shape[1]) if known else (0, 0)
