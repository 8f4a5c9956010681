"""Filter pruning on real networks: which filters to drop, masks, and physical removal on torch-pruning's graph.

The steps of a method: ``layers`` (what can be pruned), scores of its own, ``select`` / ``select_global`` /
``macs_budget`` (scores to keep masks), ``remove`` (the smaller network), ``hold`` (what is zero stays zero).

Channels are *coupled* where an addition ties the outputs of several convolutions together (a residual stream). One
rule holds for them: a channel is removed physically where **every** coupled convolution drops it; where only some do,
their filters are masked, which leaves the same function. ``couple`` gives coupled convolutions equal scores, so that
equal rates drop equal channels. Networks with option-A shortcuts (``ShortcutA``) are the exception: torch-pruning does
not see the zero padding, so their coupled convolutions are only ever masked.

Masking means zero *after* batch normalisation: weights, bias, BN weight and BN bias. It equals removal when the
activation maps 0 to 0 (ReLU, GELU, SiLU, hard-swish, tanh; not the sigmoid).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from baselines.cost import layer_macs
from baselines.errors import UserError
from baselines.models.resnet_cifar import ShortcutA

VERSION = 1
SHORTCUTS = ("downsample", "shortcut")  # names of a block's projection shortcut in torchvision and the CIFAR ResNets
DEFAULT_RATIO = 0.5
SLACK = 1e-9  # 10 * (1 - 0.9) is 0.99...98 in floating point, but 1 in the papers
BatchNorm = nn.modules.batchnorm._BatchNorm

Keep = dict[str, torch.Tensor]
Selection = tuple[Keep, list[str]]


@dataclass(frozen=True)
class Layer:
    """A prunable convolution with ``width`` filters; ``bn`` is the batch normalisation of its output, if any.

    Or a hidden linear layer with ``width`` neurons, where ``layers`` was asked for them.

    ``group`` is the first of the layers that share its channels; ``coupled``: there are others; ``shared``: they can
    only be masked. ``carriers`` (module, first channel) are the further BNs and depthwise convolutions on its channels,
    ``readers`` (module, first input, inputs per channel) the layers that take them in.
    """

    name: str
    width: int
    bn: str | None = None
    group: str = ""
    coupled: bool = False
    shared: bool = False
    carriers: tuple[tuple[str, int], ...] = ()
    readers: tuple[tuple[str, int, int], ...] = ()


# -- what can be pruned ----------------------------------------------------------------------------------------------


def layers(model: nn.Module, example: torch.Tensor, linear: bool = False) -> dict[str, Layer]:
    """The prunable convolutions of ``model`` on ``example`` (1, C, H, W), by name, in network order.

    Network order is the order of definition, except that a block's projection shortcut comes before its other
    convolutions: ResNet-50 gives stem, then per stage downsample, conv1, conv2, conv3 of each block (53 layers).
    Left out: grouped and depthwise convolutions, what feeds a grouped one, what forms the network's output, and what
    is added to a part of another layer's channels. UserError when nothing is left.

    ``linear``: the hidden linear layers too, where their neurons are read by linear layers alone and added to nothing.
    """
    return _inspect(model, example, linear)[1]


def rates(ratio: float | Sequence[float], names: Iterable[str]) -> dict[str, float]:
    """One pruning ratio for every name, from one number or one per name; UserError on a wrong value or length."""
    names = list(names)
    if not names:
        raise UserError("There is nothing to prune: no convolution of this network is free to lose filters.")
    if isinstance(ratio, int | float):
        ratio = [ratio] * len(names)
    if len(ratio) != len(names):
        raise UserError(
            f"{len(ratio)} pruning ratios were given, but there are {len(names)} convolutions to prune "
            f"({names[0]} ... {names[-1]}): give one for each, or a single number."
        )
    for name, value in zip(names, ratio, strict=True):
        if not 0 <= value < 1:
            raise UserError(
                f"The pruning ratio {value} of {name} lies outside [0, 1): give the share of filters to remove, "
                "such as 0.5."
            )
    return {name: float(value) for name, value in zip(names, ratio, strict=True)}


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on, as tracing needs; modes and ``requires_grad`` flags come back at the end."""
    modes = {module: module.training for module in model.modules()}
    frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
    model.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, param in model.named_parameters():
            param.requires_grad_(name not in frozen)


@functools.cache
def _torch_pruning() -> ModuleType:
    """torch-pruning without timm, which loads for longer than torch: only its FLOP counter, unused here, needs it."""
    loaded = "timm" in sys.modules
    if not loaded:
        sys.modules["timm"] = None  # torch-pruning does without what cannot be imported
    try:
        return importlib.import_module("torch_pruning")
    finally:
        if not loaded:
            del sys.modules["timm"]


def _inspect(model: nn.Module, example: torch.Tensor, linear: bool) -> tuple[object, dict[str, Layer]]:
    """torch-pruning's graph of ``model`` and the layers read from it."""
    tp = _torch_pruning()

    modules = dict(model.named_modules())
    kinds = (nn.Conv2d, nn.Linear) if linear else nn.Conv2d
    order = [name for name in _ordered(model, kinds) if getattr(modules[name], "groups", 1) == 1]
    if not order:
        raise UserError("This network has no convolution to prune filters of: choose a convolutional baseline.")
    with _quiet(model):
        graph = tp.DependencyGraph().build_dependency(model, (example[:1],), verbose=False)
    names = {module: name for name, module in modules.items()}
    own = {name: _own_bn(graph, modules[name], names) for name in order if modules[name] in graph.module2node}
    masked_only = any(isinstance(module, ShortcutA) for module in modules.values())
    groups: dict[str, tuple] = {}
    found = {}
    for name in own:
        if name not in groups:
            group = _group(graph, modules[name], names)
            groups.update(dict.fromkeys(group[0], group))
        members, carriers, readers, fixed = groups[name]
        width, coupled = len(modules[name].weight), len(members) > 1
        fixed |= not masked_only and any(len(modules[m].weight) != width for m in members)
        if fixed or not readers or (coupled and isinstance(modules[name], nn.Linear)):
            continue
        shared = coupled and masked_only
        norms = {own.get(member) for member in members}
        found[name] = Layer(
            name,
            width,
            own[name],
            min(members, key=order.index),
            coupled,
            shared,
            () if shared else tuple(pair for pair in carriers if pair[0] not in norms),
            () if shared else tuple(readers),
        )
    if not found:
        raise UserError("No convolution of this network is free to lose filters: choose another baseline.")
    return graph, found


def _ordered(module: nn.Module, kinds: type | tuple[type, ...], prefix: str = "") -> Iterator[str]:
    """Names of the modules of these kinds in network order."""
    for name, child in sorted(module.named_children(), key=lambda pair: pair[0] not in SHORTCUTS):
        if isinstance(child, kinds):
            yield prefix + name
        yield from _ordered(child, kinds, f"{prefix}{name}.")


def _own_bn(graph: object, layer: nn.Module, names: Mapping[nn.Module, str]) -> str | None:
    """The batch normalisation that alone reads the output of ``layer``."""
    following = graph.module2node[layer].outputs
    if len(following) == 1 and isinstance(following[0].module, BatchNorm):
        return names[following[0].module]
    return None


def _dependent(graph: object, layer: nn.Module, filters: list[int]) -> Sequence:
    """torch-pruning's group of all that goes with these filters (or neurons) of ``layer``."""
    tp = _torch_pruning()

    prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    return graph.get_pruning_group(layer, prune, filters)


def _group(graph: object, layer: nn.Module, names: Mapping[nn.Module, str]) -> tuple[list, list, list, bool]:
    """What depends on the first filter of ``layer``: (members, carriers, readers, True if it must not be pruned)."""
    tp = _torch_pruning()

    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    members, carriers, readers, fixed = [], [], [], False
    for dep, channels in _dependent(graph, layer, [0]):
        module, name = dep.target.module, names.get(dep.target.module, "")
        produces = graph.is_out_channel_pruning_fn(dep.handler)
        fixed |= kind is nn.Linear and isinstance(module, nn.Conv2d)
        if dep.target.type == tp.ops.OPTYPE.OUTPUT:
            fixed = True
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            carriers.append((name, channels[0]))
            fixed |= module.groups != module.out_channels or module.groups != module.in_channels
        elif isinstance(module, BatchNorm):
            carriers.append((name, channels[0]))
        elif isinstance(module, kind) and produces:
            members.append(name)
            fixed |= channels[0] != 0
        elif isinstance(module, nn.Conv2d | nn.Linear) and not produces:
            readers.append((name, channels[0], len(channels)))
    return members, carriers, readers, fixed


# -- scores to keep masks --------------------------------------------------------------------------------------------


def select(scores: Mapping[str, torch.Tensor], ratio: float | Sequence[float], rounding: str = "removed") -> Selection:
    """Per layer, keep the filters with the highest scores: (name -> bool mask, layers clamped to one filter).

    ``ratio`` is the share to remove, one number or one per layer. ``rounding`` "keep": int(w * (1 - ratio)) filters
    stay (Li et al., ThiNet); "removed": int(w * ratio) go (HRank). int() takes the exact product: 1e-9 of slack
    absorbs the floating-point error. Of equal scores the lower index goes first. At least one filter stays.
    """
    if rounding not in ("keep", "removed"):
        raise UserError(f"There is no rounding '{rounding}': choose 'keep' or 'removed'.")
    keep, clamped = {}, []
    for name, share in rates(ratio, scores).items():
        width = len(scores[name])
        left = _floor(width * (1 - share)) if rounding == "keep" else width - _floor(width * share)
        if left < 1:
            clamped.append(name)
        mask = torch.ones(width, dtype=torch.bool)
        mask[_ascending(name, scores[name])[: width - max(1, left)]] = False
        keep[name] = mask
    return keep, clamped


def select_global(scores: Mapping[str, torch.Tensor], ratio: float, *, normalise: bool = True) -> Selection:
    """Remove int(ratio * all filters), the lowest scores of the whole network: (masks, layers clamped to one filter).

    Scores are first divided by their layer's root mean square, which makes layers comparable; ``normalise=False``
    compares them as they are (network slimming). A layer that would lose every filter keeps its best one.
    """
    rates(ratio, scores)
    values = {name: s.detach().double().cpu() for name, s in scores.items()}
    if normalise:
        values = {name: s / s.square().mean().sqrt().clamp_min(1e-30) for name, s in values.items()}
    every = torch.cat(list(values.values()))
    alive = torch.ones(len(every), dtype=torch.bool)
    alive[_ascending("the network", every)[: _floor(len(every) * ratio)]] = False
    keep, clamped = {}, []
    for (name, value), mask in zip(values.items(), alive.split([len(s) for s in values.values()]), strict=True):
        keep[name] = mask.clone()
        if not mask.any():
            clamped.append(name)
            keep[name][_ascending(name, value)[-1]] = True
    return keep, clamped


def couple(scores: Mapping[str, torch.Tensor], found: Mapping[str, Layer]) -> dict[str, torch.Tensor]:
    """Give layers that share their channels equal scores: each divided by its mean size, then averaged per channel.

    Layers that can only be masked (``shared``) and layers that stand alone keep their own scores.
    """
    groups: dict[str, list[str]] = {}
    for name in scores:
        if found[name].coupled and not found[name].shared:
            groups.setdefault(found[name].group, []).append(name)
    result = dict(scores)
    for names in groups.values():
        parts = [scores[n] / scores[n].abs().mean().clamp_min(1e-30) for n in names]
        result.update(dict.fromkeys(names, torch.stack(parts).mean(0)))
    return result


def _floor(product: float) -> int:
    return math.floor(product + SLACK)


def _ascending(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Indices from the lowest to the highest score; the lower index first among equals."""
    scores = scores.detach().double().cpu()
    if not scores.isfinite().all():
        raise UserError(f"The scores of {name} are not finite numbers: the network or its calibration has diverged.")
    return scores.argsort(stable=True)


def widths(
    model: nn.Module,
    example: torch.Tensor,
    found: Mapping[str, Layer],
    ratio: float | None,
    ratios: Sequence[float],
    macs_reduction: float | None,
    *,
    stream: bool = False,
    rounding: str = "keep",
) -> tuple[dict[str, int], list[str]]:
    """How many filters each layer keeps, in network order, and the layers clamped to one: for scores that come later.

    The first that is set of ``macs_reduction`` (share of the MACs to save, at one ratio), ``ratio`` (one for all) and
    ``ratios`` (one for each of ``found``) counts; with none of them the ratio is 0.5. One ratio leaves coupled layers
    out unless ``stream`` is set. ``rounding`` as in ``select``.
    """
    choose = functools.partial(select, rounding=rounding)
    blank = {name: torch.zeros(layer.width) for name, layer in found.items()}
    free = {name: zero for name, zero in blank.items() if stream or not found[name].coupled}
    if macs_reduction is not None:
        keep, clamped = macs_budget(model, example, free, macs_reduction, choose)
    elif ratio is None and ratios:
        keep, clamped = choose(blank, ratios)
    else:
        keep, clamped = choose(free, DEFAULT_RATIO if ratio is None else ratio)
    return {name: int(kept.sum()) for name, kept in keep.items()}, clamped


# -- masks and removal -----------------------------------------------------------------------------------------------


def mask(model: nn.Module, keep: Mapping[str, torch.Tensor], found: Mapping[str, Layer]) -> None:
    """Zero the dropped filters in place: weights, bias, BN weight and BN bias, so that they emit exactly 0 after BN."""
    _check(keep, found)
    for param, dropped in _cells(model, keep, found):
        param.data.masked_fill_(dropped, 0)


def hold(model: nn.Module, example: torch.Tensor) -> Callable[[int], None]:
    """An ``after_step`` for training: filters that are all zero now (BN included) stay zero. Does not synchronise."""
    keep = {name: kept for name, kept in alive(model, example).items() if not kept.all()}
    cells = list(_cells(model, keep, layers(model, example)))

    def after_step(step: int) -> None:
        for param, dropped in cells:
            param.data.masked_fill_(dropped, 0)

    return after_step


def alive(model: nn.Module, example: torch.Tensor) -> Keep:
    """Which filters of each prunable convolution are not all zero (weights, bias and BN): name -> bool mask."""
    modules, found = dict(model.named_modules()), {}
    for name, layer in layers(model, example).items():
        parts = [modules[name].weight, *_vectors(modules[name], modules.get(layer.bn))]
        left = [(p.detach() != 0).flatten(1).any(1) if p.dim() > 1 else p != 0 for p in parts]
        found[name] = torch.stack(left).any(0).cpu()
    return found


def remove(model: nn.Module, example: torch.Tensor, keep: Mapping[str, torch.Tensor]) -> nn.Module:
    """Remove the dropped filters, in place, with all that depends on them; the function is that of the masked net.

    ``keep`` maps names of ``layers`` to bool masks; layers not named stay whole. Coupled layers lose the channels
    that all of them drop; the rest, and layers that are ``shared``, are masked. Returns ``model``.
    """
    with _quiet(model):
        graph, found = _inspect(model, example, linear=True)
        mask(model, keep, found)
        for first, dropped in _dropped(keep, found).items():
            if dropped.any() and not found[first].shared:
                _dependent(graph, model.get_submodule(first), dropped.nonzero().flatten().tolist()).prune()
    return model


def _check(keep: Mapping[str, torch.Tensor], found: Mapping[str, Layer]) -> None:
    """UserError when a mask does not fit the network."""
    for name, kept in keep.items():
        if name not in found:
            raise UserError(f"'{name}' is no prunable convolution of this network; there are: {', '.join(found)}.")
        if len(kept) != found[name].width:
            raise UserError(
                f"The mask of {name} has {len(kept)} entries, but the layer has {found[name].width} filters."
            )
        if not kept.any():
            raise UserError(f"The mask of {name} keeps no filter: keep at least one.")


def _dropped(keep: Mapping[str, torch.Tensor], found: Mapping[str, Layer]) -> dict[str, torch.Tensor]:
    """First layer of each group -> the channels that all layers of the group drop."""
    result: dict[str, torch.Tensor] = {}
    for name, layer in found.items():
        gone = ~keep[name].cpu() if name in keep else torch.zeros(layer.width, dtype=torch.bool)
        first = result.get(layer.group)
        # the widths of an option-A stream differ from stage to stage; its layers are never removed together
        result[layer.group] = gone if first is None or layer.shared else first & gone
    return result


def _vectors(conv: nn.Module, bn: nn.Module | None) -> list[nn.Parameter]:
    """Bias, BN weight and BN bias: those there are."""
    return [p for p in (conv.bias, getattr(bn, "weight", None), getattr(bn, "bias", None)) if p is not None]


def _cells(
    model: nn.Module, keep: Mapping[str, torch.Tensor], found: Mapping[str, Layer]
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """(parameter, which of its entries to zero, broadcastable) of every dropped filter."""
    modules = dict(model.named_modules())
    for name, kept in keep.items():
        layer, bn = modules[name], modules.get(found[name].bn)
        gone = ~kept.to(layer.weight.device)
        yield layer.weight, gone.view(-1, *[1] * (layer.weight.dim() - 1))
        yield from ((param, gone) for param in _vectors(layer, bn))
    for first, dropped in _dropped(keep, found).items():
        for name, start in found[first].carriers if dropped.any() else ():
            module = modules[name]
            for param in module.parameters(recurse=False):
                gone = torch.zeros(param.shape[0], dtype=torch.bool, device=param.device)
                gone[start : start + len(dropped)] = dropped.to(param.device)
                yield param, gone.view(-1, *[1] * (param.dim() - 1))


# -- MAC budget ------------------------------------------------------------------------------------------------------


def macs_budget(
    model: nn.Module,
    example: torch.Tensor,
    scores: Mapping[str, torch.Tensor],
    reduction: float,
    choose: Callable[[Mapping[str, torch.Tensor], float], Selection] = select,
) -> Selection:
    """The smallest ratio at which ``choose(scores, ratio)`` takes away at least the share ``reduction`` of the MACs.

    Bisection on the ratio to 1e-6; the MACs of a candidate are worked out from one counted forward pass, without
    pruning a copy. UserError when even one filter per layer is too many, or ``reduction`` lies outside [0, 1).
    """
    if not 0 <= reduction < 1:
        raise UserError(f"The MACs reduction {reduction} lies outside [0, 1): give the share to remove, such as 0.5.")
    found = layers(model, example, linear=True)
    macs = module_macs(model, example)
    whole = sum(macs.values())
    goal = whole * (1 - reduction) * (1 + SLACK)

    def left(ratio: float) -> float:
        return macs_left(model, macs, choose(scores, ratio)[0], found)

    low, high = 0.0, 1 - 1e-6
    if left(high) > goal:
        raise UserError(
            f"A MACs reduction of {reduction} is out of reach: with one filter per pruned layer it is "
            f"{1 - left(high) / whole:.4f}. Ask for less."
        )
    if left(low) <= goal:
        return choose(scores, low)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= goal else (middle, high)
    return choose(scores, high)


def module_macs(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """MACs of every convolution and linear layer."""
    modules = dict(model.named_modules())
    macs = layer_macs(model, example)
    return {name: count for name, count in macs.items() if isinstance(modules[name], nn.Conv2d | nn.Linear)}


def macs_left(
    model: nn.Module, macs: Mapping[str, int], keep: Mapping[str, torch.Tensor], found: Mapping[str, Layer]
) -> float:
    """MACs of ``model`` once ``keep`` is applied by ``remove``: they are proportional to outputs times inputs."""
    modules = dict(model.named_modules())
    fewer_out = dict.fromkeys(macs, 0)
    fewer_in = dict.fromkeys(macs, 0)
    dropped = {group: int(gone.sum()) for group, gone in _dropped(keep, found).items()}
    for name, layer in found.items():
        if not layer.shared:
            fewer_out[name] = dropped[layer.group]
        if layer.group == name:
            for reader, _, inputs in layer.readers:
                fewer_in[reader] += dropped[name] * inputs
            for carrier, _ in layer.carriers:
                fewer_out[carrier] = fewer_out.get(carrier, 0) + dropped[name]
    total = 0.0
    for name, count in macs.items():
        module = modules[name]
        outputs, inputs = module.weight.shape[0], module.weight.shape[1]
        total += count * (1 - fewer_out[name] / outputs) * (1 - fewer_in[name] / inputs)
    return total
