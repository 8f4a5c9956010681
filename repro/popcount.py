"""Binary layers on the CPU: a product of signs as an XNOR of words and a count of ones, in place of fp32.

``network`` finds the convolutions and linear layers of a compressed network whose weights are -a and +a in each filter
and whose input comes from a ``SignActivation``, and puts a kernel in the place of each; all else stays in PyTorch. A
kernel makes bits of real activations (sign(0) is +1), counts, scales, and adds the bias: the fp32 simulation's sums, in
whole numbers, rounded once at the end. Padding is zero, which is no sign: it adds nothing. A batch normalisation in
front of the sign is a limit for each channel, and XNOR-Net's K is taken in the same pass.

One thread takes a few images at a time; one image is never shared by several threads.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from methods.kit import coding, quant

BITS, LANES, ROWS = 32, 16, 8  # of a word; words of a vector; rows that a kernel works on at once
PART = 8  # images that go through the network together: what they leave for the next layer stays in the cache
TRIED = 8  # random images whose logits are compared with the simulation's
SAME = 1e-3  # largest difference of an image's logits, relative to the largest one if that is above 1
LOWEST, HIGHEST = -0x7F800000, 0x7F7FFFFF  # ranks of the finite numbers of float32

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


# ------------------------------------------------------------------------------------------------------------- a layer


@functools.cache
def _compiled() -> ModuleType:
    """The compiled functions: numba is imported when the first kernel runs."""
    from repro import popcount_kernel

    return popcount_kernel


def is_binary(layer: nn.Module | None) -> bool:
    """Whether a kernel can do what ``layer`` does with signs: -a and +a in each filter, zeros as padding, one group."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return False
    elif not isinstance(layer, nn.Linear):
        return False
    sizes = layer.weight.detach().flatten(1).abs()
    return layer.weight.dtype == torch.float32 and bool((sizes == sizes[:, :1]).all() and sizes.isfinite().all())


@torch.no_grad()
def limits(norm: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """(limit, falling), both (C,): norm(x) >= 0 just where x >= limit, or, where ``falling``, just where x < limit.

    Exactly, with the rounding of the normalisation itself (in eval mode): it is asked for one float32 after another.
    """
    norm = copy.deepcopy(norm).cpu().eval()
    shape = (1, -1) if isinstance(norm, nn.BatchNorm1d) else (1, -1, 1, 1)

    def number(rank: torch.Tensor) -> torch.Tensor:
        """The float32 of this rank: what bits say as a whole number, but negative ones in their order."""
        return torch.where(rank < 0, rank ^ 0x7FFFFFFF, rank).to(torch.int32).view(torch.float32)

    def positive(rank: torch.Tensor) -> torch.Tensor:
        return norm(number(rank).reshape(shape)).flatten() >= 0

    low, high = (torch.full((norm.num_features,), rank) for rank in (LOWEST, HIGHEST))
    first, last = positive(low), positive(high)
    falling = first & ~last
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        beyond = positive(middle) != falling
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    constant = torch.where(first, -torch.inf, torch.inf)
    return torch.where(first == last, constant, number(high)), falling


class Plan(NamedTuple):
    """What a compiled function gets for one size of the input, in its order: ``popcount_kernel.over_pixels``."""

    limit: np.ndarray
    affine: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    shifts: np.ndarray
    share: int
    base: np.ndarray
    block: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    grid: tuple[int, int, int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


class Popcount(nn.Module):
    """What a binary layer gives for the signs of this module's input: float32 on the CPU, without a gradient."""

    def __init__(self, layer: quant.Layer, norm: BatchNorm | None = None, scaled: bool = False) -> None:
        """``layer``: one that ``is_binary``; ``norm``: a normalisation in eval mode in front of the signs; ``scaled``:
        outputs times K, the mean magnitude of what the signs are taken of under the filter. Both modules stay as they
        are. Where a factor of ``norm`` is negative the signs, and so the weights, turn over."""
        super().__init__()
        weight, conv = layer.weight.detach().cpu(), isinstance(layer, nn.Conv2d)
        channels = weight.shape[1]
        limit, falling = limits(norm) if norm else (torch.zeros(channels), torch.zeros(channels, dtype=torch.bool))
        signs = quant.signs(weight if conv else weight[..., None, None])  # (O, C, rows, columns)
        self.signs = torch.where(falling[:, None, None], -signs, signs)
        self.limit, self.affine = limit.numpy(), _affine(norm, channels) if scaled else np.zeros((2, 0), np.float32)
        self.scale = weight.flatten(1)[:, 0].abs().numpy()
        self.bias = np.zeros_like(self.scale) if layer.bias is None else layer.bias.detach().cpu().numpy()
        steps = (layer.stride, layer.padding, layer.dilation) if conv else ((1, 1), (0, 0), (1, 1))
        self.stride, self.padding, self.dilation = map(tuple, steps)
        self.conv, self.plans = conv, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, O, rows, columns); of a linear layer (..., C) -> (..., O)."""
        compiled = _compiled()
        images = x.detach().contiguous() if self.conv else x.detach().reshape(-1, x.shape[-1], 1, 1).contiguous()
        count, _, height, width = images.shape
        plan, (down, across) = self.plans.get((height, width)) or self._planned(height, width)
        if down * across >= LANES:
            out = torch.empty(count, len(self.signs), down, across)
            compiled.over_pixels(images.numpy(), *plan, out.numpy())
            return out
        rows = torch.empty(count * down * across, len(plan.scale))
        compiled.over_filters(images.numpy(), *plan, across, rows.numpy())
        out = rows.view(count, down * across, -1)[..., : len(self.signs)].transpose(1, 2)
        return out.reshape(count, -1, down, across) if self.conv else out.reshape(*x.shape[:-1], -1)

    def _planned(self, height: int, width: int) -> tuple[Plan, tuple[int, int]]:
        """(the plan, rows and columns of the output) for images of this size; they are kept."""
        _, channels, high, wide = self.signs.shape
        (dy, dx), (top, left), along = self.dilation, self.padding, self.stride[1]
        groups, share = -(-channels // BITS), max(1, BITS // channels)
        grid = groups, along, height + 2 * top, -(-(width + 2 * left) // along)
        taps = list(itertools.product(range(high), range(wide), range(groups)))
        offsets = [((g * along + x * dx % along) * grid[2] + y * dy) * grid[3] + x * dx // along for y, x, g in taps]
        shifts = [i % share * channels for i in range(len(taps))]
        base, weights = self._base(height, width), self._words(groups, share)
        size = base.shape[1:]
        arrange = _for_pixels if size[0] * size[1] >= LANES else _for_filters
        weights, base, block, scale, bias = arrange(weights, base.reshape(len(base), -1), self.scale, self.bias)
        plan = Plan(
            self.limit, self.affine, np.ascontiguousarray(weights), np.array(offsets), np.array(shifts, np.uint32),
            share, np.ascontiguousarray(base, np.float32), block, scale, bias, grid, (high, wide), self.padding,
            self.stride, self.dilation,
        )  # fmt: skip
        self.plans[height, width] = plan, size
        return plan, size

    def _base(self, height: int, width: int) -> np.ndarray:
        """All of an output but twice its count, (O, rows, columns): the taps, and the weights that lie on padding."""
        sums = self.signs.double().sum(1, keepdim=True)
        image = torch.ones(1, 1, height, width, dtype=torch.float64)
        inside = F.conv2d(image, sums, None, self.stride, self.padding, self.dilation)[0]
        return (self.signs[0].numel() + sums.sum((1, 2, 3))[:, None, None] - inside).numpy()

    def _words(self, groups: int, share: int) -> np.ndarray:
        """The filters' bits, (O, K) words of 32: of one tap and 32 channels, or of ``share`` taps and all channels."""
        bits = (self.signs > 0).permute(0, 2, 3, 1).flatten(1, 2).numpy()  # (O, taps, C)
        filters, taps, channels = bits.shape
        if share == 1:
            bits = np.pad(bits, ((0, 0), (0, 0), (0, groups * BITS - channels))).reshape(filters, -1, BITS)
        else:
            bits = np.pad(bits, ((0, 0), (0, -taps % share), (0, 0))).reshape(filters, -1, share * channels)
            bits = np.pad(bits, ((0, 0), (0, 0), (0, BITS - share * channels)))
        return np.packbits(bits, axis=-1, bitorder="little").view("<u4")[..., 0].astype(np.uint32)


Arranged = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # weights, base, block, scale, bias


def _for_pixels(weights: np.ndarray, base: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> Arranged:
    """The order in which ``over_pixels`` reads; of blocks of 16 pixels with one and the same base, one is kept."""
    weights = np.pad(weights, ((0, -len(weights) % ROWS), (0, 0))).reshape(-1, ROWS, weights.shape[1])
    starts = np.minimum(np.arange(0, base.shape[1], LANES), base.shape[1] - LANES)
    base, block = np.unique(np.stack([base[:, p : p + LANES] for p in starts]), axis=0, return_inverse=True)
    return weights.transpose(0, 2, 1), base, block.reshape(-1), scale, bias


def _for_filters(weights: np.ndarray, base: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> Arranged:
    """The order in which ``over_filters`` reads: multiples of 16 filters, and the base of 8 rows at a time."""
    pixels, more = base.shape[1], -len(weights) % LANES
    weights, base = (np.pad(array.T, ((0, 0), (0, more))) for array in (weights, base))
    base = np.tile(base, (ROWS, 1)).reshape(pixels, ROWS, -1)
    return weights, base, np.arange(pixels), np.pad(scale, (0, more)), np.pad(bias, (0, more))


def _affine(norm: BatchNorm | None, channels: int) -> np.ndarray:
    """Factor and shift of the normalisation, (2, C)."""
    factor, shift = torch.ones(channels), torch.zeros(channels)
    if norm:
        factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * factor
    return torch.stack([factor, shift]).detach().cpu().numpy()


class Halved(nn.Module):
    """What ``nn.MaxPool2d(2)`` gives, in a tenth of its time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H // 2, W // 2)."""
        high, wide = (size - size % 2 for size in x.shape[2:])
        x = torch.maximum(x[:, :, 0:high:2], x[:, :, 1:high:2])
        return torch.maximum(x[..., 0:wide:2], x[..., 1:wide:2])


# ----------------------------------------------------------------------------------------------------------- a network


class _Tracer(fx.Tracer):
    """Signs are one step of the graph."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether the graph holds ``module`` as it is."""
        return isinstance(module, quant.SignActivation) or super().is_leaf_module(module, name)


@torch.inference_mode()
def network(net: nn.Module, example: torch.Tensor) -> nn.Module | None:
    """``net`` in eval mode on the CPU with kernels for its binary layers; it stays as it is.

    None where there is no such layer, where the data's way through the network cannot be read, where numba does not
    work (it lags behind new versions of NumPy), or where the logits of most random images of the size of ``example``
    (N, C, H, W) are others; of a few they may be: where a sum is all but zero, the simulation's rounding can turn its
    sign. Networks without a layer that declares inputs of one bit (``coding.attach_input``) are not looked at.
    """
    if not any(coding.input_bits(module) == 1 for module in net.modules()):
        return None
    twin = copy.deepcopy(net).cpu().eval()
    try:
        _compiled()
        fast = fx.GraphModule(twin, _Tracer().trace(twin))
    except Exception:  # also where control flow depends on values: then it is whatever the network's own code raises
        return None
    if not _replace(fast):
        return None
    images = torch.randn(TRIED, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    ours, theirs = fast(images).flatten(1), twin(images).flatten(1)
    gaps = (ours - theirs).abs().amax(1) / theirs.abs().amax(1).clamp(min=1)
    return fast if int((gaps <= SAME).sum()) > TRIED // 2 else None


def _replace(traced: fx.GraphModule) -> int:
    """Put kernels in the place of the binary layers behind signs, in place; how many."""
    for node in list(traced.graph.nodes):
        if isinstance(_called(traced, node), nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.args[0])
    count = 0
    for node in list(traced.graph.nodes):
        module = _called(traced, node)
        if is_binary(module) and isinstance(_called(traced, node.args[0]), quant.SignActivation):
            _put_kernel(traced, node, module)
            count += 1
        elif isinstance(module, nn.MaxPool2d) and _halves(module):
            _put(traced, node, Halved())
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return count


def _put_kernel(traced: fx.GraphModule, node: fx.Node, layer: quant.Layer) -> None:
    """A kernel in the place of ``layer``, of the sign in front of it, and of what the kernel does on its way."""
    source = node.args[0].args[0]
    times = _times_k(node, source, layer)
    while _keeps_signs(module := _called(traced, source)) and not times:
        source = source.args[0]
    norm = module if isinstance(module, BatchNorm) and module.running_mean is not None else None
    node.args = (source.args[0] if norm else source,)
    _put(traced, node, Popcount(layer, norm, times is not None))
    if times:
        times.replace_all_uses_with(node)


def _times_k(node: fx.Node, source: fx.Node, layer: quant.Layer) -> fx.Node | None:
    """The node that multiplies the outputs of ``layer`` with XNOR-Net's K of ``source``, where nothing else reads them.

    K is conv2d(source.detach().abs().mean(1, keepdim=True), a box of 1 / taps); a linear layer has no convolution. The
    number in the box is not read: another one would give other logits.
    """
    times = next(iter(node.users))
    if len(node.users) > 1 or times.target is not operator.mul or node not in times.args or len(times.args) != 2:
        return None
    chain, at = [], times.args[times.args[0] is node]
    while isinstance(at, fx.Node) and at is not source and at.args:
        chain.append(at)
        at = at.args[0]
    steps = ["detach", "abs", "mean"] + ["conv2d"] * isinstance(layer, nn.Conv2d)
    if at is not source or [getattr(n.target, "__name__", n.target) for n in reversed(chain)] != steps:
        return None
    mean = chain[-3]
    if mean.args[1:] != (1,) or mean.kwargs != {"keepdim": True}:
        return None
    if isinstance(layer, nn.Conv2d):
        box, *rest = chain[0].args[1:]
        if getattr(box, "target", None) != "new_full" or box.args[1] != (1, 1, *layer.kernel_size):
            return None
        if rest != [None, layer.stride, layer.padding, layer.dilation] or chain[0].kwargs:
            return None
    return times


def _put(traced: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """``module`` is what ``node`` calls."""
    name = f"{node.name}_fast"
    traced.add_submodule(name, module)
    node.target = name


def _called(traced: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node of the graph calls with one argument."""
    calls = isinstance(node, fx.Node) and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return traced.get_submodule(node.target) if calls else None


def _keeps_signs(module: nn.Module | None) -> bool:
    """Whether what is >= 0 in front of the module is so behind it, and nothing else."""
    return isinstance(module, nn.Hardtanh) and module.min_val < 0 <= module.max_val


def _halves(pool: nn.MaxPool2d) -> bool:
    """Whether ``Halved`` gives the same."""
    sizes = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    plain = not pool.ceil_mode and not pool.return_indices
    return plain and [(s, s) if isinstance(s, int) else tuple(s) for s in sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)]


def runtime() -> str:
    """What compiles the kernels, and its version."""
    import numba

    return f"numba {numba.__version__}"


def session(fast: nn.Module, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What ``network`` returned as a function from images to logits, on ``threads`` threads."""
    pool = ThreadPoolExecutor(threads)

    def part(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return fast(images)

    def run(images: torch.Tensor) -> torch.Tensor:
        before, parts = torch.get_num_threads(), images.split(min(PART, -(-len(images) // threads) or 1))
        torch.set_num_threads(1)
        try:
            return torch.cat(list((map if threads == 1 else pool.map)(part, parts)))
        finally:
            torch.set_num_threads(before)

    return run
