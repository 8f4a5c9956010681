"""The file of a compressed network: every tensor stored as its ``Coding`` says, and read back bit for bit.

    magic (4 bytes) | version (u8) | bytes of the header (u32) | checksum (8 bytes) | header | payload    little-endian

The header is JSON, zlib-compressed: one row for each entry of the state dict, [name, dtype, shape, storage, counts], or
[name, earlier name] where two entries are the same tensor (it is stored once). The payload is the tensors in that
order, each a whole number of bytes and nothing between them. ``storage`` is one of

* null: the bytes of the tensor. For every dtype but float32, and where nothing is smaller;
* "mask": one bit a weight, then the non-zero weights as float32;
* [declared, *fields of a Coding]. With ``sparse`` b first the relative index (S. Han et al., "Deep Compression", ICLR
  2016, Sec. 2): the zeros before each stored weight in b bits, 0 to 2**b - 1, with a filler zero behind 2**b - 1 zeros
  of a longer gap; zeros behind the last weight are not stored. Then the stored weights. "dense": in 32 or 16 bits.
  "codebook": the distinct ones as float32 (a filler zero is one of them), an index for each. "binary": the scales as
  float32, a sign bit for each weight (set: -a). "ternary": the scales, then five weights in a byte, digits 0 (zero),
  1 (a), 2 (-a) to the base 3, the first weight the lowest digit.

Numbers of b bits follow each other without gaps, lowest bit first. Huffman-coded, they become the word length of each
number from 0 to the largest that occurs (0: it does not occur), and the words of the code that constriction builds for
the weights 2**-length: an optimal code whose lengths are those lengths. A number that is alone takes no bits. The
counts are, in the order of the payload: stored weights of a relative index, values of a codebook, and for each Huffman
code the lengths, the bits of one, and the bytes of the words.

Zero is the bit pattern of +0.0 alone: -0.0 is stored like any other value, so it survives; a mask that is multiplied
leaves -0.0 behind, which costs what a weight costs (``torch.where`` does not). A tensor without a declared coding
takes the smallest of null, "mask" and a relative index with the best b. Nothing is ever rounded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from constriction import symbol as coder
from torch import nn

from baselines.errors import UserError
from methods.kit.coding import MAX_BITS, Coding, codings
from repro.record import PARTS

FORMAT_VERSION = 1
MAGIC = b"\x89NET"
PREAMBLE = struct.Struct("<4sBI8s")
LIMIT = 1 << 30  # bytes of a decoded network: a larger one is neither written nor read (decoding takes 5 times that)
HEADER_LIMIT = 1 << 22  # bytes of a decompressed header: some 40,000 tensors
AXES = 64  # of a tensor, at most: as in torch
CHUNK = 1 << 20  # numbers that are packed at a time: a multiple of 8
MASK = "mask"
NAMES = (
    "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
DTYPES = {name: getattr(torch, name) for name in NAMES}
SIGN = np.uint32(1 << 31)
TRITS = np.array([1, 3, 9, 27, 81], np.uint8)
LONGEST = 63  # bits of a Huffman word


@dataclass(frozen=True)
class Packed:
    """The file, and what each tensor takes in it.

    ``data``: the bytes of the file. ``bits``: tensor name -> bits of its payload with codebook, scales and Huffman
    table, 8 for each byte; 0 for a second name of the same tensor. What is left of the file is the header.
    ``parts``: name of a tensor that is not stored as its bytes -> {part: bits [without Huffman coding, in the file]},
    which add up to its payload in a file without Huffman coding and in this one, and "entries", the stored weights with
    filler zeros. The parts are "values" (numbers, indices, signs or digits), "positions" (a mask or the distances),
    "codebook" (or scales), "tables" (Huffman word lengths) and "padding" (what fills up bytes).
    """

    data: bytes
    bits: dict[str, int]
    parts: dict[str, dict[str, Any]]

    def stored(self) -> dict[str, Any]:
        """All bits of the file: its header, all tensors that are stored as their bytes, and ``parts`` of each other."""
        plain = sum(bits for name, bits in self.bits.items() if name not in self.parts)
        header = 8 * len(self.data) - sum(self.bits.values())
        return {"header": header, "plain": plain, "tensors": self.parts}


def pack(model: nn.Module) -> Packed:
    """The file of all parameters and buffers of ``model``, stored as declared on it; UserError as ``encode``."""
    return encode(model.state_dict(), codings(model))


def unpack(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Coding]]:
    """The state dict in a file, bit for bit, and the coding of each tensor that had one declared.

    Names that shared a tensor share it again, and its coding. UserError for what is no packed network, for another
    version, for a damaged file, and for one that says it is larger than ``LIMIT``: nothing is allocated before that.
    """
    rows, payload = _open(data)
    reader = _Reader(payload)
    state: dict[str, torch.Tensor] = {}
    declared: dict[str, Coding] = {}
    total = 0
    for row in rows:
        match row:
            case [str(name), str(earlier)] if name not in state and earlier in state:
                state[name] = state[earlier]
                if earlier in declared:
                    declared[name] = declared[earlier]
            case [str(name), str(dtype), [*shape], storage, [*counts]] if name not in state and dtype in DTYPES:
                if len(shape) > AXES or not all(type(n) is int and 0 <= n <= LIMIT for n in (*shape, *counts)):
                    raise _damaged(f"'{name}' has no valid shape or counts")
                total += _room(shape, DTYPES[dtype])
                _check_room(total)
                storage, is_declared = _storage(storage)
                reader.counts = iter(counts)
                state[name] = _read(reader, DTYPES[dtype], shape, storage)
                if is_declared:
                    declared[name] = storage
            case _:
                raise _damaged("a row of its header is not one that this version writes")
    if len(reader.data):
        raise _damaged(f"{len(reader.data)} bytes are left over")
    return state, declared


def encode(state: Mapping[str, torch.Tensor], declared: Mapping[str, Coding]) -> Packed:
    """The file of ``state``, each tensor stored as ``declared`` (name -> coding), else as small as lossless allows.

    UserError for a tensor that does not hold what is declared for it, for two names of one tensor that are declared
    differently, for a declaration without a tensor, and for what is no plain tensor.
    """
    for name in declared:
        if name not in state:
            raise UserError(f"A coding is declared for '{name}', which is not in the state dict: declare a tensor's.")
    _check_room(sum(_room(_plain(name, tensor).shape, tensor.dtype) for name, tensor in state.items()))
    owners, storages = _owners(state), {}
    for name, coding in declared.items():
        if storages.setdefault(owners[name], coding) != coding:
            raise UserError(f"'{name}' is '{owners[name]}' under another name, with another coding: declare it once.")
    rows, payload, bits, parts = [], [], {}, {}
    for name, tensor in state.items():
        if owners[name] != name:
            rows.append([name, owners[name]])
            bits[name] = 0
            continue
        writer = _Writer(name)
        storage = _write(writer, tensor, storages.get(name))
        if storage is not None:
            parts[name] = {"entries": writer.entries, **writer.parts}
        if isinstance(storage, Coding):
            c = storage
            storage = [name in storages, c.kind, c.bits, c.sparse, c.huffman, c.per_channel]
        dtype = str(tensor.dtype).removeprefix("torch.")
        rows.append([name, dtype, list(tensor.shape), storage, writer.counts])
        payload += writer.chunks
        bits[name] = 8 * sum(map(len, writer.chunks))
    return Packed(_close(rows, payload), bits, parts)


# ------------------------------------------------------------------------------------------------ around the tensors


def _close(rows: list, payload: list[bytes]) -> bytes:
    """The file of the rows of its header and the parts of its payload."""
    text = json.dumps(rows, separators=(",", ":")).encode()
    if len(text) > HEADER_LIMIT:
        raise UserError(f"A header of {len(text)} bytes is over {HEADER_LIMIT}: pack the network in parts.")
    header = zlib.compress(text, 9)
    checksum = _checksum(FORMAT_VERSION, header, *payload)
    return b"".join((PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(header), checksum), header, *payload))


def _open(data: bytes) -> tuple[list, memoryview]:
    """(rows of the header, payload) of a file with the right checksum."""
    if len(data) < PREAMBLE.size or data[: len(MAGIC)] != MAGIC:
        raise UserError(f"These {len(data)} bytes are no packed network: give a file that `pack` wrote.")
    _, version, size, checksum = PREAMBLE.unpack_from(data)
    if version != FORMAT_VERSION:
        raise UserError(f"The file has format version {version}, this code reads {FORMAT_VERSION}: use the other one.")
    body = memoryview(data)[PREAMBLE.size :]
    header, payload = body[:size], body[size:]
    if len(header) != size or checksum != _checksum(version, header, payload):
        raise _damaged("its checksum does not fit")
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(header, HEADER_LIMIT)
        if not unzip.eof or unzip.unused_data:
            raise _damaged("its header has another size")
        rows = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise _damaged(f"its header cannot be read: {error}") from None
    if not isinstance(rows, list):
        raise _damaged("its header is no list")
    return rows, payload


def _checksum(version: int, header: bytes | memoryview, *payload: bytes | memoryview) -> bytes:
    """8 bytes over everything but the magic and themselves."""
    total = hashlib.blake2b(struct.pack("<BI", version, len(header)), digest_size=8)
    for part in (header, *payload):
        total.update(part)
    return total.digest()


def _damaged(what: str) -> UserError:
    return UserError(f"The packed network is damaged or incomplete ({what}): write it again with `pack`.")


def _room(shape: list[int] | torch.Size, dtype: torch.dtype) -> int:
    """Bytes of a decoded tensor; an axis of length 0 counts as 1, so that no absurd shape is free."""
    return math.prod(max(n, 1) for n in shape) * dtype.itemsize


def _check_room(size: int) -> None:
    if size > LIMIT:
        raise UserError(f"The network takes {size} bytes when decoded, over the limit of {LIMIT}: split it.")


def _plain(name: str, tensor: object) -> torch.Tensor:
    """``tensor`` as it is; UserError where it is no tensor with values that the format knows."""
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"'{name}' is a {type(tensor).__name__}, no tensor: only tensors can be packed.")
    if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided or tensor.is_meta:
        what = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise UserError(f"'{name}' ({what}) cannot be packed: give a dense tensor of {', '.join(DTYPES)}.")
    return tensor


def _owners(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name -> the first name with the very same tensor (memory, shape, strides)."""
    first: dict[tuple, str] = {}
    owners = {}
    for name, t in state.items():
        place = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else name
        owners[name] = first.setdefault(place, name)
    return owners


def _storage(storage: object) -> tuple[Coding | str | None, bool]:
    """(storage, whether it was declared) of a header's row; UserError where there is no such storage."""
    match storage:
        case None | "mask":
            return storage, False
        case [bool(declared), str(kind), bits, sparse, bool(huffman), bool(per_channel)]:
            if {type(bits), type(sparse)} <= {int, type(None)}:
                return Coding(kind, bits, sparse, huffman, per_channel), declared
    raise _damaged("a tensor has an unknown storage")


# ------------------------------------------------------------------------------------------------------- one tensor


@dataclass
class _Writer:
    """Collects the payload and the counts of one tensor, and how many bits each of its parts takes."""

    name: str
    chunks: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    parts: dict[str, list[int]] = field(default_factory=lambda: {part: [0, 0] for part in PARTS})
    entries: int = 0

    def put(self, array: np.ndarray, part: str = "values", bits: int | None = None, uncoded: int | None = None) -> None:
        """``bits``: those that say something (None: all); ``uncoded``: without Huffman coding (None: as many)."""
        size = 8 * array.nbytes
        bits = size if bits is None else bits
        uncoded = bits if uncoded is None else uncoded
        for name, before, after in ((part, uncoded, bits), ("padding", -uncoded % 8, size - bits)):
            self.parts[name][0] += before
            self.parts[name][1] += after
        self.chunks.append(array.tobytes())

    def refuse(self, holds: str, declared: str, advice: str) -> UserError:
        return UserError(f"'{self.name}' holds {holds}, but its declared coding is {declared}: {advice}.")


@dataclass
class _Reader:
    """Takes the payload from the front and hands out the counts of one tensor; UserError where either is too short."""

    data: memoryview
    counts: Iterator[int] = field(default_factory=lambda: iter(()))

    def count(self, most: int) -> int:
        """The next count, at most ``most``."""
        number = next(self.counts, None)
        if number is None or number > most:
            raise _damaged(f"a count is {number} where {most} is the most")
        return number

    def take(self, number: int, dtype: str = "u1") -> np.ndarray:
        """The next ``number`` numbers (number,), read-only."""
        size = number * np.dtype(dtype).itemsize
        if size > len(self.data):
            raise _damaged(f"{size} bytes of a tensor are expected where {len(self.data)} are left")
        taken, self.data = self.data[:size], self.data[size:]
        return np.frombuffer(taken, dtype)


def _write(writer: _Writer, tensor: torch.Tensor, coding: Coding | None) -> Coding | str | None:
    """Write one tensor; the storage that it got."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy() if len(flat) else np.zeros(0, np.uint8)
    if tensor.dtype != torch.float32:
        if coding is not None:
            raise writer.refuse(str(tensor.dtype), f"one of float32 ({coding.kind})", "leave the declaration out")
        writer.put(raw)
        return None
    values = raw.view("<u4")
    storage = coding or _smallest(values)
    if storage is None:
        writer.put(values)
    elif storage == MASK:
        writer.entries = int(np.count_nonzero(values))
        writer.put(np.packbits(values != 0, bitorder="little"), "positions", len(values))
        writer.put(values[values != 0])
    elif storage.kind in ("binary", "ternary"):
        writer.entries = len(values)
        write = _write_binary if storage.kind == "binary" else _write_ternary
        write(writer, values.reshape(_grid(tensor.shape, storage)))
    else:
        _write_numbers(writer, values, storage)
    return storage


def _read(reader: _Reader, dtype: torch.dtype, shape: list[int], storage: Coding | str | None) -> torch.Tensor:
    """Read what ``_write`` wrote."""
    n = math.prod(shape)
    if storage is None:
        values = reader.take(n * dtype.itemsize).copy()
        if dtype == torch.bool and values.max(initial=0) > 1:
            raise _damaged("a truth value is neither 0 nor 1")
    elif dtype != torch.float32:
        raise _damaged(f"{dtype} has the storage of float32")
    elif storage == MASK:
        mask = _unpack(reader.take(_bytes(n)), 1, n).astype(bool)
        values = np.zeros(n, "<u4")
        values[mask] = reader.take(np.count_nonzero(mask), "<u4")
    elif storage.kind in ("binary", "ternary"):
        read = _read_binary if storage.kind == "binary" else _read_ternary
        values = read(reader, *_grid(shape, storage)).reshape(-1)
    else:
        values = _read_numbers(reader, n, storage)
    if next(reader.counts, None) is not None:
        raise _damaged("a tensor has too many counts")
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape) if n else torch.empty(shape, dtype=dtype)


def _smallest(values: np.ndarray) -> Coding | str | None:
    """The storage of undeclared float32 patterns (n,) that takes the fewest bytes; the plainest of equals."""
    n, nonzero = len(values), np.count_nonzero(values)
    best, storage = min((4 * n, None), (_bytes(n) + 4 * nonzero, MASK), key=lambda pair: pair[0])
    if 4 * nonzero + _bytes(nonzero) >= best:
        return storage
    gaps = _gaps(np.flatnonzero(values))
    for bits in range(1, MAX_BITS + 1):
        fillers = int((gaps >> bits).sum())
        entries = nonzero + fillers
        if (size := 4 * entries + _bytes(entries * bits)) < best:
            best, storage = size, Coding(sparse=bits)
        if not fillers:
            break
    return storage


# ------------------------------------------------------------------------------------------------ dense and codebook


def _write_numbers(writer: _Writer, values: np.ndarray, coding: Coding) -> None:
    """Patterns (n,) of float32 as numbers or indices, with their distances where the coding is sparse."""
    if coding.sparse is not None:
        zeros, values = relative_index(values, coding.sparse)
        writer.counts.append(len(values))
        _write_symbols(writer, zeros, coding.sparse, coding.huffman, "positions")
    writer.entries = len(values)
    if coding.kind == "codebook":
        _write_codebook(writer, values, coding)
    elif coding.bits == 16:
        writer.put(_half(writer, values))
    else:
        writer.put(values)


def _read_numbers(reader: _Reader, n: int, coding: Coding) -> np.ndarray:
    """The n patterns of float32 that ``_write_numbers`` wrote."""
    number, positions = n, None
    if coding.sparse is not None:
        number = reader.count(n)
        zeros = _read_symbols(reader, number, coding.sparse, coding.huffman)
        positions = np.cumsum(zeros, dtype=np.int64)
        positions += np.arange(number)
        if positions.max(initial=-1) >= n:
            raise _damaged("a position lies outside of its tensor")
    if coding.kind == "codebook":
        values = _read_codebook(reader, number, coding)
    elif coding.bits == 16:
        values = _single(reader.take(number, "<f2"))
    else:
        values = reader.take(number, "<u4").copy()
    if positions is None:
        return values
    full = np.zeros(n, "<u4")
    full[positions] = values
    return full


def relative_index(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Patterns (n,) -> (zeros before each entry, its value), both (entries,): the non-zero ones and filler zeros.

    As in Deep Compression, Sec. 2: 2**bits zeros are 2**bits - 1 before a filler, and the filler.
    """
    positions = np.flatnonzero(values)
    gaps = _gaps(positions)
    last = np.cumsum((gaps >> bits) + 1) - 1  # the entry of each non-zero weight, behind its fillers
    entries = int(last[-1]) + 1 if len(last) else 0
    zeros, stored = np.full(entries, 2**bits - 1, np.uint16), np.zeros(entries, "<u4")
    zeros[last] = gaps & (2**bits - 1)
    stored[last] = values[positions]
    return zeros, stored


def _gaps(positions: np.ndarray) -> np.ndarray:
    """Ascending positions (m,) -> zeros before each (m,)."""
    return np.diff(positions, prepend=-1) - 1


def _write_codebook(writer: _Writer, values: np.ndarray, coding: Coding) -> None:
    book = np.unique(values)
    if len(book) > 2**coding.bits:
        filler = " (one is the filler zero)" if coding.sparse and not book[0] else ""
        advice = f"leave at most {2**coding.bits} or declare more bits"
        raise writer.refuse(f"{len(book)} distinct values{filler}", f"a codebook of {coding.bits} bits", advice)
    writer.counts.append(len(book))
    writer.put(book, "codebook")
    indices = np.searchsorted(book, values).astype(np.uint16)
    _write_symbols(writer, indices, coding.bits, coding.huffman, "values")


def _read_codebook(reader: _Reader, number: int, coding: Coding) -> np.ndarray:
    book = reader.take(reader.count(2**coding.bits), "<u4")
    indices = _read_symbols(reader, number, coding.bits, coding.huffman)
    if indices.max(initial=0) >= len(book) and number:
        raise _damaged("an index lies outside of its codebook")
    return book[indices]


def _half(writer: _Writer, values: np.ndarray) -> np.ndarray:
    """Patterns (n,) of float32 as float16 (n,); UserError where one of them is not exact."""
    with np.errstate(all="ignore"):
        half = values.view("<f4").astype("<f2")
    inexact = np.flatnonzero(_single(half) != values)
    if len(inexact):
        holds = f"{len(inexact)} values that are not fp16 (such as {values[inexact[0]].view('<f4'):.6g})"
        raise writer.refuse(holds, "numbers of 16 bits", "round them with .half().float() or declare 32 bits")
    return half


def _single(half: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return half.astype("<f4").view("<u4")


# -------------------------------------------------------------------------------------------------- binary and ternary


def _grid(shape: list[int] | torch.Size, coding: Coding) -> tuple[int, int]:
    """(scales of a tensor, weights of each)."""
    n = math.prod(shape)
    slices = shape[0] if coding.per_channel and len(shape) else 1
    return (slices, n // slices) if n else (0, 1)


def _write_binary(writer: _Writer, values: np.ndarray) -> None:
    """Patterns (slices, n)."""
    sizes = values & ~SIGN
    scales = sizes[:, 0]
    _check_sizes(writer, sizes, sizes == scales[:, None], "binary (-a and a)")
    writer.put(scales, "codebook")
    writer.put(np.packbits(values >= SIGN, bitorder="little"), bits=values.size)


def _read_binary(reader: _Reader, slices: int, n: int) -> np.ndarray:
    """Patterns (slices, n)."""
    scales = reader.take(slices, "<u4")
    negative = _unpack(reader.take(_bytes(slices * n)), 1, slices * n).reshape(slices, n)
    return scales[:, None] | negative * SIGN


def _write_ternary(writer: _Writer, values: np.ndarray) -> None:
    """Patterns (slices, n)."""
    sizes = values & ~SIGN
    scales = sizes.max(1)
    _check_sizes(writer, sizes, (values == 0) | (sizes == scales[:, None]), "ternary (-a, 0 and a; 0 is +0.0)")
    writer.put(scales, "codebook")
    digits = np.where(values == 0, 0, np.where(values >= SIGN, 2, 1)).astype(np.uint8).reshape(-1)
    writer.put(np.pad(digits, (0, -len(digits) % 5)).reshape(-1, 5) @ TRITS)


def _read_ternary(reader: _Reader, slices: int, n: int) -> np.ndarray:
    """Patterns (slices, n)."""
    scales = reader.take(slices, "<u4")[:, None]
    groups = reader.take(-(-slices * n // 5))
    if groups.max(initial=0) >= 3**5:
        raise _damaged("five ternary weights are no number below 243")
    digits = (groups[:, None] // TRITS % 3).reshape(-1)[: slices * n].reshape(slices, n)
    return np.where(digits == 0, np.uint32(0), np.where(digits == 1, scales, scales | SIGN))


def _check_sizes(writer: _Writer, sizes: np.ndarray, fits: np.ndarray, declared: str) -> None:
    """UserError where a slice holds another magnitude than its scale."""
    wrong = np.flatnonzero(~fits.all(1))
    if len(wrong):
        found = np.unique(sizes[wrong[0]]).view("<f4")
        shown = ", ".join(f"{size:.6g}" for size in found[:4]) + (", ..." if len(found) > 4 else "")
        holds = f"the magnitudes {shown} in slice {wrong[0]} of {len(sizes)}"
        raise writer.refuse(holds, declared, "leave one magnitude a slice or drop the declaration")


# ---------------------------------------------------------------------------------------------- bits and Huffman codes


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers (n,) below 2**bits -> bytes, without gaps, lowest bit first."""
    parts = [np.zeros(0, np.uint8)]
    for start in range(0, len(numbers), CHUNK):
        planes = numbers[start : start + CHUNK, None] >> np.arange(bits, dtype=numbers.dtype) & 1
        parts.append(np.packbits(planes.astype(np.uint8), bitorder="little"))
    return np.concatenate(parts)


def _unpack(data: np.ndarray, bits: int, n: int) -> np.ndarray:
    """The n numbers of ``bits`` (at most 16) bits that ``_pack`` made bytes of; uint16 (n,)."""
    numbers = np.zeros(n, np.uint16)
    for start in range(0, n if bits else 0, CHUNK):
        part = numbers[start : start + CHUNK]
        planes = np.unpackbits(data[start * bits // 8 :], count=len(part) * bits, bitorder="little").reshape(-1, bits)
        for bit in range(bits):
            part |= planes[:, bit].astype(np.uint16) << bit
    return numbers


def _write_symbols(writer: _Writer, symbols: np.ndarray, bits: int, huffman_coded: bool, part: str) -> None:
    """uint16 (n,) below 2**bits, as they are or Huffman-coded with the table in front; they are ``part``."""
    uncoded = len(symbols) * bits
    if not huffman_coded:
        writer.put(_pack(symbols, bits), part, uncoded)
        return
    counts = np.bincount(symbols)
    lengths = code_lengths(counts)
    width = int(lengths.max(initial=0)).bit_length()
    table, stream = _pack(lengths, width), _code(symbols, lengths)
    writer.counts += [len(lengths), width, len(stream)]
    writer.put(table, "tables", len(lengths) * width, uncoded=0)
    writer.put(stream, part, int(counts @ lengths) if len(stream) else 0, uncoded)


def _read_symbols(reader: _Reader, n: int, bits: int, huffman_coded: bool) -> np.ndarray:
    if not huffman_coded:
        return _unpack(reader.take(_bytes(n * bits)), bits, n)
    size, width = reader.count(2**bits), reader.count(LONGEST.bit_length())
    stream_size = reader.count(len(reader.data))
    lengths = _unpack(reader.take(_bytes(size * width)), width, size)
    return _decode(reader.take(stream_size), lengths, n)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Whole counts (k,) >= 0 -> bits of each symbol's word in a Huffman code, uint8 (k,); 0 for a count of 0.

    A symbol that is alone gets 1, although its word is empty. ValueError for counts that are none.
    """
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer) or counts.min(initial=0) < 0:
        raise ValueError(f"Counts of symbols are whole numbers from 0, not {counts}.")
    lengths = (counts > 0).astype(np.uint8)
    used = np.flatnonzero(counts)
    if len(used) > 1:
        tree = coder.huffman.EncoderHuffmanTree(counts[used].astype(np.float64))
        lengths[used] = [_word_length(symbol, tree) for symbol in range(len(used))]
    return lengths


def _word_length(symbol: int, tree: coder.huffman.EncoderHuffmanTree) -> int:
    encoder = coder.QueueEncoder()
    encoder.encode_symbol(symbol, tree)
    return encoder.get_compressed_and_bitrate()[1]


def _code(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Symbols (n,) as the words of the code with ``lengths`` (k,): bytes, lowest bit first."""
    used = np.flatnonzero(lengths)
    if len(used) < 2:
        return np.zeros(0, np.uint8)
    tree, encoder = coder.huffman.EncoderHuffmanTree(_weights(lengths[used])), coder.QueueEncoder()
    rank = np.cumsum(lengths > 0) - 1  # the tree has only the symbols that occur
    for start in range(0, len(symbols), CHUNK):
        part = rank[symbols[start : start + CHUNK]].tolist()
        deque(map(encoder.encode_symbol, part, itertools.repeat(tree)), maxlen=0)
    words, bits = encoder.get_compressed_and_bitrate()
    return words.astype("<u4").view(np.uint8)[: _bytes(bits)]


def _decode(stream: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
    """The n symbols of ``_code``; UserError where lengths and stream are not of one code."""
    used = np.flatnonzero(lengths)
    if len(used) < 2:
        if len(stream) or (n and not len(used)):
            raise _damaged("a Huffman code has no words")
        return np.full(n, used[0] if n else 0, np.uint16)
    complete = sum(1 << (LONGEST - int(length)) for length in lengths[used]) == 1 << LONGEST
    if not complete or n > 8 * len(stream):
        raise _damaged("the word lengths of a Huffman code do not fit")
    tree = coder.huffman.DecoderHuffmanTree(_weights(lengths[used]))
    decoder = coder.QueueDecoder(np.pad(stream, (0, -len(stream) % 4)).view("<u4").astype(np.uint32))
    try:
        ranks = np.fromiter(map(decoder.decode_symbol, itertools.repeat(tree, n)), np.uint16, n)
    except ValueError:
        raise _damaged("a Huffman code runs out of bits") from None
    symbols = used[ranks].astype(np.uint16)
    if _bytes(int(lengths[symbols].sum(dtype=np.int64))) != len(stream):
        raise _damaged("a Huffman code takes fewer or more bits")
    return symbols


def _weights(lengths: np.ndarray) -> np.ndarray:
    """Weights whose only Huffman code has these word lengths."""
    return 2.0 ** -lengths.astype(np.float64)
