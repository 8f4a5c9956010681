"""Feature maps: what a convolution hands on, read by hooks batch by batch; no map outlives its layer's turn."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from baselines.errors import UserError

VERSION = 1
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh)


@dataclass(frozen=True)
class Site:
    """Where a map is read: the output of the ``call``-th call (from 0) of ``module`` in one forward pass."""

    module: str
    call: int = 0


@torch.no_grad()
def sites(model: nn.Module, example: torch.Tensor, names: Iterable[str]) -> dict[str, Site]:
    """Where the feature map of each convolution of ``names`` is read: behind its activation.

    That is the first activation module to run after the convolution with an output of the same shape, whether a batch
    normalisation or an addition lies between them; convolutions that are added share it. One module that is called
    several times (torchvision's bottlenecks) counts as several. Without such an activation it is the convolution's own
    output. ``example`` is (1, C, H, W); KeyError for an unknown name.
    """
    found = {name: Site(name) for name in names}
    waiting: dict[str, torch.Size] = {}

    def see(site: Site, output: torch.Tensor) -> None:
        if site.module in found:
            waiting[site.module] = output.shape
            return
        taken = [name for name, shape in waiting.items() if shape == output.shape]
        found.update(dict.fromkeys(taken, site))
        if taken:  # what ran before and was not taken has no activation of its own
            waiting.clear()

    activations = [name for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)]
    with _watch(model, [*found, *activations], see):
        model(example[:1])
    return found


@torch.no_grad()
def stream(
    model: nn.Module,
    example: torch.Tensor,
    names: Iterable[str],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    see: Callable[[list[str], torch.Tensor], None],
) -> None:
    """Run ``batches`` of (images, labels) in eval mode and call ``see(names, maps)`` as the maps (N, C, H, W) arise.

    The names are those of all convolutions read at that place (see ``sites``). The maps may be overwritten once
    ``see`` returns: clone what is to stay.
    """
    readers: dict[Site, list[str]] = {}
    for name, site in sites(model, example, names).items():
        readers.setdefault(site, []).append(name)

    def pick(site: Site, output: torch.Tensor) -> None:
        if site in readers:
            see(readers[site], output)

    with _watch(model, dict.fromkeys(site.module for site in readers), pick):
        for x, _ in batches:
            model(x)


def channel_means(
    model: nn.Module,
    example: torch.Tensor,
    names: Iterable[str],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    statistic: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Mean over all images of ``statistic(maps)``, (N, C, H, W) -> (N, C): name -> (C,) float64, in order of ``names``.

    UserError when there is no image.
    """
    names = list(names)
    totals: dict[str, torch.Tensor] = {}
    images: Counter[str] = Counter()

    def see(readers: list[str], maps: torch.Tensor) -> None:
        value = statistic(maps).double().sum(0)
        for name in readers:
            totals[name] = totals[name] + value if name in totals else value
            images[name] += len(maps)

    stream(model, example, names, batches, see)
    if len(totals) < len(names):
        raise UserError("No image was given to measure feature maps on: ask for at least one.")
    return {name: totals[name] / images[name] for name in names}


@contextlib.contextmanager
def _watch(model: nn.Module, names: Iterable[str], see: Callable[[Site, torch.Tensor], None]) -> Iterator[None]:
    """Call ``see`` behind every call of the modules ``names``; eval mode inside, modes come back at the end."""
    modules, calls = dict(model.named_modules()), Counter()
    modes = {module: module.training for module in modules.values()}

    def hook(name: str) -> Callable:
        def after(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            calls[name] += 1
            see(Site(name, calls[name] - 1), output)

        return after

    handles = []
    try:
        handles += [modules[name].register_forward_hook(hook(name)) for name in names]
        handles.append(model.register_forward_pre_hook(lambda *_: calls.clear()))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
