"""One run as one small JSON file: the only reader, the only writer, and the test for whether it is out of date."""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

from baselines.base import BUDGETS
from baselines.errors import UserError
from baselines.faults import whole_file

SCHEMA_VERSION = 2
ACCURACIES = {"top1": "top-1", "top5": "top-5", "subset_top1": "top-1 among the subset's classes"}
MAX_COUNT = 10**18
MAX_BYTES = 1 << 24  # of a record's file; the largest that a run wrote takes a hundredth
DEEPEST = 32  # levels of lists and objects within a field
CLASS_DATA = ("paper", "reported", "recipes", "claims", "expected_failures")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


parse = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_distinct).decode
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
NUMBERS = re.compile(r"\[\n([^\[\]{}\"]*)\n *\]")  # a list of numbers, which goes on one line
ID_START = re.compile("[0-9a-f]{4,12}")
KIT_MODULE = re.compile(r"methods\.kit\.(\w+)")
# Parts of a syntax tree that do not change what runs, or that only some Python versions have.
IGNORED = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params", "type_ignores"}


@dataclass(kw_only=True)
class Measurement:
    """What the referee measured on one network: accuracies in percent, counts as whole numbers, None = not measured."""

    top1: float | None
    params: int
    nonzero: int
    macs: int
    effective_macs: int
    top5: float | None = None
    subset_top1: float | None = None
    bits: int | None = None
    bytes: int | None = None
    bit_ops: int | None = None
    onnx_bytes: int | None = None


@dataclass(kw_only=True)
class Record:
    """One run. ``recipe`` is a key of the method's ``recipes`` (None: its defaults); ``id`` is ``identity()``.

    ``options``: resolved baseline and data options that change the result (flat or nested). ``after_compression``:
    {top1, top5} of the net as it entered its only train call. ``layers``: {name, dense: [out, in], compressed: [out,
    in] or None} and, of both nets, params, nonzero, macs and bit_ops: [dense, compressed]. ``counted``: {rule: {params,
    macs, dense_params, dense_macs}} under a paper's counting rule. ``latency``: {runtime, device, load, loaded,
    kernel, cells: [{threads, batch, rounds, dense_ms, dense_spread_ms, compressed_ms, compressed_spread_ms}]}, medians
    and interquartile ranges in milliseconds a batch; load: cores that other work kept busy before the start; with the
    kernel popcount each cell has a kernel, popcount or onnxruntime, the faster one; None where nobody measured.
    ``stored``: where the bits of the compressed net's file are, {header, plain, tensors: {name: {entries, values,
    positions, codebook, tables, padding}}}, each part but entries as [without Huffman coding, in the file]
    (``repro.codec.Packed``); None where nobody measured. ``curve``: [step, loss, lr].
    ``provenance`` holds at least dense_sha256, code_hash and kit_versions.
    """

    kind: str
    method: str
    family: str
    baseline: str
    budget: str
    seed: int
    dense: Measurement
    compressed: Measurement
    provenance: dict[str, Any]
    recipe: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    after_compression: dict[str, float | None] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    counted: dict[str, dict[str, int]] = field(default_factory=dict)
    latency: dict[str, Any] | None = None
    stored: dict[str, Any] | None = None
    meter: dict[str, float] = field(default_factory=dict)
    curve: list[list[float | None]] = field(default_factory=list)
    starts_from: str = "trained"
    given_weights: bool = False
    validation_seen: bool = False
    parent: str | None = None
    status: str = "ok"
    schema_version: int = SCHEMA_VERSION
    id: str = ""

    def __post_init__(self) -> None:
        """Fill in the id of a new record."""
        self.id = self.id or self.identity()

    def identity(self) -> str:
        """The 12 hex digits that name what was asked for; a second run of the same thing has the same ones."""
        weights = self.provenance.get("dense_sha256") if self.given_weights else None
        return identity(
            kind=self.kind,
            method=self.method,
            baseline=self.baseline,
            budget=self.budget,
            seed=self.seed,
            hyperparameters=self.hyperparameters,
            options=self.options,
            weights=weights,
            parent=self.parent,
        )

    def place(self) -> Path:
        """Where the record lies inside ``results/records``."""
        return Path(self.baseline, self.budget, self.method, f"{self.id}.json")

    def save(self, results_dir: str | Path) -> Path:
        """Write the record under ``results_dir`` in one step, replacing an older run of the same thing."""
        self.id = self.identity()
        data = plain(dataclasses.asdict(self))
        fault = _fault(data)
        if fault:
            raise UserError(f"This run of '{self.method}' cannot be recorded: {fault}.")
        path = Path(results_dir, "records", self.place())
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
        replace(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")
        return path


def identity(
    *,
    kind: str = "run",
    method: str,
    baseline: str,
    budget: str,
    seed: int,
    hyperparameters: dict,
    options: dict,
    weights: str | None = None,
    parent: str | None = None,
) -> str:
    """The id that a run will have; ``weights`` is the SHA-256 of given dense weights, None when they are trained."""
    asked = [kind, method, baseline, budget, seed, hyperparameters, options, weights or "trained", parent]
    return hashlib.sha256(canonical(plain(asked)).encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """The same value in JSON's types: tuples as lists, enums by name, numbers of arrays as numbers, NaN as None."""
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Enum):
        return value.name
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    raise UserError(f"A record cannot hold a {type(value).__name__}: report numbers, texts, lists and dicts of them.")


def replace(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then move it into place."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)


# ---------------------------------------------------------------------------------------------------- reading


def load(path: str | Path) -> Record:
    """Read one record file; UserError with one sentence where anything in it is not as it should be."""
    try:
        text = str(_content(path), "utf-8")
        data = _upgraded(parse(text))
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()  # refuses half of a surrogate pair, which no file can hold
        fault = _fault(data)
        if fault is None:
            nets = {name: Measurement(**data[name]) for name in ("dense", "compressed")}
            record = Record(**{**data, **nets})
            if record.id == record.identity():
                return record
            fault = f"its id is {record.id} but what it holds gives {record.identity()}"
    except OSError as error:
        raise UserError(f"The record {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"The record {path} is not valid JSON ({error}): delete it and run it again.") from error
    raise UserError(f"The record {path} is not valid: {fault}; delete it and run it again.")


def _content(path: str | Path) -> bytes:
    """The bytes of a record's file; UserError for a link, a pipe or whatever else is no file, and for a huge one."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"The record {path} is not a file of its own (a link, a folder or a device): put a file there.")
    if status.st_size > MAX_BYTES:
        raise UserError(f"The record {path} has {status.st_size} bytes, over {MAX_BYTES}: delete it and run it again.")
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def _upgraded(data: Any) -> Any:
    """A record of schema 1, or from before ``stored``, in today's form: what was not measured then is null."""
    if not isinstance(data, dict):
        return data
    data = {"stored": None, **data}
    if data.get("schema_version") != 1:
        return data
    nets = {name: data.get(name) for name in ("dense", "compressed")}
    for name, net in nets.items():
        if isinstance(net, dict):
            nets[name] = {**{k: v for k, v in net.items() if k != "latency_ms"}, "onnx_bytes": None}
    return {**data, **nets, "latency": None, "schema_version": 2}


def load_all(results_dir: str | Path) -> tuple[list[Record], list[str]]:
    """Every valid record below ``results_dir/records``, in the order of their paths, and a sentence per bad file."""
    root = os.path.join(results_dir, "records")
    paths = sorted(os.path.join(at, name) for at, _, names in os.walk(root) for name in names if name.endswith(".json"))
    records, problems = [], []
    with _no_garbage():
        for path in paths:
            try:
                record = load(path)
                place = os.path.join(root, record.baseline, record.budget, record.method, f"{record.id}.json")
                if path != place:
                    raise UserError(f"The record {path} lies in the wrong place: move it to {place}.")
                records.append(record)
            except UserError as error:
                problems.append(str(error))
    return records, problems


def pick(run: str, ids: Iterable[str], where: str) -> str:
    """The one of ``ids`` that is ``run`` or begins with it; UserError where it is no id, or none or several fit."""
    if not ID_START.fullmatch(run):
        raise UserError(f"run={run} is no id: give the 12 digits (0-9, a-f) of a record's name, or at least 4 of them.")
    found = sorted({name for name in ids if name.startswith(run)})
    if not found:
        raise UserError(f"There is no run {run} in {where}: its id is the name of a record's file.")
    if len(found) > 1:
        raise UserError(f"run={run} fits {len(found)} runs ({', '.join(found)}): give more digits.")
    return found[0]


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Python's cycle collector is off: it would walk through all records again and again, and they hold no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_COUNT


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _percent(value: Any) -> bool:
    return value is None or (_number(value) and 0 <= value <= 100)


def _text(pattern: str, expected: str, none: bool = False) -> Rule:
    match = re.compile(pattern).fullmatch
    return (lambda v: none if v is None else isinstance(v, str) and match(v) is not None), expected


def _one_of(*choices: str) -> Rule:
    return (lambda v: isinstance(v, str) and v in choices), "one of " + ", ".join(choices)


SHAPE_KEYS = frozenset(("name", "dense", "compressed"))
LAYER_KEYS = {SHAPE_KEYS, SHAPE_KEYS | {"params", "nonzero", "macs", "bit_ops"}}
LATENCY_KEYS = {"runtime", "device", "load", "loaded", "kernel", "cells"}
STORED_KEYS = {"header", "plain", "tensors"}
PARTS = ("values", "positions", "codebook", "tables", "padding")  # of a tensor in a packed file
TIMES = ("dense_ms", "dense_spread_ms", "compressed_ms", "compressed_spread_ms")
KERNELS = ("dense", "no_fast_kernel", "popcount")
CELL_KERNELS = ("popcount", "onnxruntime")  # of a record whose kernel is popcount


def _layers(value: Any) -> bool:
    if not isinstance(value, list) or not set(map(type, value)) <= {dict}:
        return False
    if not set(map(frozenset, value)) <= LAYER_KEYS:
        return False
    if None in [pair for layer in value for key, pair in layer.items() if key != "compressed"]:
        return False
    pairs = [pair for layer in value for key, pair in layer.items() if key != "name"]
    if not set(map(type, pairs)) <= {list, type(None)} or not {type(layer["name"]) for layer in value} <= {str}:
        return False
    if not {len(pair) for pair in pairs if pair is not None} <= {2}:
        return False
    sizes = [*chain.from_iterable(filter(None, pairs)), 0]
    return set(map(type, sizes)) == {int} and 0 <= min(sizes) <= max(sizes) <= MAX_COUNT


def _provenance(value: Any) -> bool:
    if not isinstance(value, dict) or not {"dense_sha256", "code_hash", "kit_versions"} <= value.keys():
        return False
    versions, sha = value["kit_versions"], value["dense_sha256"]
    known = isinstance(value["code_hash"], str) and (sha is None or isinstance(sha, str)) and _tame(value)
    return known and isinstance(versions, dict) and all(map(_whole, versions.values()))


def _counted(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, dict)
        and v.keys() == {"params", "macs", "dense_params", "dense_macs"}
        and all(map(_whole, v.values()))
        for v in value.values()
    )


def _latency(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != LATENCY_KEYS or value["kernel"] not in KERNELS:
        return False
    texts = isinstance(value["runtime"], str) and isinstance(value["device"], str)
    load = _number(value["load"]) and value["load"] >= 0 and isinstance(value["loaded"], bool)
    cells = value["cells"] if isinstance(value["cells"], list) else [None]
    return texts and load and all(_cell(cell, value["kernel"] == "popcount") for cell in cells)


def _stored(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != STORED_KEYS or not isinstance(value["tensors"], dict):
        return False
    return _whole(value["header"]) and _whole(value["plain"]) and all(map(_tensor, value["tensors"].values()))


def _tensor(value: Any) -> bool:
    """Whether it is what a file holds of one tensor."""
    if not isinstance(value, dict) or value.keys() != {"entries", *PARTS} or not _whole(value["entries"]):
        return False
    pairs = [value[part] for part in PARTS]
    return all(isinstance(pair, list) and len(pair) == 2 and all(map(_whole, pair)) for pair in pairs)


def _cell(value: Any, named: bool) -> bool:
    """Whether it is a cell; ``named``: with the kernel that was the faster one."""
    counts, kernel = ("threads", "batch", "rounds"), {"kernel"} if named else set()
    if not isinstance(value, dict) or value.keys() != {*counts, *TIMES} | kernel:
        return False
    if named and value["kernel"] not in CELL_KERNELS:
        return False
    times = all(_number(value[t]) and value[t] >= 0 for t in TIMES) and value["dense_ms"] * value["compressed_ms"] > 0
    return times and all(_whole(value[c]) and value[c] > 0 for c in counts)


def _losses(value: Any) -> bool:
    if not isinstance(value, list) or not set(map(type, value)) <= {list} or not set(map(len, value)) <= {3}:
        return False
    if not {type(step) for step, _, _ in value} <= {int}:
        return False
    numbers = [*(n for n in chain.from_iterable(value) if n is not None), 0]
    return set(map(type, numbers)) <= {int, float} and -MAX_COUNT <= min(numbers) <= max(numbers) <= MAX_COUNT


def _table(value: Any) -> bool:
    return isinstance(value, dict) and _tame(value)


def _fields(value: Any) -> bool:
    return _table(value) and all(map(str.isidentifier, value))


def _tame(value: Any, levels: int = DEEPEST) -> bool:
    """Whether all numbers within are ones that a float holds, and nothing is nested deeper than ``levels``."""
    if isinstance(value, (dict, list)):
        return levels > 0 and all(_tame(v, levels - 1) for v in (value.values() if type(value) is dict else value))
    return not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max


def _accuracies(value: Any) -> bool:
    known = isinstance(value, dict) and value.keys() <= ACCURACIES.keys()
    return value is None or (known and all(map(_percent, value.values())))


Rule = tuple[Callable[[Any], bool], str]
PERCENT = (_percent, "a percentage from 0 to 100, or null")
WHOLE = (_whole, f"a whole number from 0 to {MAX_COUNT:.0e}")
MAYBE_WHOLE = (lambda v: v is None or _whole(v), f"{WHOLE[1]}, or null")
NAME = _text("[a-z0-9][a-z0-9_]{0,79}", "a name of small letters, digits and underscores")
FLAG = (lambda v: isinstance(v, bool), "true or false")
OBJECT = (lambda v: isinstance(v, dict), "an object")
TABLE = (_table, f"an object of finite numbers, at most {DEEPEST} levels deep")
FIELDS = (_fields, f"{TABLE[1]}, by the names of fields")

MEASURED: dict[str, Rule] = {
    "top1": PERCENT,
    "top5": PERCENT,
    "subset_top1": PERCENT,
    "params": WHOLE,
    "nonzero": WHOLE,
    "macs": WHOLE,
    "effective_macs": WHOLE,
    "bits": MAYBE_WHOLE,
    "bytes": MAYBE_WHOLE,
    "bit_ops": MAYBE_WHOLE,
    "onnx_bytes": MAYBE_WHOLE,
}
RECORDED: dict[str, Rule] = {
    "schema_version": (lambda v: _whole(v) and v == SCHEMA_VERSION, f"{SCHEMA_VERSION}, the only one this code reads"),
    "id": _text("[0-9a-f]{12}", "12 hexadecimal digits"),
    "kind": _one_of("run", "train"),
    "method": NAME,
    "family": NAME,
    "recipe": _text(r"[a-z0-9_]+(/[\w.+-]+)?", "BASELINE, BASELINE/VARIANT or null", none=True),
    "baseline": NAME,
    "budget": _one_of(*BUDGETS),
    "seed": WHOLE,
    "hyperparameters": FIELDS,
    "options": FIELDS,
    "dense": OBJECT,
    "compressed": OBJECT,
    "after_compression": (_accuracies, "null or an object of top1, top5 and subset_top1 in percent"),
    "details": TABLE,
    "layers": (_layers, "a list of {name, dense, compressed, params, nonzero, macs, bit_ops}"),
    "counted": (_counted, "an object of {params, macs, dense_params, dense_macs} per counting rule"),
    "latency": (_latency, f"null or an object of {', '.join(sorted(LATENCY_KEYS))}"),
    "stored": (_stored, "null or an object of header, plain and tensors, in whole bits"),
    "meter": (lambda v: isinstance(v, dict) and all(_number(x) and x >= 0 for x in v.values()), "numbers from 0"),
    "starts_from": _one_of("trained", "scratch"),
    "given_weights": FLAG,
    "validation_seen": FLAG,
    "parent": _text("[0-9a-f]{12}", "12 hexadecimal digits or null", none=True),
    "status": _one_of("ok", "diverged"),
    "curve": (_losses, "a list of [step, loss, lr]"),
    "provenance": (_provenance, "an object with dense_sha256, code_hash and kit_versions"),
}


def _fault(data: Any) -> str | None:
    """What is wrong with the JSON of a record, in words; None where nothing is."""
    fault = _check(data, RECORDED, "")
    fault = fault or _net_fault(data["dense"], "dense") or _net_fault(data["compressed"], "compressed")
    if fault:
        return fault
    if data["status"] == "ok" and None in (data["dense"]["top1"], data["compressed"]["top1"]):
        return "its status is ok but a top1 is null"
    if data["stored"] and stored_bits(data["stored"]) != 8 * (data["compressed"]["bytes"] or 0):
        return "the bits in 'stored' do not add up to compressed.bytes"
    if data["given_weights"] and not data["provenance"]["dense_sha256"]:
        return "weights were given but provenance.dense_sha256 is null"
    return None


def stored_bits(stored: dict[str, Any]) -> int:
    """All bits of a file, from a record's ``stored``."""
    tensors = stored["tensors"].values()
    return stored["header"] + stored["plain"] + sum(tensor[part][1] for tensor in tensors for part in PARTS)


def _net_fault(net: Any, name: str) -> str | None:
    """What is wrong with a ``Measurement`` as JSON, in words; None where nothing is."""
    fault = _check(net, MEASURED, f"{name}.")
    if fault is None and (net["nonzero"] > net["params"] or net["effective_macs"] > net["macs"]):
        return f"'{name}' has more nonzero than params, or more effective_macs than macs"
    return fault


def is_measurement(net: Any) -> bool:
    """Whether JSON holds a valid ``Measurement``."""
    return _net_fault(net, "net") is None


def is_training(facts: dict[str, Any]) -> bool:
    """Whether JSON holds what is kept beside a trained dense net: meter, curve and recipe."""
    return _check(facts, {**{name: RECORDED[name] for name in ("meter", "curve")}, "recipe": TABLE}, "") is None


def _check(data: Any, rules: dict, prefix: str) -> str | None:
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__} where an object is expected"
    if data.keys() != rules.keys():
        unknown, missing = sorted(data.keys() - rules.keys()), sorted(rules.keys() - data.keys())
        return (
            f"it has the unknown field '{prefix}{json.dumps(unknown[0])[1:-1]:.60}'"
            if unknown
            else f"it has no '{prefix}{missing[0]}'"
        )
    for name, (holds, expected) in rules.items():
        if not holds(data[name]):
            return f"'{prefix}{name}' is {json.dumps(data[name])[:60]}, but {expected} is expected"
    return None


# -------------------------------------------------------------------------------------------------- staleness


def code_version(method: str, methods_dir: str | Path) -> dict[str, Any]:
    """``code_hash`` and ``kit_versions`` of a method as its file stands now: what a new record's provenance holds."""
    path = next(iter(sorted(Path(methods_dir).glob(f"*/{method}.py"))), None)
    if path is None:
        raise UserError(f"There is no file {method}.py in a folder of {methods_dir}.")
    return {"code_hash": code_hash(path), "kit_versions": kit_versions(path)}


def is_stale(record: Record, methods_dir: str | Path) -> bool:
    """Whether the code that made the record has changed since, or is gone."""
    return bool(stale_ids([record], methods_dir))


def stale_ids(records: Iterable[Record], methods_dir: str | Path) -> set[str]:
    """The ids of the stale ones; every method's file is read once."""
    now: dict[str, dict | None] = {}
    stale = set()
    for record in records:
        if record.method not in now:
            try:
                now[record.method] = code_version(record.method, methods_dir)
            except UserError:
                now[record.method] = None
        made = {key: record.provenance[key] for key in ("code_hash", "kit_versions")}
        if made != now[record.method]:
            stale.add(record.id)
    return stale


def code_hash(path: str | Path) -> str:
    """Hash of what ``compress`` runs in its file: comments, docstrings, type hints, field defaults (a record holds its
    own hyper-parameters), paper, reported, recipes and claims do not count, nor definitions that nothing else uses."""
    pieces = [(names, *_shape(node)) for names, node in _pieces(_parse(path))]
    reached: set[str] = set()
    used: set[str] = set()
    grows = True
    while grows:
        grows = False
        for names, shape, mentions in pieces:
            if shape not in used and (names is None or names & reached):
                used.add(shape)
                reached |= mentions
                grows = True
    return hashlib.sha256("\n".join(sorted(used)).encode()).hexdigest()[:16]


def kit_versions(path: str | Path) -> dict[str, int]:
    """``VERSION`` of ``baselines/task.py`` and of each ``methods/kit`` file that the method imports, also through
    another one."""
    methods_dir = Path(path).resolve().parent.parent
    versions = {"task": _version(methods_dir.parent / "baselines" / "task.py")}
    todo = [Path(path)]
    while todo:
        source = todo.pop()
        for name in _kit_imports(_parse(source), source.resolve().parent.name):
            kit = methods_dir / "kit" / f"{name}.py"
            if f"kit/{name}" not in versions and kit.is_file():
                versions[f"kit/{name}"] = _version(kit)
                todo.append(kit)
    return dict(sorted(versions.items()))


_tree = functools.lru_cache(maxsize=256)(ast.parse)  # of a file's bytes; nothing changes a tree


def _parse(path: str | Path) -> ast.Module:
    try:
        return _tree(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"The file {path} cannot be read: {error.strerror}.") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"The file {path} is not valid Python: {error}.") from error


def _version(path: Path) -> int:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["VERSION"]:
            value = getattr(node.value, "value", None)
            if _whole(value):
                return value
    raise UserError(f"The file {path} has no VERSION: add the line 'VERSION = 1'.")


def _kit_imports(tree: ast.Module, folder: str) -> set[str]:
    """The stems of ``methods/kit`` files that a module of ``methods/<folder>`` imports, anywhere in it."""
    dotted = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["methods", folder][: 3 - node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            dotted += [f"{base}.{alias.name}" for alias in node.names]
    return {match[1] for match in map(KIT_MODULE.match, dotted) if match}


def _pieces(tree: ast.Module) -> Iterator[tuple[set[str] | None, ast.AST]]:
    """A module's statements, each with the names through which others reach it; None: it always counts."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                source = ast.Name(id=f"{getattr(node, 'level', 0)} {getattr(node, 'module', '')}")
                yield {alias.asname or alias.name.split(".")[0]}, ast.Tuple(elts=[source, alias])
        elif isinstance(node, ast.ClassDef) and any(_named(base, "Method") for base in node.bases):
            yield None, _without_data(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield {node.name} | _ids(node.decorator_list), node
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield _ids(targets), node
        elif not (isinstance(node, ast.If) and _named(node.test, "TYPE_CHECKING")):
            yield None, ast.Module(body=[node])


def _ids(nodes: list[ast.expr]) -> set[str]:
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def _named(node: ast.AST, name: str) -> bool:
    return getattr(node, "id", getattr(node, "attr", None)) == name


def _without_data(node: ast.ClassDef) -> ast.ClassDef:
    """The class of a method without its paper, reported rows, recipes, claims and field defaults."""
    body = []
    for item in node.body:
        targets = getattr(item, "targets", [getattr(item, "target", None)])
        if any(_named(target, name) for target in targets for name in CLASS_DATA):
            continue
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.dump(item.annotation):
            item = ast.AnnAssign(target=item.target, annotation=item.annotation, simple=1)
        body.append(item)
    return ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": body})


def _shape(node: ast.AST) -> tuple[str, set[str]]:
    """A text that stands for the code of a node, the same in every Python version, and the names it mentions."""
    mentions: set[str] = set()

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ",".join(text(v) for v in value if not _is_text(v)) + "]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, ast.Name):
            mentions.add(value.id)
        fields = [(k, v) for k, v in ast.iter_fields(value) if k not in IGNORED and v is not None and v != []]
        return f"{type(value).__name__}(" + ",".join(f"{k}={text(v)}" for k, v in fields) + ")"

    return text(node), mentions


def _is_text(node: Any) -> bool:
    """Whether a statement is a bare string: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
