"""Reconstruction of the next layer: what it reads at random places, channel by channel, and least squares in float64.

A *reader* is a convolution or linear layer that takes in the channels of the layer to prune. Its output at one place,
less the bias, is a sum over its input channels. Samples are drawn at random places of calibration images; only sums of
products over them are kept, so memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError
from methods.kit import features, surgery
from methods.kit.features import Site
from methods.kit.surgery import Layer

VERSION = 1
FAINT = 1e-3  # outputs that batch normalisation scales by less than this share of its largest factor count as muted
ROUNDING = 1e-12  # shares below this are no more than rounding errors of float64
RIDGE = 1e-10  # of columns of norm 1: they count as dependent where the least pivot is smaller


# -- how many filters stay -------------------------------------------------------------------------------------------


def widths(
    model: nn.Module,
    example: torch.Tensor,
    found: Mapping[str, Layer],
    ratio: float | None,
    ratios: Sequence[float],
    macs_reduction: float | None,
) -> tuple[dict[str, int], list[str]]:
    """``surgery.widths`` of the convolutions that no addition couples; UserError for a rate above 0 on one of those."""
    if macs_reduction is None and ratio is None and ratios:
        for name, rate in surgery.rates(ratios, found).items():
            if rate > 0 and found[name].coupled:
                raise UserError(
                    f"The pruning ratio {rate} is for {name}, whose outputs are added to those of other layers: "
                    "reconstruction prunes inside of blocks only, so give 0 there."
                )
    kept, clamped = surgery.widths(model, example, found, ratio, ratios, macs_reduction)
    return {name: width for name, width in kept.items() if not found[name].coupled}, clamped


def check_samples(images: int, locations: int) -> None:
    """UserError unless there is at least one place of one image to sample."""
    for name, value in (("images", images), ("locations", locations)):
        if value < 1:
            raise UserError(
                f"{name}={value} leaves nothing to reconstruct from: give at least 1; the papers take 10 locations of "
                "thousands of images."
            )


# -- samples ---------------------------------------------------------------------------------------------------------


class _Seen(Exception):
    """Every tap has its input: the rest of the forward pass is not needed."""


@contextlib.contextmanager
def inputs(
    model: nn.Module, taps: Mapping[Site, Callable[[torch.Tensor], Any]]
) -> Iterator[Callable[[torch.Tensor], dict[Site, Any]]]:
    """Yields a function of images that runs ``model`` in eval mode and gives what each tap makes of its input.

    A site is the input of the ``call``-th call of a module. The pass ends at the last of them. Taps must copy what they
    keep: activations may overwrite their input. Modes and hooks are put back at the end.
    """
    calls, made = Counter(), {}

    def before(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            site = Site(name, calls[name])
            calls[name] += 1
            if site in taps:
                made[site] = taps[site](args[0])
                if len(made) == len(taps):
                    raise _Seen

        return hook

    @torch.no_grad()
    def run(x: torch.Tensor) -> dict[Site, Any]:
        calls.clear()
        made.clear()
        with contextlib.suppress(_Seen):
            model(x)
        return dict(made)

    names = {site.module for site in taps}
    modes = {module: module.training for module in model.modules()}
    handles = [model.get_submodule(name).register_forward_pre_hook(before(name)) for name in names]
    try:
        model.eval()
        yield run
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class Places:
    """M output places of a layer on a batch: image, row and column, each (M,) int64."""

    image: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


def draw(x: torch.Tensor, module: nn.Module, locations: int, generator: torch.Generator) -> Places:
    """``locations`` random output places of ``module`` for each image of its input ``x``; a linear layer has one."""
    sides = (1, 1)
    if isinstance(module, nn.Conv2d):
        left, right, top, bottom = module._reversed_padding_repeated_twice
        padded = (x.shape[2] + top + bottom, x.shape[3] + left + right)
        shape = zip(padded, module.dilation, module.kernel_size, module.stride, strict=True)
        sides = ((side - dilation * (size - 1) - 1) // stride + 1 for side, dilation, size, stride in shape)
    row, column = (torch.randint(side, (len(x) * locations,), generator=generator).to(x.device) for side in sides)
    return Places(torch.arange(len(x), device=x.device).repeat_interleave(locations), row, column)


def patches(x: torch.Tensor, module: nn.Module, places: Places) -> torch.Tensor:
    """What ``module`` reads of its input ``x`` at each place: (M, inputs, entries of a 2-d kernel)."""
    if isinstance(module, nn.Linear):
        return x[places.image, :, None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    shape = zip((places.row, places.column), module.stride, module.dilation, module.kernel_size, strict=True)
    row, column = (p[:, None] * stride + dilation * torch.arange(size).to(p) for p, stride, dilation, size in shape)
    found = padded[places.image[:, None, None], :, row[:, :, None], column[:, None, :]]  # (M, height, width, inputs)
    return found.permute(0, 3, 1, 2).flatten(2)


def samples(
    nets: Sequence[nn.Module],
    name: str,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    locations: int,
    generator: torch.Generator,
    end: Site | None = None,
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """What the layer ``name`` reads at random output places, batch by batch; the same places in all ``nets``.

    Yields for each net the patches (M, inputs, K) and, with ``end``, what is at these places of the input of that
    site, which has the size of the layer's output: (M, outputs).
    """
    module, places = nets[0].get_submodule(name), []

    def read(x: torch.Tensor) -> torch.Tensor:
        if not places:
            places.append(draw(x, module, locations, generator))
        return patches(x, module, *places)

    def values(x: torch.Tensor) -> torch.Tensor:
        return x[places[0].image, :, places[0].row, places[0].column]

    taps = {Site(name): read} if end is None else {Site(name): read, end: values}
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(inputs(net, taps)) for net in nets]
        for images, _ in batches:
            places.clear()
            found = [run(images) for run in runs]
            yield [(seen[Site(name)], seen.get(end)) for seen in found]


def kernels(module: nn.Module) -> torch.Tensor:
    """The weight as (outputs, inputs, entries of a 2-d kernel): summed over its product with patches, the output."""
    weight = module.weight.detach()
    return weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]


@dataclass(frozen=True)
class Reader:
    """The layer ``name`` takes in ``channels`` channels, from its input ``first`` on, ``inputs`` of its inputs each."""

    name: str
    first: int
    inputs: int
    channels: int

    def part(self, values: torch.Tensor) -> torch.Tensor:
        """Of patches or kernels (M, inputs, K), those of the channels: (M, channels, entries per channel)."""
        return values[:, self.first : self.first + self.channels * self.inputs].reshape(len(values), self.channels, -1)

    def set(self, model: nn.Module, weight: torch.Tensor) -> None:
        """Put ``weight`` (outputs, channels, entries per channel) in the place of ``part(kernels(module))``."""
        target = model.get_submodule(self.name).weight.data
        cells = target[:, self.first : self.first + self.channels * self.inputs]
        cells.copy_(weight.reshape(cells.shape))


def readers(layer: Layer) -> list[Reader]:
    """The layers that take in the channels of ``layer``."""
    return [Reader(*reader, layer.width) for reader in layer.readers]


class Output:
    """What a reader gives, behind its batch normalisation where it has one, which scales it by ``factor`` (outputs,).

    ``weight`` (outputs, channels, entries per channel) in float64 is the kernel that gives it; ``intercept``: a bias or
    a running mean can hold one.
    """

    def __init__(self, model: nn.Module, found: Mapping[str, Layer], reader: Reader) -> None:
        self.model, self.reader, self.module = model, reader, model.get_submodule(reader.name)
        own = found.get(reader.name)
        self.bn = own.bn if own else None
        self.intercept = self.bn is not None or self.module.bias is not None
        in_shortcut = set(reader.name.split(".")) & set(surgery.SHORTCUTS)
        self.in_branch = own is not None and own.coupled and not in_shortcut
        self.factor = double(torch.ones(len(self.module.weight), device=self.module.weight.device))
        if self.bn:
            bn = model.get_submodule(self.bn)
            self.factor *= double(bn.weight.detach() / (bn.running_var + bn.eps).sqrt())
        self.weight = double(reader.part(kernels(self.module))) * self.factor[:, None, None]

    def gaps(
        self,
        dense: nn.Module,
        example: torch.Tensor,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        locations: int,
        generator: torch.Generator,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What is read of the channels (M, channels, entries), and what the output lacks to ``dense``'s (M, outputs).

        At the end of a residual branch it is what the sum of branch and shortcut lacks.
        """
        name, nets, end = self.reader.name, [self.model, dense], self._sum(dense, example)
        for (ours, sum_now), (theirs, sum_then) in samples(nets, name, batches, locations, generator, end):
            gap = sum_then - sum_now if end else self._values(dense, theirs) - self._values(self.model, ours)
            yield self.reader.part(ours), gap

    def _sum(self, net: nn.Module, example: torch.Tensor) -> Site | None:
        """Where the sum that ends this layer's residual branch is read: by an activation in the same block."""
        if not self.in_branch:
            return None
        name = self.reader.name
        site = features.sites(net, example, [name])[name]
        same_block = site.module.rpartition(".")[0] == name.rpartition(".")[0]
        return site if same_block and site.module != name else None

    @torch.no_grad()
    def _values(self, net: nn.Module, read: torch.Tensor) -> torch.Tensor:
        """The output (M, outputs) of the layer in ``net`` on patches (M, inputs, K)."""
        module = net.get_submodule(self.reader.name)
        values = F.linear(read.flatten(1), kernels(module).flatten(1), module.bias)
        if not self.bn:
            return values
        bn = net.get_submodule(self.bn)
        return F.batch_norm(values, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def add(self, change: torch.Tensor, shift: torch.Tensor) -> None:
        """Change ``weight`` and the intercept (outputs,), but for outputs that batch normalisation all but mutes."""
        loud = self.factor.abs() > FAINT * self.factor.abs().max()
        divisor = torch.where(loud, self.factor, torch.inf)
        kernel = self.reader.part(kernels(self.module))
        self.reader.set(self.model, kernel + (change / divisor[:, None, None]).to(kernel))
        shift = (shift / divisor).to(kernel)
        if self.module.bias is not None:
            self.module.bias.data += shift
        elif self.bn:
            self.model.get_submodule(self.bn).running_mean -= shift


# -- least squares ---------------------------------------------------------------------------------------------------


def double(values: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU where the device has none."""
    return values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)


class Moments:
    """Sums over samples of inputs x (M, p) and targets y (M, q), in float64: all that least squares of y on x needs."""

    def __init__(self) -> None:
        self.samples = 0
        self.x = self.y = self.xx = self.xy = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """More samples; UserError when they are not finite."""
        x, y = double(x), double(y)
        if not (x.isfinite().all() and y.isfinite().all()):
            raise UserError("A feature map is not finite: the network has diverged; train it again before pruning.")
        self.samples += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def products(self, intercept: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """X^T X (p, p) and X^T Y (p, q); with the means taken off X and Y where each target has an intercept.

        An input that never changes has products 0 then, not those of rounding.
        """
        if not intercept:
            return self.xx, self.xy
        xx = self.xx - torch.outer(self.x, self.x) / self.samples
        xy = self.xy - torch.outer(self.x, self.y) / self.samples
        still = xx.diagonal() <= ROUNDING * self.xx.diagonal()
        return xx.masked_fill_(still | still[:, None], 0), xy.masked_fill_(still[:, None], 0)


def solve(xx: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """The coefficients (p, q) that minimise ||Y - X coefficients||, from X^T X and X^T Y in float64.

    Columns are scaled to norm 1 first. Where they depend on each other, a ridge picks the smallest solution, to about
    ``RIDGE``; a column of zeros, next to the others, gets 0.
    """
    norm = xx.diagonal().clamp_min(0).sqrt()
    live = norm > ROUNDING * norm.max()
    result = torch.zeros_like(xy)
    if not live.any():
        return result
    norm = norm[live, None]
    scaled, right = xx[live][:, live] / (norm * norm.T), xy[live] / norm
    factor, info, ridge = *torch.linalg.cholesky_ex(scaled), 0.0
    while info or factor.diagonal().min() ** 2 < RIDGE:
        ridge = max(RIDGE, 10 * ridge)
        factor, info = torch.linalg.cholesky_ex(scaled + ridge * torch.eye(len(scaled)).to(scaled))
    result[live] = torch.cholesky_solve(right, factor) / norm
    return result
