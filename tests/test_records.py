"""Records: what is written is what is read, nothing bad is trusted, and only changed code makes one stale."""

import dataclasses
import json
import os

import pytest
import torch

from baselines.errors import UserError
from repro.record import (
    Measurement,
    Record,
    code_hash,
    code_version,
    identity,
    is_stale,
    kit_versions,
    load,
    load_all,
    stale_ids,
)


def measured(top1=90.0, params=1000, macs=100_000, **more):
    return Measurement(top1=top1, params=params, nonzero=params, macs=macs, effective_macs=macs, **more)


def a_record(**changes):
    """A valid record of a run of the method ``fake``; ``changes`` replace its fields."""
    fields = {
        "kind": "run",
        "method": "fake",
        "family": "filter_pruning",
        "baseline": "vgg16_cifar10",
        "budget": "short",
        "seed": 0,
        "hyperparameters": {"ratio": 0.5},
        "options": {"data": "cifar10", "holdout": False},
        "dense": measured(93.5, top5=99.5, bits=32_000, bytes=4_100),
        "compressed": measured(92.25, params=500, macs=40_000, top5=99.0, bits=16_000, bytes=2_050),
        "after_compression": {"top1": 41.5, "top5": 80.0},
        "details": {"clamped": ["features.0"], "kept": {"features.0": 1}},
        "layers": [{"name": "features.0", "dense": [64, 3], "compressed": [1, 3]}],
        "meter": {"train_calls": 1, "steps": 782, "images": 100_000, "epochs": 2.0, "validations": 0, "seconds": 9.5},
        "curve": [[0, 2.5, 0.01], [781, 0.25, 0.0]],
        "provenance": {"dense_sha256": "ab" * 32, "code_hash": "c0de", "kit_versions": {"task": 1}, "commit": None},
    }
    return Record(**{**fields, **changes})


CELL = {"threads": 1, "batch": 64, "rounds": 9, "dense_ms": 2.0, "dense_spread_ms": 0.1}
CELL |= {"compressed_ms": 1.0, "compressed_spread_ms": 0.0}
LATENCY = {"runtime": "onnxruntime 1.32.0", "device": "cpu", "load": 0.25, "loaded": False, "kernel": "dense"}
LATENCY |= {"cells": [CELL]}
COUNTED = {"two_per_mac": {"params": 500, "macs": 80_000, "dense_params": 1_000, "dense_macs": 200_000}}
STORED = {
    "header": 400,
    "plain": 16_000 - 420,
    "tensors": {
        "a.weight": {"entries": 30, "values": [180, 132], "positions": [150, 111], "codebook": [128, 128]}
        | {"tables": [0, 42], "padding": [6, 7]}
    },
}  # of 16,400 bits
LAYERS = [
    {"name": "a", "dense": [8, 3], "compressed": None, "params": [24, 0], "nonzero": [24, 0], "macs": [96, 0]}
    | {"bit_ops": [98_304, 0]}
]


# ------------------------------------------------------------------------------------------------ write and read


def test_what_is_written_is_what_is_read(tmp_path):
    record = a_record(recipe="vgg16_cifar10/a", counted=COUNTED, latency=LATENCY, stored=STORED, layers=LAYERS)
    path = record.save(tmp_path)
    assert path == tmp_path / "records" / "vgg16_cifar10" / "short" / "fake" / f"{record.id}.json"
    assert load(path) == record
    assert load_all(tmp_path) == ([record], [])
    assert os.listdir(path.parent) == [path.name]


def test_a_record_of_schema_1_is_read_as_one_of_today(tmp_path):
    record = a_record()
    path = record.save(tmp_path)

    def age(data):
        data["schema_version"] = 1
        del data["latency"]
        for name in ("dense", "compressed"):
            del data[name]["onnx_bytes"]
            data[name]["latency_ms"] = None

    broken(path, age)
    assert load(path) == record


def test_a_record_from_before_the_parts_of_its_file_is_whole(tmp_path):
    path = a_record(stored=STORED).save(tmp_path)
    broken(path, lambda data: data.pop("stored"))
    assert load(path) == a_record() and load(path).stored is None


def test_the_file_diffs_well(tmp_path):
    text = a_record().save(tmp_path).read_text()
    keys = list(json.loads(text))
    assert keys == sorted(keys) and text.endswith("}\n") and text.count("\n") > len(keys)


def test_running_again_replaces(tmp_path):
    a_record().save(tmp_path)
    better = a_record(compressed=measured(93.0, params=500, macs=40_000), details={})
    better.save(tmp_path)
    assert load_all(tmp_path) == ([better], [])


def test_a_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch):
    old = a_record()
    old.save(tmp_path)

    def crash(source, target):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="killed"):
        a_record(details={}).save(tmp_path)
    assert load_all(tmp_path) == ([old], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "train"},
        {"method": "other"},
        {"baseline": "resnet56_cifar10"},
        {"budget": "paper"},
        {"seed": 1},
        {"hyperparameters": {"ratio": 0.25}},
        {"options": {"data": "cifar10", "holdout": True}},
        {"given_weights": True},
        {"parent": "0123456789ab"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_asked_for_decides_the_id(changes):
    assert a_record(**changes).id != a_record().id


def test_results_do_not_change_the_id():
    elsewhere = {**a_record().provenance, "dense_sha256": "cd" * 32, "code_hash": "new", "created": "2030-01-01"}
    same = a_record(compressed=measured(10.0), provenance=elsewhere, status="diverged", recipe="vgg16_cifar10")
    assert same.id == a_record().id
    one, other = (a_record(given_weights=True, provenance=p) for p in (elsewhere, a_record().provenance))
    assert one.id != other.id


def test_the_id_is_known_before_the_run():
    record = a_record(hyperparameters={"rates": (0.1, 0.2)}, given_weights=True)
    asked = {f: getattr(record, f) for f in ("method", "baseline", "budget", "seed", "options", "parent")}
    assert record.id == identity(**asked, hyperparameters={"rates": [0.1, 0.2]}, weights="ab" * 32)
    assert len(record.id) == 12


def test_a_diverged_run_has_null_for_what_is_not_a_number(tmp_path):
    nan = float("nan")
    record = a_record(
        status="diverged",
        compressed=measured(nan, top5=float("inf")),
        curve=[[0, 2.5, 0.1], [1, nan, 0.1]],
        details={"norms": (1.0, nan), "loss": torch.tensor(2.0)},
    )
    back = load(record.save(tmp_path))
    assert (back.compressed.top1, back.compressed.top5) == (None, None)
    assert back.curve[1] == [1, None, 0.1]
    assert back.details == {"norms": [1.0, None], "loss": 2.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "../../escaped"}, "'method'"),
        ({"baseline": "a/b"}, "'baseline'"),
        ({"budget": ".."}, "'budget'"),
        ({"compressed": measured(None)}, "its status is ok but a top1 is null"),
        ({"details": {"model": torch.nn.ReLU()}}, "cannot hold a ReLU"),
        ({"details": {"map": torch.zeros(2)}}, "cannot hold a Tensor"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        a_record(**changes).save(tmp_path / "results")
    assert list(tmp_path.rglob("*")) == []


# ----------------------------------------------------------------------------------------------------- bad files


def broken(path, change):
    """The record at ``path`` rewritten after ``change`` was applied to its JSON."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def stored(**changes):
    """The parts of a file whose tensor says something else."""
    return {**STORED, "tensors": {"a.weight": STORED["tensors"]["a.weight"] | changes}}


BAD = {
    "unknown field": (lambda d: d.update(extra=1), "the unknown field 'extra'"),
    "missing field": (lambda d: d.pop("meter"), "no 'meter'"),
    "unknown measurement": (lambda d: d["dense"].update(top2=1), "the unknown field 'dense.top2'"),
    "number as text": (lambda d: d.update(seed="0"), "'seed' is \"0\", but a whole number"),
    "flag as number": (lambda d: d.update(seed=True), "'seed' is true"),
    "negative": (lambda d: d["compressed"].update(params=-1), "'compressed.params' is -1"),
    "beyond counting": (lambda d: d["compressed"].update(macs=10**400), "'compressed.macs'"),
    "over 100 %": (lambda d: d["compressed"].update(top1=100.5), "'compressed.top1' is 100.5, but a percentage"),
    "huge accuracy": (lambda d: d["compressed"].update(top1=10**400), "'compressed.top1'"),
    "more nonzero than params": (lambda d: d["dense"].update(nonzero=1001), "more nonzero than params"),
    "unknown budget": (lambda d: d.update(budget="long"), "one of smoke, zero, short, paper"),
    "other schema": (lambda d: d.update(schema_version=3), "'schema_version' is 3"),
    "a layer with half its costs": (lambda d: d["layers"][0].update(params=[1, 2]), "'layers'"),
    "a layer of three dimensions": (lambda d: d["layers"][0].update(dense=[1, 2, 3]), "'layers'"),
    "a layer without a name": (lambda d: d["layers"][0].update(name=None), "'layers'"),
    "a layer without a dense shape": (lambda d: d["layers"][0].update(dense=None), "'layers'"),
    "latency without cells": (lambda d: d.update(latency={"runtime": "x"}), "'latency'"),
    "latency of nothing": (lambda d: d.update(latency={**LATENCY, "cells": [{**CELL, "dense_ms": 0}]}), "'latency'"),
    "unknown kernel": (lambda d: d.update(latency={**LATENCY, "kernel": "fast"}), "'latency'"),
    "a file without its header": (lambda d: d.update(stored={"plain": 1, "tensors": {}}), "'stored'"),
    "a file of negative size": (lambda d: d.update(stored={**STORED, "plain": -1}), "'stored'"),
    "a file of tensors without names": (lambda d: d.update(stored={**STORED, "tensors": []}), "'stored'"),
    "half a tensor": (lambda d: d.update(stored=stored(padding=[1])), "'stored' is"),
    "a tensor with broken bits": (lambda d: d.update(stored=stored(values=[180, 132.5])), "'stored' is"),
    "a tensor with unknown parts": (lambda d: d.update(stored=stored(signs=[1, 1])), "'stored' is"),
    "a tensor of no weights": (lambda d: d.update(stored=stored(entries=None)), "'stored' is"),
    "parts of another file": (lambda d: d.update(stored=stored(values=[180, 133])), "do not add up"),
    "parts of no file": (lambda d: (d.update(stored=STORED), d["compressed"].update(bytes=None)), "do not add up"),
    "path in a name": (lambda d: d.update(method="../x"), "'method' is \"../x\""),
    "edited settings": (lambda d: d["hyperparameters"].update(ratio=0.9), "but what it holds gives"),
    "bad curve": (lambda d: d.update(curve=[[1, 2]]), "'curve'"),
    "bad layer": (lambda d: d.update(layers=[{"name": "a", "dense": "64"}]), "'layers'"),
    "bad counts": (lambda d: d.update(counted={"mac": {"params": 1}}), "'counted'"),
    "bad versions": (lambda d: d["provenance"].update(kit_versions={"task": "1"}), "'provenance'"),
    "weights without hash": (
        lambda d: (d.update(given_weights=True), d["provenance"].update(dense_sha256=None)),
        "null",
    ),
    "ok without accuracy": (lambda d: d["compressed"].update(top1=None), "a top1 is null"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_refused_with_one_sentence(tmp_path, case):
    change, words = BAD[case]
    good, bad = a_record(seed=1), a_record()
    good.save(tmp_path)
    path = bad.save(tmp_path)
    broken(path, change)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("delete it and run it again.")
    assert load_all(tmp_path) == ([good], [str(caught.value)])


@pytest.mark.parametrize(
    "content",
    [b"", b'{"id": ', b"[]", b"null", b"\xff\xfe{}", b'{"seed": NaN}', b"[" * 100_000, b'{"a": ' * 5_000],
    ids=["empty", "truncated", "list", "null", "not text", "NaN", "deep list", "deep object"],
)
def test_what_is_not_a_json_record_is_refused(tmp_path, content):
    path = a_record().save(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not valid") as caught:
        load(path)
    assert load_all(tmp_path) == ([], [str(caught.value)])


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        load(tmp_path / "none.json")
    assert load_all(tmp_path / "nowhere") == ([], [])


def test_a_copy_in_another_folder_is_not_counted_twice(tmp_path):
    record = a_record()
    path = record.save(tmp_path)
    copy = tmp_path / "records" / "vgg16_cifar10" / "paper" / "fake" / path.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(path.read_bytes())
    (path.parent / f".{path.name}.1.part").write_text("half a rec")
    records, problems = load_all(tmp_path)
    assert records == [record]
    assert len(problems) == 1 and f"The record {copy} lies in the wrong place: move it to {path}." == problems[0]


# ----------------------------------------------------------------------------------------------------- staleness

METHOD = '''"""A fake paper.

Deviations
- none of note
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from methods.base import Method, Paper, Reported
from methods.kit.surgery import remove, select

if TYPE_CHECKING:
    from baselines.task import Task

RATES = (0.1, 0.2)
SCALE = 2.0


@dataclass
class Fake(Method):
    """Prunes."""

    paper: ClassVar[Paper] = Paper("T", "A", "V", "https://example.org")
    reported = (Reported("vgg16_cifar10", "a", "Table 1", top1=93.0),)
    recipes = {"vgg16_cifar10": {"rates": RATES}}

    rates: tuple[float, ...] = (0.5,)

    def compress(self, model: torch.nn.Module, task: Task) -> torch.nn.Module:
        """The algorithm."""
        keep, _ = select(scores(model), self.rates)  # Eq. 1
        return remove(model, task.example, keep)


def scores(model):
    """Norms."""
    return {name: norm(p) for name, p in model.named_parameters()}


def norm(weight: torch.Tensor) -> torch.Tensor:
    return SCALE * weight.abs().sum()


def unused():
    return 1
'''

NOTHING = {
    "a comment": ("# Eq. 1", "# Eq. 2, as printed"),
    "a docstring": ("The algorithm.", "The algorithm box."),
    "the file's docstring": ("- none of note", "- one\n- two"),
    "a removed docstring": ('    """Norms."""\n', ""),
    "a reported row": ("top1=93.0", "top1=92.9"),
    "the paper": ('"https://example.org"', '"https://example.org/2"'),
    "a claim": ("    rates: tuple", '    claims = (Claim("better", "Table 1", Select("fake")),)\n\n    rates: tuple'),
    "a recipe": ('{"rates": RATES}', '{"rates": (0.9,)}'),
    "a table that only a recipe uses": ("RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)"),
    "the default of a hyper-parameter": ("= (0.5,)", "= (0.4,)"),
    "a type hint": ("weight: torch.Tensor", "weight: object"),
    "a function that nothing calls": ("return 1", "return 2"),
    "an import that nothing uses": ("import torch\n", "import math\n\nimport torch\n"),
    "blank lines": ("\n\n\n", "\n\n\n\n"),
}
SOMETHING = {
    "compress": ("self.rates)", "self.rates[::-1])"),
    "a helper": ("for name, p in", "for name, p in reversed"),
    "a helper's helper": (".abs()", ".square()"),
    "a constant of a helper": ("SCALE = 2.0", "SCALE = 3.0"),
    "where a helper comes from": ("from methods.kit.surgery import remove", "from methods.kit.masks import remove"),
    "a hyper-parameter": ("rates: tuple", "ratios: tuple"),
    "a constant of the class": ('    recipes = {"', '    EPS = 1e-6\n    recipes = {"'),
    "a helper defined twice": ("def unused", "def norm(w):\n    return w.max()\n\n\ndef unused"),
}


@pytest.fixture
def tree(tmp_path):
    """A project with the method above; surgery imports masks, quant stands alone."""
    files = {
        "methods/filter_pruning/fake.py": METHOD,
        "methods/kit/surgery.py": "from methods.kit import masks\n\nVERSION = 3\n",
        "methods/kit/masks.py": "VERSION = 2\n",
        "methods/kit/quant.py": "VERSION = 9\n",
        "baselines/task.py": "VERSION = 5\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"the edit '{old}' does not apply"
    path.write_text(text.replace(old, new))


def fresh(tree, **changes):
    made = code_version("fake", tree / "methods")
    return a_record(provenance={**a_record().provenance, **made}, **changes)


@pytest.mark.parametrize("what", NOTHING)
def test_words_and_class_data_make_nothing_stale(tree, what):
    record = fresh(tree)
    edit(tree / "methods/filter_pruning/fake.py", *NOTHING[what])
    assert not is_stale(record, tree / "methods")


@pytest.mark.parametrize("what", SOMETHING)
def test_changed_code_makes_a_record_stale(tree, what):
    record = fresh(tree)
    edit(tree / "methods/filter_pruning/fake.py", *SOMETHING[what])
    assert is_stale(record, tree / "methods")


@pytest.mark.parametrize("part", ["baselines/task.py", "methods/kit/surgery.py", "methods/kit/masks.py"])
def test_a_new_version_of_a_used_part_makes_a_record_stale(tree, part):
    record = fresh(tree)
    edit(tree / part, "VERSION = ", "VERSION = 1")
    assert is_stale(record, tree / "methods")


def test_parts_that_are_not_used_do_not_count(tree):
    record = fresh(tree)
    edit(tree / "methods/kit/quant.py", "VERSION = 9", "VERSION = 10")
    edit(tree / "methods/kit/surgery.py", "VERSION = 3\n", "VERSION = 3\nOTHER = 1\n")
    assert not is_stale(record, tree / "methods")
    assert record.provenance["kit_versions"] == {"kit/masks": 2, "kit/surgery": 3, "task": 5}


@pytest.mark.parametrize(
    "line",
    [
        "from methods.kit import masks",
        "import methods.kit.masks as m",
        "from methods.kit.masks import keep",
        "from ..kit.masks import keep",
        "from ..kit import masks",
        "def f():\n    from methods.kit.masks import keep",
    ],
)
def test_every_way_to_import_a_kit_file_is_seen(tree, line):
    path = tree / "methods/filter_pruning/fake.py"
    path.write_text(line + "\n")
    assert kit_versions(path) == {"kit/masks": 2, "task": 5}


def test_a_method_that_moved_is_fresh_and_one_that_is_gone_or_broken_is_stale(tree):
    record, path = fresh(tree), tree / "methods/filter_pruning/fake.py"
    (tree / "methods/controls").mkdir()
    moved = path.rename(tree / "methods/controls/fake.py")
    assert not is_stale(record, tree / "methods")
    moved.write_text("def compress(:\n")
    assert is_stale(record, tree / "methods")
    moved.unlink()
    assert is_stale(record, tree / "methods")
    other = dataclasses.replace(record, method="other", id="")
    assert stale_ids([record, other], tree / "methods") == {record.id, other.id}


def test_a_part_without_a_version_and_a_file_that_is_not_python_are_named(tree):
    (tree / "methods/kit/surgery.py").write_text("version = 1\n")
    with pytest.raises(UserError, match=r"surgery\.py has no VERSION: add the line 'VERSION = 1'"):
        kit_versions(tree / "methods/filter_pruning/fake.py")
    (tree / "methods/kit/masks.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"masks\.py is not valid Python"):
        code_hash(tree / "methods/kit/masks.py")
    with pytest.raises(UserError, match=r"There is no file nothing\.py"):
        code_version("nothing", tree / "methods")


def test_a_function_registered_by_a_decorator_counts(tree):
    path = tree / "methods/filter_pruning/fake.py"
    edit(path, "def scores(model):", "@functools.singledispatch\ndef scores(model):")
    edit(path, "def unused():", "@scores.register\ndef of_numbers(model: int):")
    record = fresh(tree)
    edit(path, "return 1", "return 2")
    assert is_stale(record, tree / "methods")
