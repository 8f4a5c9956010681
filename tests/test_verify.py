"""A record made again is the same record; one that was altered, or stands on something else, is told."""

import json
import re
from functools import partial

import pytest
import torch
from test_run import config

from baselines.weights import save
from methods.binarization.bnn import BNN
from methods.search.amc import AMC
from methods.weight_sharing.deep_compression import DeepCompression
from repro import record
from repro.__main__ import main
from repro.ground import dense_net, prepare
from repro.provenance import device_name
from repro.run import run, train_dense
from repro.verify import comparable, compare, differences

SOME = (BNN, AMC, DeepCompression)  # test_determinism has all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verify")


def asked(folder, made):
    return main(["verify", f"run={made.id}", f"results.dir={folder / 'results'}", f"cache={folder / 'cache'}"])


def altered(folder, made, **changes):
    """The record's file with other values."""
    path = folder / "results" / "records" / made.place()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("method", SOME, ids=lambda cls: cls.__name__)
def test_the_same_run_gives_the_same_record(folder, method, capsys):
    """Equal in every field but time, latency and provenance."""
    made = run(config(folder, method(), budget="smoke"))
    path = folder / "results" / "records" / made.place()
    before = path.read_bytes()
    assert asked(folder, made) == 0
    assert "holds: every field is equal." in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_dense_training_is_trained_again(folder, monkeypatch):
    made = train_dense(config(folder, budget="smoke"))
    assert asked(folder, made) == 0
    monkeypatch.setattr("baselines.task.SMOKE_STEPS", 3)
    assert asked(folder, made) == 1


def test_another_number_is_named_and_another_machine_has_a_tolerance(folder, capsys):
    made = run(config(folder, budget="smoke", seed=3))
    path = folder / "results" / "records" / made.place()
    compressed = json.loads(path.read_text())["compressed"]
    near, far = ({**compressed, "top1": compressed["top1"] + gap} for gap in (-0.5, -5))
    altered(folder, made, compressed=near)
    assert asked(folder, made) == 1
    told = capsys.readouterr().out
    assert "does not hold: 1 fields differ" in told and f"compressed.top1: {near['top1']} -> " in told
    altered(folder, made, provenance={**made.provenance, "packages": {"torch": "1.0"}})
    assert asked(folder, made) == 0 and "holds within 1 points" in capsys.readouterr().out
    altered(folder, made, compressed=far)
    assert asked(folder, made) == 1 and "compressed.top1" in capsys.readouterr().out


def test_a_record_holds_that_does_not_say_where_the_bits_of_its_file_are(folder, capsys):
    made = run(config(folder, budget="smoke", seed=5))
    altered(folder, made, stored=None)
    assert asked(folder, made) == 0 and "every field is equal" in capsys.readouterr().out
    altered(folder, made, stored=made.stored | {key: made.stored[key] + i for key, i in (("header", 1), ("plain", -1))})
    assert asked(folder, made) == 1 and "stored.header" in capsys.readouterr().out


def test_a_record_holds_from_before_a_counting_rule(folder, capsys):
    made = run(config(folder, budget="smoke", seed=6))
    rules = sorted(made.counted)
    assert len(rules) > 1
    altered(folder, made, counted={rules[0]: made.counted[rules[0]]})
    assert asked(folder, made) == 0 and "every field is equal" in capsys.readouterr().out
    altered(folder, made, counted={rules[0]: {**made.counted[rules[0]], "params": 1}})
    assert asked(folder, made) == 1 and f"counted.{rules[0]}.params: 1 -> " in capsys.readouterr().out


def test_another_cpu_is_another_machine(folder, monkeypatch, capsys):
    """Vector instructions decide the order of sums: torch names them, the kind of processor does not."""
    made = run(config(folder, budget="smoke", seed=7))
    compressed = {**made.compressed.__dict__, "top1": made.compressed.top1 - 0.5}
    for name in ("cpu (x86_64)", "cpu (another, NO AVX)"):
        altered(folder, made, compressed=compressed, provenance={**made.provenance, "device": name})
        assert asked(folder, made) == 0
        assert "holds within 1 points" in (told := capsys.readouterr().out) and "another device" in told
    for instructions in ("AVX2", "AVX512"):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", partial(str, instructions))
        assert re.fullmatch(rf"cpu \(.+, {instructions}\)", device_name(torch.device("cpu")))


def test_what_cannot_be_verified_is_told(folder, capsys):
    made = run(config(folder, budget="smoke", seed=4))
    assert main(["verify", "run=0123456789ab", f"results.dir={folder / 'results'}"]) == 2
    assert "There is no run 0123456789ab" in capsys.readouterr().err
    assert main(["verify"]) == 2 and "verify needs run=" in capsys.readouterr().err
    altered(folder, made, provenance={**made.provenance, "data_sha256": {}})
    assert asked(folder, made) == 2 and "data.root=FOLDER" in capsys.readouterr().err
    altered(folder, made, provenance={**made.provenance, "code_hash": "0"})
    assert asked(folder, made) == 2 and f"The record {made.id} is stale" in capsys.readouterr().err


def test_given_weights_have_to_be_given_again(folder, capsys):
    net = dense_net(prepare(config(folder, budget="smoke"))).model
    file = save(net, folder / "mine.safetensors")
    made = run(config(folder, budget="smoke", weights_file=str(file)))
    assert asked(folder, made) == 2 and "baseline.weights=FILE" in capsys.readouterr().err
    words = [f"run={made.id}", f"results.dir={folder / 'results'}", f"cache={folder / 'cache'}"]
    assert main(["verify", *words, f"baseline.weights={file}"]) == 0


def test_times_do_not_count(folder):
    made = run(config(folder, budget="smoke"))
    other = record.load(folder / "results" / "records" / made.place())
    other.meter["seconds"] += 1
    other.details["search_seconds"] = 5
    assert compare(made, other).holds and not list(differences(comparable(made), comparable(other)))
