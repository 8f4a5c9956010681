"""The compiled part of ``popcount``: signs become bits, and an XOR and a count of ones is their product.

Only ``popcount`` imports this file, and only when it needs it: numba takes a second to import, and the first call
compiles for a few seconds. What it compiled is kept beside this file, or in the user's cache where that cannot be.

Bit c of a place's word is 1 where its channel c is at least the channel's limit; 32 channels make a group, with a word
for each place. A word of the product holds one tap of the kernel and one group, or, of 16 channels and fewer, several
taps. Unused bits are 0 on both sides. Of n values and weights of which ``count`` have different signs

    sum of x * w = n - 2 * count

and where a tap lies on padding, whose bits are 0 as those of -1, its weights are given back: ``base`` is n and these
weights, so that an output is (base - 2 * count) * scale + bias, times K where the layer has one.

The inner loops are written in LLVM's vectors of 16 words. A tile is 8 rows of words times 16 columns. Where the CPU
counts the ones of 512 bits in one step (AVX-512 with VPOPCNTDQ), all its sums stay in registers. Elsewhere a count
takes several steps: it is one of bytes, and of more than 31 words carry-save adders first make one vector of four, row
by row (Harley and Seal's way: W. Mula, N. Kurz, D. Lemire, Faster Population Counts Using AVX2 Instructions, Computer
Journal 2018, https://arxiv.org/abs/1611.07612).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from repro.popcount import BITS, LANES, ROWS

WORD, FLOAT = ir.IntType(32), ir.FloatType()
WORDS, FLOATS = ir.VectorType(WORD, LANES), ir.VectorType(FLOAT, LANES)

BYTES = ir.VectorType(ir.IntType(8), LANES * BITS // 8)
IN_ONE_STEP = bool(binding.get_host_cpu_features().get("avx512vpopcntdq"))
HELD = 31  # counts of up to 8 that a byte can hold

Value, Builder = ir.Value, ir.IRBuilder
Words = Callable[[Value, Sequence[int]], list[Value]]  # at a place of the depth, those of each of some rows


# ------------------------------------------------------------------------------------------------------ in LLVM's terms


class _Array:
    """The elements of a contiguous array as LLVM sees them."""

    def __init__(self, context: Any, builder: Builder, kind: types.Array, value: Value) -> None:
        self.builder, self.data = builder, context.make_array(kind)(context, builder, value).data

    def _at(self, index: Value, kind: ir.Type | None) -> Value:
        place = self.builder.gep(self.data, [index])
        return place if kind is None else self.builder.bitcast(place, kind.as_pointer())

    def load(self, index: Value, kind: ir.Type | None = None) -> Value:
        """One element, or a vector of type ``kind`` from there on."""
        return self.builder.load(self._at(index, kind), align=4)

    def splat(self, index: Value, kind: ir.VectorType) -> Value:
        """One element in all lanes."""
        one = self.builder.insert_element(kind(ir.Undefined), self.load(index), WORD(0))
        return self.builder.shuffle_vector(one, kind(ir.Undefined), ir.VectorType(WORD, kind.count)(None))

    def store(self, index: Value, vector: Value) -> None:
        """A vector from there on."""
        self.builder.store(vector, self._at(index, vector.type), align=4)


def _arguments(context: Any, builder: Builder, signature: Any, values: Any) -> list[Any]:
    """The arguments of an intrinsic: arrays as ``_Array``, numbers as they are."""
    pairs = zip(signature.args, values, strict=True)
    return [_Array(context, builder, k, v) if isinstance(k, types.Array) else v for k, v in pairs]


def _ones(builder: Builder, vector: Value) -> Value:
    """How many ones each lane of a vector of integers has."""
    kind = vector.type
    name = f"llvm.ctpop.v{kind.count}i{kind.element.width}"
    count = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
    return builder.call(count, [vector])


def _widened(builder: Builder, vector: Value) -> Value:
    """The sum of the four bytes of each word."""
    for shift, mask in ((8, 0x00FF00FF), (16, 0xFFFF)):
        vector = builder.bitcast(vector, WORDS)
        upper = builder.lshr(vector, WORDS([shift] * LANES))
        vector = builder.add(*(builder.and_(half, WORDS([mask] * LANES)) for half in (vector, upper)))
    return vector


def _count(builder: Builder, depth: Value, rows: Sequence[int], words: Words, kind: ir.VectorType) -> list[Value]:
    """The ones of the words at the places 0 to ``depth`` - 1, one after another: in each word or byte of each row."""
    sums = [cgutils.alloca_once_value(builder, kind(None)) for _ in rows]
    with cgutils.for_range(builder, depth) as loop:
        for word, total in zip(words(loop.index, rows), sums, strict=True):
            ones = _ones(builder, builder.bitcast(word, kind))
            builder.store(builder.add(builder.load(total), ones), total)
    return [builder.load(total) for total in sums]


def _add_and_count(builder: Builder, depth: Value, row: int, words: Words) -> Value:
    """The ones of one row's words at the places 0 to ``depth`` - 1: four are added up before ones are counted."""
    number, blocks = depth.type, builder.udiv(depth, depth.type(4))
    ones, twos, total = (cgutils.alloca_once_value(builder, WORDS(None)) for _ in range(3))

    def add(x: Value, y: Value, sums: Value) -> Value:
        """``sums`` becomes the sum of each bit of three vectors; the carries."""
        z, half = builder.load(sums), builder.xor(x, y)
        builder.store(builder.xor(half, z), sums)
        return builder.or_(builder.and_(x, y), builder.and_(half, z))

    def fours(block: Value, rows: Sequence[int]) -> list[Value]:
        at = builder.mul(block, number(4))
        a, b, c, d = (words(builder.add(at, number(k)), rows)[0] for k in range(4))
        return [add(add(a, b, ones), add(c, d, ones), twos)]

    def part(first: Value, count: Value, words: Words, factor: int) -> None:
        """``factor`` times the ones of so many words, fewer than 32, go to the total."""
        (found,) = _count(builder, count, [row], lambda k, rows: words(builder.add(first, k), rows), BYTES)
        found = builder.mul(_widened(builder, found), WORDS([factor] * LANES))
        builder.store(builder.add(builder.load(total), found), total)

    with cgutils.for_range(builder, builder.udiv(builder.add(blocks, number(HELD - 1)), number(HELD))) as loop:
        first = builder.mul(loop.index, number(HELD))
        left = builder.sub(blocks, first)
        part(first, builder.select(builder.icmp_unsigned("<", left, number(HELD)), left, number(HELD)), fours, 4)
    part(builder.mul(blocks, number(4)), builder.urem(depth, number(4)), words, 1)
    twice, once = (_ones(builder, builder.bitcast(builder.load(sums), BYTES)) for sums in (twos, ones))
    rest = _widened(builder, builder.add(builder.add(twice, twice), once))
    return builder.add(builder.load(total), rest)


def _sums(builder: Builder, depth: Value, rows: Sequence[int], words: Words) -> list[Value]:
    """The ones of the words at the places 0 to ``depth`` - 1 of each row, in the way that is fastest here."""
    if IN_ONE_STEP:
        return _count(builder, depth, rows, words, WORDS)
    sums = [cgutils.alloca_once_value(builder, WORDS(None)) for _ in rows]
    with builder.if_else(builder.icmp_unsigned("<=", depth, depth.type(HELD))) as (few, many):
        with few:
            for first in range(0, len(rows), 4):
                found = _count(builder, depth, rows[first : first + 4], words, BYTES)
                for total, counts in zip(sums[first:], found, strict=False):
                    builder.store(_widened(builder, counts), total)
        with many:
            for total, row in zip(sums, rows, strict=True):
                builder.store(_add_and_count(builder, depth, row, words), total)
    return [builder.load(total) for total in sums]


def _tile(rows: int, filters: str) -> Any:
    """``rows`` rows of ``left`` times 16 columns of ``right``, as outputs; ``filters``: the side on which they stand.

    Of ``left``, (., K, 8) words, from ``first`` on; ``depth`` is K. ``right`` has rows ``step`` apart, from ``start``
    on; ``base`` and ``out`` have rows ``known_step`` and ``out_step`` apart, from ``known`` and ``at`` on. ``scale``
    and ``bias`` from ``filter_`` on, ``times`` from ``pixel`` on.
    """

    @intrinsic
    def tile(
        typing: Any, left: Any, first: Any, depth: Any, right: Any, start: Any, step: Any, base: Any, known: Any,
        known_step: Any, scale: Any, bias: Any, filter_: Any, times: Any, pixel: Any, out: Any, at: Any, out_step: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
            left, first, depth, right, start, step, *rest = _arguments(context, builder, signature, values)
            base, known, known_step, scale, bias, filter_, times, pixel, out, at, out_step = rest

            def words(place: Value, chosen: Sequence[int]) -> list[Value]:
                """The bits in which each of these rows and the columns differ."""
                column = right.load(builder.add(start, builder.mul(place, step)), WORDS)
                begin = builder.add(first, builder.mul(place, first.type(ROWS)))
                return [builder.xor(left.splat(builder.add(begin, first.type(row)), WORDS), column) for row in chosen]

            sums = _sums(builder, depth, range(rows), words)
            for row, total in enumerate(sums):
                number = known.type(row)
                own = [
                    array.splat(builder.add(index, number), FLOATS) if varies else array.load(index, FLOATS)
                    for array, index, varies in (
                        (scale, filter_, filters == "left"), (bias, filter_, filters == "left"),
                        (times, pixel, filters == "right"),
                    )
                ]  # fmt: skip
                twice = builder.uitofp(builder.shl(total, WORDS([1] * LANES)), FLOATS)
                value = builder.fsub(base.load(builder.add(known, builder.mul(known_step, number)), FLOATS), twice)
                value = builder.fmul(builder.fadd(builder.fmul(value, own[0]), own[1]), own[2])
                out.store(builder.add(at, builder.mul(out_step, number)), value)
            return context.get_dummy_value()

        given = (left, first, depth, right, start, step, base, known, known_step, scale, bias, filter_, times, pixel)
        return types.void(*given, out, at, out_step), code

    return tile


def _packer(lanes: int) -> Any:
    """The words of ``lanes`` neighbours in ``count`` channels, ``step`` apart, whose limits begin at ``first``."""
    parts, width = max(1, lanes // LANES), min(lanes, LANES)
    ints, floats = ir.VectorType(WORD, width), ir.VectorType(FLOAT, width)

    @intrinsic
    def pack(
        typing: Any, x: Any, start: Any, step: Any, limit: Any, first: Any, count: Any, words: Any, at: Any
    ) -> Any:
        def code(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
            x, start, step, limit, first, count, words, at = _arguments(context, builder, signature, values)
            found = [cgutils.alloca_once_value(builder, ints(None)) for _ in range(parts)]
            bit = cgutils.alloca_once_value(builder, ints([1] * width))
            with cgutils.for_range(builder, count) as loop:
                place, now = builder.add(start, builder.mul(loop.index, step)), builder.load(bit)
                least = limit.splat(builder.add(first, loop.index), floats)
                for part, word in enumerate(found):
                    value = x.load(builder.add(place, place.type(part * width)), floats)
                    own = builder.select(builder.fcmp_ordered(">=", value, least), now, ints(None))
                    builder.store(builder.or_(builder.load(word), own), word)
                builder.store(builder.add(now, now), bit)
            for part, word in enumerate(found):
                words.store(builder.add(at, at.type(part * width)), builder.load(word))
            return context.get_dummy_value()

        return types.void(x, start, step, limit, first, count, words, at), code

    return pack


@intrinsic
def _row(typing: Any, x: Any, start: Any, limit: Any, first: Any) -> Any:
    """The word of one place whose 32 channels are neighbours."""

    def code(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        x, start, limit, first = _arguments(context, builder, signature, values)
        floats = ir.VectorType(FLOAT, BITS)
        return builder.bitcast(builder.fcmp_ordered(">=", x.load(start, floats), limit.load(first, floats)), WORD)

    return types.uint32(x, start, limit, first), code


@intrinsic
def _merge(
    typing: Any, source: Any, base: Any, offsets: Any, shifts: Any, first: Any, last: Any, words: Any, at: Any
) -> Any:
    """16 neighbours of ``source`` at each of the offsets ``first`` to ``last``, shifted and put together."""

    def code(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        source, base, offsets, shifts, first, last, words, at = _arguments(context, builder, signature, values)
        found = cgutils.alloca_once_value(builder, WORDS(None))
        with cgutils.for_range(builder, last, start=first) as loop:
            part = source.load(builder.add(base, offsets.load(loop.index)), WORDS)
            moved = builder.shl(part, shifts.splat(loop.index, WORDS))
            builder.store(builder.or_(builder.load(found), moved), found)
        words.store(at, builder.load(found))
        return context.get_dummy_value()

    return types.void(source, base, offsets, shifts, first, last, words, at), code


_rows_of_filters, _row_of_filters = _tile(ROWS, "left"), _tile(1, "left")
_rows_of_pixels, _row_of_pixels = _tile(ROWS, "right"), _tile(1, "right")
_pack64, _pack16, _pack4, _pack1 = map(_packer, (64, 16, 4, 1))


# --------------------------------------------------------------------------------------------------- compiled functions


@njit(cache=True, nogil=True)
def _pack(x: np.ndarray, image: int, limit: np.ndarray, flat: np.ndarray) -> None:
    """Signs of one image of ``x`` (N, C, H, W) into ``flat`` (groups of 32 channels, H * W)."""
    channels, places = x.shape[1], x.shape[2] * x.shape[3]
    for group in range(flat.shape[0]):
        first = (image * channels + BITS * group) * places
        count, to, at = min(BITS, channels - BITS * group), group * places, 0
        if places == 1 and count == BITS:
            flat[group, 0] = _row(x, first, limit, group * BITS)
            continue
        while at + 64 <= places:
            _pack64(x, first + at, places, limit, group * BITS, count, flat, to + at)
            at += 64
        while at + 16 <= places:
            _pack16(x, first + at, places, limit, group * BITS, count, flat, to + at)
            at += 16
        while at + 4 <= places:
            _pack4(x, first + at, places, limit, group * BITS, count, flat, to + at)
            at += 4
        while at < places:
            _pack1(x, first + at, places, limit, group * BITS, count, flat, to + at)
            at += 1


@njit(cache=True, nogil=True)
def _spread(flat: np.ndarray, width: int, padding: tuple, along: int, padded: np.ndarray) -> None:
    """``flat`` (groups, H * W) into ``padded`` (groups, along, H + padding, columns): column c is c // along of its
    phase c % along, so that a stride of ``along`` reads neighbours."""
    top, left = padding
    for group in range(flat.shape[0]):
        for y in range(flat.shape[1] // width):
            for phase in range(along):
                begin = (phase - left) % along
                to = (begin + left) // along
                for i in range((width - begin + along - 1) // along):
                    padded[group, phase, y + top, to + i] = flat[group, y * width + begin + i * along]


@njit(cache=True, nogil=True)
def _magnitudes(
    x: np.ndarray, image: int, affine: np.ndarray, kernel: tuple, padding: tuple, stride: tuple, dilation: tuple,
    across: int, times: np.ndarray,
) -> None:  # fmt: skip
    """K of every pixel: the mean of |x * factor + shift| over channels and taps, padding counted as zeros."""
    channels, height, width = x.shape[1:]
    places = x.reshape(x.shape[0], channels, height * width)
    sums = np.zeros(height * width, np.float32)
    for channel in range(channels):
        factor, shift, plane = affine[0, channel], affine[1, channel], places[image, channel]
        for p in range(sums.size):
            sums[p] += abs(plane[p] * factor + shift)
    padded = np.zeros((height + 2 * padding[0], width + 2 * padding[1]), np.float32)
    padded[padding[0] : padding[0] + height, padding[1] : padding[1] + width] = sums.reshape(height, width)
    share = np.float32(1 / (channels * kernel[0] * kernel[1]))
    for row in range(times.size // across):
        line = times[row * across : (row + 1) * across]
        line[:] = 0
        for i in range(kernel[0]):
            source = padded[row * stride[0] + i * dilation[0]]
            for j in range(kernel[1]):
                for column in range(across):
                    line[column] += source[column * stride[1] + j * dilation[1]]
        line *= share


@njit(cache=True, nogil=True)
def over_pixels(
    x: np.ndarray, limit: np.ndarray, affine: np.ndarray, weights: np.ndarray, offsets: np.ndarray, shifts: np.ndarray,
    share: int, base: np.ndarray, block: np.ndarray, scale: np.ndarray, bias: np.ndarray, grid: tuple, kernel: tuple,
    padding: tuple, stride: tuple, dilation: tuple, out: np.ndarray,
) -> None:  # fmt: skip
    """The layer on ``x`` (N, C, H, W) with vectors of 16 pixels, for 16 pixels and more: ``out`` (N, O, ., .).

    ``limit`` (C,); ``affine``: factor and shift of the normalisation (2, C) where K is wanted, else (2, 0).
    ``weights``: words (O / 8, K, 8). ``offsets``, ``shifts``: where each tap of each group lies in the padded planes of
    the shape ``grid`` (groups, phases, rows, columns), and in its word, which holds ``share`` of them. ``base``
    (different blocks, O, 16), ``block``: which of them each 16 pixels have; the last 16 may overlap those before.
    ``scale``, ``bias``: (O,).
    """
    depth, (_, filters, down, across) = weights.shape[1], out.shape
    pixels, columns, step = down * across, grid[3], down * across + LANES
    flat = np.empty((grid[0], x.shape[2] * x.shape[3]), np.uint32)
    memory = np.zeros(grid[0] * grid[1] * grid[2] * columns + LANES, np.uint32)
    padded = memory[: memory.size - LANES].reshape(grid)
    lines = np.empty((depth, step), np.uint32)
    times = np.ones(pixels, np.float32)
    for image in range(x.shape[0]):
        _pack(x, image, limit, flat)
        _spread(flat, x.shape[3], padding, stride[1], padded)
        if affine.size:
            _magnitudes(x, image, affine, kernel, padding, stride, dilation, across, times)
        for k in range(depth):
            first, last = k * share, min((k + 1) * share, offsets.size)
            for y in range(down):
                for column in range(0, across, LANES):
                    at = k * step + y * across + column
                    _merge(memory, y * stride[0] * columns + column, offsets, shifts, first, last, lines, at)
        done = filters - filters % ROWS
        for b in range(block.size):
            p, known = min(b * LANES, pixels - LANES), block[b] * filters * LANES
            at = image * filters * pixels + p
            for f in range(0, done, ROWS):
                _rows_of_filters(
                    weights, f * depth, depth, lines, p, step, base, known + f * LANES, LANES, scale, bias, f, times, p,
                    out, at + f * pixels, pixels,
                )  # fmt: skip
            for f in range(done, filters):
                _row_of_filters(
                    weights, done * depth + f - done, depth, lines, p, step, base, known + f * LANES, LANES, scale,
                    bias, f, times, p, out, at + f * pixels, pixels,
                )  # fmt: skip


@njit(cache=True, nogil=True)
def over_filters(
    x: np.ndarray, limit: np.ndarray, affine: np.ndarray, weights: np.ndarray, offsets: np.ndarray, shifts: np.ndarray,
    share: int, base: np.ndarray, block: np.ndarray, scale: np.ndarray, bias: np.ndarray, grid: tuple, kernel: tuple,
    padding: tuple, stride: tuple, dilation: tuple, across: int, out: np.ndarray,
) -> None:  # fmt: skip
    """The layer on ``x`` (N, C, H, W) with vectors of 16 filters, for few pixels P, and for linear layers, with one.

    As ``over_pixels``, but for O' filters, a multiple of 16: ``weights`` (K, O'), ``base`` (P, 8, O'): that of 8 rows
    of ``out`` (N * P, O') at a time; ``across``: the pixels of a row.
    """
    depth, filters = weights.shape
    pixels, columns = block.size, grid[3]
    flat = np.empty((grid[0], x.shape[2] * x.shape[3]), np.uint32)
    memory = np.zeros(grid[0] * grid[1] * grid[2] * columns, np.uint32)
    padded = memory.reshape(grid)
    count = out.shape[0]
    times = np.ones(count, np.float32)
    rows = np.empty(((count + ROWS - 1) // ROWS, depth, ROWS), np.uint32)
    for image in range(x.shape[0]):
        _pack(x, image, limit, flat)
        _spread(flat, x.shape[3], padding, stride[1], padded)
        if affine.size:
            _magnitudes(x, image, affine, kernel, padding, stride, dilation, across, times[image * pixels :][:pixels])
        for p in range(pixels):
            start = p // across * stride[0] * columns + p % across
            for k in range(depth):
                word = np.uint32(0)
                for tap in range(k * share, min((k + 1) * share, offsets.size)):
                    word |= np.uint32(memory[start + offsets[tap]] << shifts[tap])
                row = image * pixels + p
                rows[row // ROWS, k, row % ROWS] = word
    done = count - count % ROWS
    for f in range(0, filters, LANES):
        for r in range(0, done, ROWS):
            known = block[r // ROWS % pixels] * ROWS * filters + f
            _rows_of_pixels(
                rows, r * depth, depth, weights, f, filters, base, known, filters, scale, bias, f, times, r, out,
                r * filters + f, filters,
            )  # fmt: skip
        for r in range(done, count):
            known = (block[r // ROWS % pixels] * ROWS + r % ROWS) * filters + f
            _row_of_pixels(
                rows, done * depth + r - done, depth, weights, f, filters, base, known, filters, scale, bias, f, times,
                r, out, r * filters + f, filters,
            )  # fmt: skip
