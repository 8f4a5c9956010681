"""The packed file: bit-exact for every coding, of the size that the codings say, and safe against any other file."""

import base64
import collections
import dataclasses
import hashlib
import heapq
import json
import math
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracle import mutant
from safetensors.torch import save as safetensors_bytes
from torch import nn

from baselines.errors import UserError
from methods.kit.coding import Coding, attach
from repro import codec
from repro.codec import encode, pack, unpack
from repro.record import PARTS, stored_bits

OVERHEAD = 17  # bytes in front of the header
SPECIAL = (0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x00000001, 0x3F800000)
EVERY_CODING = {
    "fp32": Coding(bits=32),
    "fp16": Coding(bits=16),
    "sparse": Coding(sparse=3),
    "sparse_fp16_huffman": Coding(bits=16, sparse=2, huffman=True),
    "codebook": Coding("codebook", bits=3),
    "codebook_huffman": Coding("codebook", bits=4, huffman=True),
    "deep_compression": Coding("codebook", bits=4, sparse=2, huffman=True),
    "binary": Coding("binary"),
    "binary_per_tensor": Coding("binary", per_channel=False),
    "ternary": Coding("ternary"),
    "ternary_per_tensor": Coding("ternary", per_channel=False),
}
quick = settings(max_examples=100, deadline=None, derandomize=True)


def patterns(tensor):
    """The bytes of a tensor's values, in order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if len(flat) else flat.byte()


def same(ours, theirs):
    """Whether two tensors are equal in dtype, shape and every bit."""
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(patterns(ours), patterns(theirs))


def from_patterns(numbers, shape):
    """A float32 tensor of bit patterns."""
    return torch.from_numpy(np.array(numbers, np.uint32).view(np.float32)).reshape(shape)


def read_file(data):
    """(rows of the header, payload), by the documented layout alone."""
    magic, version, size = struct.unpack_from("<4sBI", data)
    assert (magic, version) == (b"\x89NET", 1)
    return json.loads(zlib.decompress(data[OVERHEAD : OVERHEAD + size])), data[OVERHEAD + size :]


def write_file(rows, payload=b""):
    """A file with a right checksum; ``rows`` may be the bytes of a compressed header."""
    header = rows if isinstance(rows, bytes) else zlib.compress(json.dumps(rows).encode())
    front = struct.pack("<BI", 1, len(header))
    checksum = hashlib.blake2b(front + header + payload, digest_size=8).digest()
    return b"\x89NET" + front + checksum + header + payload


def every_coding():
    """(state, declared): small tensors without random numbers, one for each coding and each lossless storage."""
    wave = torch.tensor([(37 * i * i) % 23 - 11 for i in range(48)], dtype=torch.float32).reshape(4, 3, 2, 2) / 8
    sparse = torch.where(wave.abs() > 1, wave, 0.0)
    signs = torch.where(wave > 0, 1.0, -1.0) * torch.tensor([0.5, 0.25, 3.0, 1.0]).reshape(4, 1, 1, 1)
    whole = torch.where(wave > 0, 0.75, -0.75)
    state = {
        "fp32": from_patterns(SPECIAL, (3, 3)),
        "fp16": wave,
        "sparse": sparse,
        "sparse_fp16_huffman": sparse,
        "codebook": (wave * 2).round(),
        "codebook_huffman": wave.trunc() * 2,
        "deep_compression": sparse.trunc(),
        "binary": signs,
        "binary_per_tensor": whole,
        "ternary": torch.where(wave.abs() > 0.7, signs, 0.0),
        "ternary_per_tensor": torch.where(wave.abs() > 0.7, whole, 0.0),
        "dense": wave + 9,
        "masked": torch.where(wave > -1, wave + 9, 0.0),
        "relative": nn.functional.pad(wave.flatten()[:3], (60, 7)),
        "zeros": torch.zeros(5, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0, 2),
        "steps": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "wide": torch.tensor([math.pi, -0.0], dtype=torch.float64),
        "brief": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    state = {name: tensor.clone() for name, tensor in state.items()}
    state["tied"] = state["codebook"]
    return state, EVERY_CODING


# -------------------------------------------------------------------------------------------------------- bit for bit


def test_every_coding_comes_back_bit_for_bit():
    state, declared = every_coding()
    packed = encode(state, declared)
    back, codings = unpack(packed.data)
    assert list(back) == list(state)
    assert all(same(back[name], state[name]) for name in state)
    assert codings == {**declared, "tied": declared["codebook"]}
    rows, _ = read_file(packed.data)
    storages = {row[0]: row[3] for row in rows if len(row) == 5}
    assert (storages["dense"], storages["masked"], storages["relative"][4:]) == (None, "mask", [False, True])


SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
VALUES = st.one_of(st.just(0), st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1))


@given(arrays.arrays(np.uint32, SHAPES, elements=VALUES, fill=st.just(0)))
@quick
def test_undeclared_floats_are_bit_exact_and_take_the_fewest_bytes(array):
    tensor = from_patterns(array.reshape(-1), array.shape)
    packed = encode({"x": tensor}, {})
    assert same(unpack(packed.data)[0]["x"], tensor)
    flat, nonzero = array.reshape(-1), int((array != 0).sum())
    sizes = [4 * flat.size, math.ceil(flat.size / 8) + 4 * nonzero]
    for bits in range(1, 17):
        entries = len(filler_rule(flat, bits))
        sizes.append(4 * entries + math.ceil(entries * bits / 8))
    assert packed.bits["x"] == 8 * min(sizes)


@pytest.mark.parametrize("dtype", sorted(set(codec.NAMES) - {"float32", "bool"}))
def test_other_dtypes_are_stored_as_they_are(dtype):
    width = getattr(torch, dtype).itemsize
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 12 * width, dtype=np.uint8))
    tensor = raw.view(getattr(torch, dtype)).reshape(3, 4)
    packed = encode({"x": tensor, "one": tensor[1, 1].clone(), "none": tensor[:0].clone()}, {})
    back = unpack(packed.data)[0]
    assert same(back["x"], tensor) and same(back["one"], tensor[1, 1]) and same(back["none"], tensor[:0])
    assert packed.bits == {"x": 96 * width, "one": 8 * width, "none": 0}


@st.composite
def declared_tensors(draw):
    """(tensor, coding) that fit, patterns from a few values, sparse to dense."""
    shape = draw(SHAPES)
    number = math.prod(shape)
    kind = draw(st.sampled_from(["dense", "half", "codebook", "binary", "ternary"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zero = rng.random(number) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    per_channel = draw(st.booleans())
    sparse = draw(st.none() | st.integers(1, 16))
    if kind in ("binary", "ternary"):
        grid = (shape[0] if per_channel and shape else 1, -1) if number else (0, 1)
        scales = rng.integers(0, 2**31, number, dtype=np.uint32)[: grid[0], None]
        values = scales | rng.integers(0, 2, number, dtype=np.uint32).reshape(grid) << 31
        values = values.reshape(-1)
        if kind == "ternary":
            values[zero] = 0
        return from_patterns(values, shape), Coding(kind, per_channel=per_channel)
    if kind == "codebook":
        bits = draw(st.integers(1, 16))
        book = rng.integers(0, 2**32, 2**bits - 1, dtype=np.uint32)
        values = book[(rng.random(number) ** 2 * len(book)).astype(int)]
        coding = Coding("codebook", bits, sparse, draw(st.booleans()))
    elif kind == "half":
        values = rng.normal(size=number).astype(np.float16).astype(np.float32).view(np.uint32)
        coding = Coding("dense", 16, sparse, draw(st.booleans()) and sparse is not None)
    else:
        values = rng.choice(np.array([*SPECIAL, *rng.integers(0, 2**32, 20)], np.uint32), number)
        coding = Coding("dense", draw(st.sampled_from([None, 32])), sparse, draw(st.booleans()) and sparse is not None)
    values[zero] = 0
    return from_patterns(values, shape), coding


@given(declared_tensors())
@quick
def test_declared_tensors_are_bit_exact_and_of_the_size_by_hand(case):
    tensor, coding = case
    packed = encode({"x": tensor, "other": torch.ones(2)}, {"x": coding})
    back, codings = unpack(packed.data)
    assert same(back["x"], tensor) and codings == {"x": coding}
    by_hand = parts_by_hand(patterns(tensor).numpy().view(np.uint32), tensor.shape, coding)
    assert packed.parts["x"] == by_hand and packed.bits["x"] == sum(by_hand[part][1] for part in PARTS)
    header = struct.unpack_from("<I", packed.data, 5)[0]
    assert 8 * len(packed.data) == 8 * (OVERHEAD + header) + sum(packed.bits.values())


def parts_by_hand(flat, shape, coding):
    """What the payload of patterns (n,) consists of, from the definitions of the codings."""
    found, stored = {part: [0, 0] for part in PARTS}, flat.tolist()

    def add(part, bits, huffman=None):
        """Bits as they are, then as a Huffman code of numbers (0 where there is none); each ends in a whole byte."""
        for i, number in enumerate((bits, bits if huffman is None else huffman)):
            found[part][i] += number
            found["padding"][i] += -number % 8

    def add_numbers(part, numbers, bits):
        counts = np.bincount(np.array(numbers, int))
        if coding.huffman:
            add("tables", 0, len(counts) * int(codec.code_lengths(counts).max(initial=0)).bit_length())
        add(part, len(numbers) * bits, optimal_bits(counts) if coding.huffman else None)

    if coding.kind in ("binary", "ternary"):
        add("codebook", 32 * (shape[0] if coding.per_channel and len(shape) else 1) * (len(flat) > 0))
        add("values", len(flat) if coding.kind == "binary" else 8 * math.ceil(len(flat) / 5))
    elif coding.sparse:
        entries = filler_rule(flat, coding.sparse)
        stored = [value for _, value in entries]
        add_numbers("positions", [zeros for zeros, _ in entries], coding.sparse)
    if coding.kind == "dense":
        add("values", (coding.bits or 32) * len(stored))
    elif coding.kind == "codebook":
        book = sorted(set(stored))
        add("codebook", 32 * len(book))
        add_numbers("values", [book.index(value) for value in stored], coding.bits)
    return found | {"entries": len(stored)}


def parts_add_up(module):
    """Whether the parts of each tensor make up a file without Huffman coding and the file, bit for bit."""
    state, declared = every_coding()
    plain = {name: dataclasses.replace(coding, huffman=False) for name, coding in declared.items()}
    files = [module.encode(state, codings) for codings in (plain, declared)]
    for name, bits in files[1].bits.items():
        parts = files[1].parts.get(name, {part: [bits, bits] if part == "values" else [0, 0] for part in PARTS})
        if [sum(parts[part][i] for part in PARTS) for i in (0, 1)] != [file.bits[name] for file in files]:
            return False
        if any(not 0 <= parts["padding"][i] < 8 * 4 for i in (0, 1)):
            return False
    return all(stored_bits(file.stored()) == 8 * len(file.data) for file in files)


def test_the_parts_of_every_coding_add_up_to_the_file():
    assert parts_add_up(codec)
    state, declared = every_coding()
    packed = encode(state, declared)
    stored, (rows, payload) = packed.stored(), read_file(packed.data)
    as_bytes = {row[0] for row in rows if len(row) == 5 and row[3] is None}
    assert stored["tensors"].keys() | as_bytes | {"tied"} == state.keys() and not stored["tensors"].keys() & as_bytes
    assert stored["plain"] == sum(8 * state[name].numel() * state[name].element_size() for name in as_bytes)
    assert stored["header"] == 8 * (len(packed.data) - len(payload))
    assert stored["tensors"]["masked"]["positions"] == [48, 48]
    assert stored["tensors"]["relative"]["positions"] == [3 * 6, 3 * 6]
    assert stored["tensors"]["deep_compression"]["padding"][1] > 0


def counts_a_layer(module):
    """Whether one pruned layer of shared values takes the bits that numpy and a heap count, weight by weight."""
    rng = np.random.default_rng(5)
    book = np.array([-0.5, -0.25, 0.25, 0.5, 1.0], np.float32)
    layer = np.where(rng.random((30, 40)) < 0.08, rng.choice(book, (30, 40), p=[0.4, 0.3, 0.15, 0.1, 0.05]), 0)
    weights = torch.from_numpy(layer.astype(np.float32))
    coding = Coding("codebook", bits=4, sparse=4, huffman=True)
    own = module.encode({"w": weights}, {"w": coding}).stored()["tensors"]["w"]
    entries = filler_rule(layer.reshape(-1), 4)
    words = {}
    for part, at in (("positions", 0), ("values", 1)):
        words[part] = huffman_lengths([entry[at] for entry in entries])
        taken = sum(words[part][entry[at]] for entry in entries)
        if own[part] != [4 * len(entries), taken]:
            return False
    longest = [max(of_part.values()).bit_length() for of_part in words.values()]
    table = longest[0] * (1 + max(words["positions"])) + longest[1] * len(words["values"])
    fillers = len(entries) - np.count_nonzero(layer)
    return fillers > 5 and own["entries"] == len(entries) and own["tables"][1] == table and own["codebook"][1] == 6 * 32


def huffman_lengths(symbols):
    """Oracle: symbol -> bits of its word, by merging the two rarest groups until one is left."""
    heap = [(count, i, [symbol]) for i, (symbol, count) in enumerate(collections.Counter(symbols).items())]
    lengths = dict.fromkeys((symbol for _, _, (symbol,) in heap), 0)
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, at, first), (two, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in first + second:
            lengths[symbol] += 1
        heapq.heappush(heap, (one + two, at, first + second))
    return lengths


def test_a_layer_takes_the_bits_that_are_counted_by_hand():
    assert counts_a_layer(codec)


def test_binary_signs_and_ternary_digits_lie_as_documented():
    weights = torch.tensor([[0.5, -0.5, -0.5], [2.0, 2.0, -2.0]])
    _, payload = read_file(encode({"w": weights}, {"w": Coding("binary")}).data)
    assert payload == struct.pack("<2fB", 0.5, 2.0, 0b100110)
    weights = torch.tensor([[0.5, 0.0, -0.5], [0.0, 0.0, -2.0]])
    _, payload = read_file(encode({"w": weights}, {"w": Coding("ternary")}).data)
    assert payload == struct.pack("<2f2B", 0.5, 2.0, 1 + 2 * 9, 2)
    _, payload = read_file(encode({"w": torch.tensor([3.0, 1.0, 3.0])}, {"w": Coding("codebook", bits=5)}).data)
    assert payload == struct.pack("<2f2B", 1.0, 3.0, 0b00001, 0b00001 << 2)


def test_negative_zero_is_a_value():
    """It costs what a weight costs, and it comes back."""
    weights = torch.zeros(64)
    weights[[3, 40]] = torch.tensor([-0.0, 1.0])
    for declared in ({}, {"w": Coding(sparse=4)}, {"w": Coding("codebook", bits=2, sparse=8, huffman=True)}):
        assert same(unpack(encode({"w": weights}, declared).data)[0]["w"], weights)
    assert encode({"w": -torch.zeros(64)}, {}).bits["w"] == 32 * 64
    assert encode({"w": torch.zeros(64)}, {}).bits["w"] == 0


def test_shared_tensors_are_stored_once_and_come_back_shared():
    weight = torch.randn(50, 20).sign()
    state = {"a": weight, "b": weight, "turned": weight.t(), "copy": weight.clone()}
    packed = encode(state, {"b": Coding("binary", per_channel=False)})
    back, codings = unpack(packed.data)
    assert (packed.bits["a"], packed.bits["b"]) == (32 + 1000, 0)
    assert all(same(back[name], state[name]) for name in state)
    assert back["a"] is back["b"] and back["copy"] is not back["a"]
    assert codings == dict.fromkeys("ab", Coding("binary", per_channel=False))
    with pytest.raises(UserError, match="'b' is 'a' under another name, with another coding"):
        encode(state, {"a": Coding(bits=32), "b": Coding("binary", per_channel=False)})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight


def test_a_module_goes_into_a_file_and_back():
    net, twin = Tied(), Tied()
    net.bn.num_batches_tracked += 3
    net.conv.weight.data = net.conv.weight.data.sign() * 0.1
    net.first.weight.data = torch.where(net.first.weight.data.abs() < 0.2, 0.0, 0.5)
    attach(net.conv, "weight", Coding("binary"))
    attach(net.second, "weight", Coding("codebook", bits=1, sparse=2, huffman=True))
    packed = pack(net)
    state, codings = unpack(packed.data)
    twin.load_state_dict(state)
    assert all(same(value, net.state_dict()[name]) for name, value in twin.state_dict().items())
    assert (codings["conv.weight"], codings["second.weight"].kind, len(codings)) == (Coding("binary"), "codebook", 3)
    assert (packed.bits["conv.weight"], packed.bits["bn.num_batches_tracked"]) == (8 * 32 + 216, 64)
    assert len(packed.data) < 700


# ------------------------------------------------------------------------------------------------ the relative index


def filler_rule(flat, bits):
    """Oracle: [(zeros before, value)] of Deep Compression's relative index, weight by weight."""
    entries, zeros = [], 0
    for value in flat.tolist():
        if value or zeros == 2**bits - 1:
            entries.append((zeros, value))
            zeros = 0
        else:
            zeros += 1
    while entries and not entries[-1][1]:
        entries.pop()  # nothing follows these fillers
    return entries


def same_entries(relative_index):
    """Whether a relative index is the oracle's on vectors with short and long gaps, also of exactly 2**bits."""
    rng = np.random.default_rng(0)
    vectors = [np.where(rng.random(200) < p, rng.integers(1, 9, 200), 0) for p in (0, 0.01, 0.1, 0.5, 1)]
    vectors += [np.eye(1, 40, k)[0] for k in range(40)]
    for vector in vectors:
        for bits in (1, 2, 3, 5):
            zeros, stored = relative_index(vector.astype(np.uint32), bits)
            if [*zip(zeros.tolist(), stored.tolist(), strict=True)] != filler_rule(vector.astype(int), bits):
                return False
    return True


def test_gaps_are_bridged_by_filler_zeros():
    assert same_entries(codec.relative_index)


def test_the_example_with_three_bits():
    """Weights at 1, 4 and 15: the last is 11 behind, more than the 8 that three bits hold."""
    weights = torch.zeros(16)
    weights[[1, 4, 15]] = torch.tensor([3.4, 0.9, 1.7])
    zeros, values = codec.relative_index(weights.numpy().view(np.uint32), 3)
    assert zeros.tolist() == [1, 2, 7, 2]
    assert torch.equal(torch.from_numpy(values.view(np.float32)), torch.tensor([3.4, 0.9, 0.0, 1.7]))
    assert encode({"w": weights}, {"w": Coding(sparse=3)}).bits["w"] == 4 * 32 + 16


def test_a_full_codebook_has_no_place_for_a_filler():
    weights = torch.zeros(40)
    weights[[0, 1, 39]] = torch.tensor([1.0, 2.0, 1.0])
    encode({"w": weights}, {"w": Coding("codebook", bits=1, sparse=6)})
    with pytest.raises(UserError, match=r"3 distinct values \(one is the filler zero\)"):
        encode({"w": weights}, {"w": Coding("codebook", bits=1, sparse=5)})


# ---------------------------------------------------------------------------------------------------------- Huffman


def optimal_bits(counts):
    """Oracle: bits of an optimal prefix code, the sum of all merged weights; 0 for one symbol."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def is_optimal(code_lengths, counts):
    """Whether lengths belong to a prefix code of all symbols that occur, and none is better."""
    lengths = code_lengths(np.array(counts, np.int64)).tolist()
    used = [length for length, count in zip(lengths, counts, strict=True) if count]
    if [bool(length) for length in lengths] != [bool(count) for count in counts]:
        return False
    if len(used) < 2:
        return used in ([], [1])
    total = sum(length * count for length, count in zip(lengths, counts, strict=True))
    shares = [count / sum(counts) for count in counts if count]
    entropy = -sum(share * math.log2(share) for share in shares)
    assert entropy - 1e-9 <= optimal_bits(counts) / sum(counts) < entropy + 1
    return sum(2**-length for length in used) == 1 and total == optimal_bits(counts)


FIBONACCI = [1, 1]
while len(FIBONACCI) < 45:
    FIBONACCI.append(sum(FIBONACCI[-2:]))


@given(st.lists(st.sampled_from([0, 1, 2, 3]) | st.integers(0, 2**30), max_size=80))
@quick
def test_word_lengths_are_optimal(counts):
    assert is_optimal(codec.code_lengths, counts)


def test_word_lengths_of_extreme_counts():
    assert is_optimal(codec.code_lengths, FIBONACCI)
    assert codec.code_lengths(np.array(FIBONACCI)).max() == 44
    assert codec.code_lengths(np.array([], int)).tolist() == []
    assert codec.code_lengths(np.array([0, 5, 0])).tolist() == [0, 1, 0]
    for counts in ([-1, 2], [0.5, 0.5], [np.inf, 1], [np.nan]):
        with pytest.raises(ValueError, match="whole numbers"):
            codec.code_lengths(np.array(counts))


@given(st.lists(st.integers(0, 30) | st.integers(0, 2**16 - 1), max_size=300), st.integers(0, 2**32 - 1))
@quick
def test_words_are_decoded(alphabet, seed):
    rng = np.random.default_rng(seed)
    symbols = np.array(alphabet * 2, np.uint16)[(rng.random(2 * len(alphabet)) ** 3 * len(alphabet)).astype(int)]
    counts = np.bincount(symbols)
    lengths = codec.code_lengths(counts)
    stream = codec._code(symbols, lengths)
    assert len(stream) == math.ceil(optimal_bits(counts) / 8)
    assert np.array_equal(codec._decode(stream, lengths, len(symbols)), symbols)


def test_long_words_are_decoded():
    symbols = np.repeat(np.arange(24), FIBONACCI[:24]).astype(np.uint16)
    symbols = np.random.default_rng(0).permutation(symbols)
    lengths = codec.code_lengths(np.bincount(symbols))
    assert lengths.max() == 23
    assert np.array_equal(codec._decode(codec._code(symbols, lengths), lengths, len(symbols)), symbols)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "coding", "message"),
    [
        ([[1.0, -1.0], [1.0, -1.5]], Coding("binary"), "'w' holds the magnitudes 1, 1.5 in slice 1 of 2, but its"),
        ([[1.0, -1.0], [2.0, -2.0]], Coding("binary", per_channel=False), "magnitudes 1, 2 in slice 0 of 1.*binary"),
        ([[1.0, 0.0]], Coding("binary"), r"magnitudes 0, 1 in slice 0.*binary \(-a and a\)"),
        ([[1.0, 0.0, -0.5]], Coding("ternary"), r"magnitudes 0, 0\.5, 1 in slice 0 of 1.*ternary"),
        ([[1.0, -0.0]], Coding("ternary"), r"magnitudes 0, 1 in.*ternary \(-a, 0 and a; 0 is \+0\.0\)"),
        (
            [1.0, 2.0, 3.0, 4.0, 5.0],
            Coding("codebook", bits=2),
            "5 distinct values, but .*of 2 bits.*at most 4",
        ),
        ([0.0, -0.0, 1.0], Coding("codebook", bits=1), "3 distinct values"),
        ([1.0, 0.1], Coding(bits=16), r"1 values that are not fp16 \(such as 0\.1\), but .* 16 bits"),
        ([1e6, 1.0], Coding(bits=16, sparse=4), "not fp16 .such as 1e.06"),
    ],
)
def test_a_declaration_that_the_values_do_not_keep(values, coding, message):
    with pytest.raises(UserError, match=message):
        encode({"fine": torch.ones(2), "w": torch.tensor(values)}, {"w": coding})


def test_signalling_nans_are_no_fp16():
    with pytest.raises(UserError, match="not fp16"):
        encode({"w": from_patterns([0x7F800001], (1,))}, {"w": Coding(bits=16)})


def test_what_is_no_plain_tensor():
    with pytest.raises(UserError, match=r"'w' holds torch.int64, but its declared coding is one of float32"):
        encode({"w": torch.arange(3)}, {"w": Coding("binary")})
    with pytest.raises(UserError, match="coding is declared for 'v', which is not in the state dict"):
        encode({"w": torch.ones(1)}, {"v": Coding("binary")})
    with pytest.raises(UserError, match="'extra' is a dict, no tensor"):
        encode({"extra": {}}, {})
    for odd in (torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(UserError, match=r"'w' .* cannot be packed: give a dense tensor"):
            encode({"w": odd}, {})
    with pytest.raises(UserError, match="over the limit of"):
        encode({"w": torch.zeros(1).expand(2**40)}, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "These 0 bytes are no packed network"),
        (b"\x89NET", "These 4 bytes are no packed network"),
        (b"a text that is no network, but long enough", "no packed network"),
        (safetensors_bytes({"w": torch.ones(3)}), "no packed network"),
        (b"\x89NET\x02" + bytes(40), "format version 2, this code reads 1"),
        (b"\x89NET\x01" + b"\xff" * 40, "checksum does not fit"),
    ],
    ids=["empty", "short", "text", "safetensors", "version", "lengths"],
)
def test_foreign_files(data, message):
    with pytest.raises(UserError, match=message):
        unpack(data)


def ruin(data, rng, other=b""):
    """``data`` with bits flipped, its end or a piece cut off, bytes inserted, a piece copied, or the end of another."""
    data, kind = bytearray(data), rng.randrange(6 if other else 5)
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randint(1, 40))
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        del data[start:stop]
    elif kind == 3:
        data[start:start] = rng.randbytes(rng.randint(1, 40))
    elif kind == 5:
        data[start:] = other[start:]
    else:
        piece, place = data[start:stop], rng.randrange(len(data))
        data[place : place + len(piece)] = piece
    return bytes(data)


def test_ten_thousand_damaged_files_are_refused():
    rng = random.Random(0)
    state, declared = every_coding()
    data = encode(state, declared).data
    other = encode({**state, "dense": -state["dense"]}, declared).data
    refused = 0
    while refused < 10_000:
        damaged = ruin(data, rng, other)
        if damaged not in (data, other):
            with pytest.raises(UserError):
                unpack(damaged)
            refused += 1


def twist(rows, rng):
    """The rows of a header with a few of its values changed, swapped or removed, at any depth."""
    rows = json.loads(json.dumps(rows))
    for _ in range(rng.randint(1, 3)):
        place = rows
        while True:
            key = rng.randrange(len(place))
            if not isinstance(place[key], list) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        kind = rng.randrange(4)
        if kind == 0:
            numbers = [0, 1, 2, 3, 7, 16, 17, 255, 2**16, 2**28, 10**12, 10**30, -1, 0.5, True, None]
            words = ["mask", "", "binary", "float32", "int64", "bool", "codebook", [], {}, [2**14, 2**14]]
            place[key] = rng.choice([*numbers, *words])
        elif kind == 1:
            other = rng.randrange(len(place))
            place[key], place[other] = place[other], place[key]
        elif kind == 2:
            del place[key]
        else:
            place.insert(key, place[key])
        rows = rows or [[]]
    return rows


def shapes_of(rows):
    """Name -> (dtype, shape) that the rows of a header declare."""
    found = {}
    for row in rows:
        found[row[0]] = found[row[1]] if len(row) == 2 else (getattr(torch, row[1]), tuple(row[2]))
    return found


@pytest.mark.parametrize("part", ["payload", "header", "compressed header"])
def test_damage_under_a_right_checksum_is_refused_or_has_the_declared_shapes(part, monkeypatch):
    monkeypatch.setattr(codec, "LIMIT", 1 << 24)
    rng = random.Random(1)
    rows, payload = read_file(encode(*every_coding()).data)
    refused = read = 0
    for _ in range(700):
        damaged, body = rows, payload
        if part == "payload":
            body = ruin(payload, rng)
        elif part == "header":
            damaged = twist(rows, rng)
        else:
            damaged = ruin(zlib.compress(json.dumps(rows).encode()), rng)
        try:
            state, _ = unpack(write_file(damaged, body))
        except UserError:
            refused += 1
            continue
        read += 1
        if part != "compressed header":
            assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()} == shapes_of(damaged)
    assert refused > 400
    assert read or part == "compressed header"


HUGE = 10**12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["w", "float32", [HUGE], None, []]], "'w' has no valid shape"),
        ([["w", "float32", [10**6, 10**6], None, []]], "over the limit"),
        ([["w", "float32", [0, 10**6, 10**6], None, []]], "over the limit"),
        ([["w", "uint8", [2**29], None, []]] * 3, "expected where 0 are left"),
        ([["w", "float32", [2**27], "mask", []]], "expected where 0 are left"),
        ([["w", "float32", [2**27], [True, "binary", None, None, False, True], []]], "expected where 0 are left"),
        ([["w", "float32", [2**27], [True, "ternary", None, None, False, False], []]], "expected where 0 are left"),
        ([["w", "float32", [2**27], [True, "dense", 32, 4, False, True], [2**27]]], "expected where 0 are left"),
        ([["w", "float32", [2**27], [True, "codebook", 16, None, True, True], [2**16, 1, 1, 1]]], "are left"),
        ([["w", "float32", [2], [True, "codebook", 99, None, True, True], [1]]], "codebook of 99 bits"),
        ([["w", "float32", [1] * 100, None, []]], "'w' has no valid shape"),
        ([["w", "complex64", [1], None, []]], "a row of its header"),
        ([["a", "b"]], "a row of its header"),
        ({"w": 1}, "is no list"),
        (b"\x00no zlib", "its header cannot be read"),
        (zlib.compress(b"[" * 100_000), "its header cannot be read"),
        (zlib.compress(b"\xff\xfe{"), "its header cannot be read"),
        (zlib.compress(b"[]") + b"more", "its header has another size"),
        (zlib.compress(bytes(10**9 >> 3)), "its header has another size"),
    ],
)
def test_crafted_headers_are_refused_quickly(rows, message):
    data = write_file(rows)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        unpack(data)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("counts", "payload", "message"),
    [
        ([1, 2, 2, 1], struct.pack("<fBB", 1.0, 0b1111, 0), "word lengths of a Huffman code do not fit"),
        ([1, 0, 0, 0], struct.pack("<f", 1.0), "a Huffman code has no words"),
        ([1, 1, 1, 1], struct.pack("<fBB", 1.0, 1, 0), "a Huffman code has no words"),
        ([2, 2, 1, 2], struct.pack("<2fBH", 1.0, 2.0, 0b11, 0), "a Huffman code takes fewer or more bits"),
        ([1, 2, 1, 1], struct.pack("<fBB", 1.0, 0b11, 0xFF), "an index lies outside of its codebook"),
        ([1, 1, 1, 0, 5], struct.pack("<fB", 1.0, 1), "too many counts"),
        ([1, 1, 1], struct.pack("<fB", 1.0, 1), "a count is None"),
        ([3, 1, 1, 0], struct.pack("<fB", 1.0, 1), "a count is 3 where 2 is the most"),
    ],
)
def test_crafted_codebooks(counts, payload, message):
    """A tensor of six weights as a Huffman-coded codebook of one bit."""
    rows = [["w", "float32", [6], [True, "codebook", 1, None, True, True], counts]]
    with pytest.raises(UserError, match=message):
        unpack(write_file(rows, payload))


def test_crafted_words_run_out_of_bits():
    rows = [["w", "float32", [32], [True, "codebook", 2, None, True, True], [3, 3, 2, 4]]]
    lengths = 1 | 2 << 2 | 2 << 4
    with pytest.raises(UserError, match="runs out of bits"):
        unpack(write_file(rows, struct.pack("<3fBI", 1, 2, 3, lengths, 0xFFFFFFFF)))


def test_crafted_positions_truths_and_digits():
    sparse = [["w", "float32", [4], [True, "dense", 32, 4, False, True], [1]]]
    with pytest.raises(UserError, match="a position lies outside"):
        unpack(write_file(sparse, struct.pack("<Bf", 4, 1.0)))
    with pytest.raises(UserError, match="neither 0 nor 1"):
        unpack(write_file([["w", "bool", [1], None, []]], b"\x02"))
    with pytest.raises(UserError, match="no number below 243"):
        unpack(write_file([["w", "float32", [5], [True, "ternary", None, None, False, True], []]], bytes(20) + b"\xf3"))
    with pytest.raises(UserError, match="1 bytes are left over"):
        unpack(write_file([], b"x"))


# ------------------------------------------------------------------------------------------- the format stays readable

GOLDEN = (
    "iB3gS0bBt90O`H2fjiN9&v@FMlud4fFc5|B!g>|~6Plg{A>@Q{YsFy8Hm%ar*ER{sAd;dkK!|zo^Be!wbtVieGRTC|+{dq)0c)W4c0|ZJ92{oA3K"
    "&MEKyc*{Vksz^@C0{W5qAj;3MiI@yn04(hTEw4n~?yFBJ%wMq>X9X&ryh;4;xbzi8SNhp$xyu1U=~vk6NE!lI|k5(&2%CHbuJw%L(|HuT1gsB4Im"
    "3)1Gv1EIKFkcI<l3!NBI;k8<Gl@{)Lyq>xV*cha;5ZR^97Yx^%^df$*9?Vr(R&8uuz(bjNJnIzqHW36$LWm5Irov~Y&rDAp!T2$Q2FG_sdh0-"
    ")OIT{shk|n|qTJ4B^5Bqh0PW`*-"
    "WSzL;bY@5^*c*RY+#kC|yUwGD8RX!ratRQMf5c+goGQ9W@mqFt@5xHRM=Mc8ZxY0tXeqdOjPNlGeTco2s+VaI=A+Rxzs)V2LjV8(00000fB*o1e*"
    "gf0{{aBNe?=p~{{aAie*pjh0001hKY+aeHUO{y0024wx&S=@Jb*m_xPUwWH~=_+JOH?WJpeoaJpj4@IsgCwumCoIy#O`<umAu6Ism!=Jpep_Jpj0"
    "XJODTVIDk9=xPUzXJODiax&S%=006K6Hh{eVHfW-xO_US>0I<IR0H8kr0I)v*0FXZb0FXZb0I)v*0H8kr0I<IR0H8kr0I)v*0FXZb0FXZb0I)v*0"
    "H8kr0I<Ke3n$?OfV}_!06l;`fINUafIR>`004l!0000zfIWabfINUb06hQzfV}_!00000fIk2L06+i$KtKQh0Du4hfWH6$0KfnMK)??nORExfk_F"
    "}=WNB5RPO`u}000000000$0001h0002M`8QTAS~cdzszs~D9JdQ6;RFBx00000fIk2LfWIaObU*_D002J#0DwLK06;(h0DwO&LbMhkS^xk*KP^JE"
    "79m;y002J#0DwLK06;(h0DwPJDIAnGkRNXl1^@s+KT|0jls1qbZx99m0Q5ir02V<201iO_01!a{031O800cn*03<;G03bmC046~I00=<<03tyE02"
    "o0402o0403tyE00=<<046~I03bmC03<;G00cn*031O801!a{01iO_02V<20Q5ir02V<201iO_01!a{031O800cn*03<;G03bmC046~I00=<<03ty"
    "E02o0402o0403tyE00=<<046~I03bmC03<;G00cn*031O801!a{01iO_02V<20Q5ir02V?1|9}7gzW@LhK>z>_K>z>{K>z?8K>z>*K>z?GK>z?CK"
    ">z?IK>z><K>z?EK>z?4K>z?4K>z?EK>z><K>z?IK>z?CK>z?GK>z>*K>z?8K>z>{K>z>_K>z?2K>z?2K>z>_K>z>{K>z?8K>z>*K>z?GK>z?CK>z"
    "?IK>z><K>z?EK>z?4K>z?4K>z?EK>z><K>z?IK>z?CK>z?GK>z>*K>z?8K>z>{K>z>_K>z?2K>z?2K|BBe006MR006)~0002K001CB2LJ#700000"
    "0RRCQEksoNAqhYL00000004l%KLEf00RjUA"
)


def test_the_format_of_version_1_is_read():
    """A file written by the first version: it pins the layout, and the Huffman words that constriction makes."""
    state, declared = every_coding()
    back, codings = unpack(base64.b85decode(GOLDEN))
    assert all(same(back[name], state[name]) for name in state)
    assert codings == {**declared, "tied": declared["codebook"]}


# ------------------------------------------------------------------------------------------------------ mutants


def keeps_every_bit(module):
    """Oracle of the round trip: the bits of awkward float32 tensors, stored sparsely."""
    tensor = from_patterns([0] * 30 + list(SPECIAL) + [0] * 30, (-1,))
    return same(module.unpack(module.encode({"x": tensor}, {"x": Coding(sparse=3)}).data)[0]["x"], tensor)


@pytest.mark.parametrize(
    ("oracle", "old", "new"),
    [
        (lambda m: same_entries(m.relative_index), "(gaps >> bits) + 1)", "(gaps // (2**bits - 1 or 1)) + 1)"),
        (lambda m: same_entries(m.relative_index), "np.full(entries, 2**bits - 1,", "np.full(entries, 2**bits - 2,"),
        (keeps_every_bit, "np.flatnonzero(values)\n    gaps", "np.flatnonzero(values & ~SIGN)\n    gaps"),
        (
            lambda m: is_optimal(m.code_lengths, FIBONACCI),
            "counts[used].astype(np.float64)",
            "np.log2(1.0 + counts[used])",
        ),
        (parts_add_up, "size - bits)):", "0)):"),
        (parts_add_up, 'writer.put(table, "tables", len(lengths) * width, uncoded=0)', 'writer.put(table, "tables")'),
        (parts_add_up, '"padding", -uncoded % 8,', '"padding", size - bits,'),
        (parts_add_up, "8 * len(self.data) - sum(self.bits.values())", "8 * len(_close([], []))"),
        (counts_a_layer, "int(counts @ lengths) if len(stream) else 0", "8 * len(stream)"),
        (counts_a_layer, 'coding.sparse, coding.huffman, "positions")', 'coding.sparse, coding.huffman, "values")'),
        (counts_a_layer, "writer.entries = len(values)\n    if", "writer.entries = np.count_nonzero(values)\n    if"),
    ],
    ids=[
        *("filler too early", "filler too short", "negative zero is zero", "logarithms of the counts"),
        *("no padding", "tables without Huffman coding", "padding of the other file", "a header of another file"),
        *("words fill their bytes", "positions as values", "fillers are no entries"),
    ],
)
def test_the_oracles_catch_a_changed_line(oracle, old, new):
    assert oracle(codec)
    assert not oracle(mutant(codec, old, new))
