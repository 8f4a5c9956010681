"""From a configuration to a record: the runner, its cache, its dense nets, and starting from another record."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import weights
from baselines.data import DataOptions
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain
from methods.base import Method
from methods.controls.random_filter import RandomFilter
from methods.filter_pruning.l1_filter import L1Filter
from repro import measure, packed, record
from repro.config import BaselineOptions, DeviceOptions, ResultsOptions, RunConfig
from repro.ground import dense_net, prepare
from repro.registry import method_class
from repro.run import run, train_dense

SHAPES = ("name", "dense", "compressed")


def config(tmp_path, method=None, baseline="tiny_plain_synthetic", budget="short", weights_file=None, **options):
    return RunConfig(
        method=method or L1Filter(ratio=0.5),
        baseline=BaselineOptions(baseline, weights_file, options.pop("teacher", None)),
        data=DataOptions(holdout=options.pop("holdout", False)),
        budget=budget,
        results=ResultsOptions(str(tmp_path / "results")),
        device=DeviceOptions(precision="fp32", channels_last=False),
        cache=str(tmp_path / "cache"),
        latency=options.pop("latency", 0.0),
        **options,
    )


def test_a_run_writes_a_valid_record_of_what_it_measured(tmp_path):
    made = run(config(tmp_path, latency=0.01))
    path = tmp_path / "results" / "records" / made.place()
    kept = record.load(path)
    assert record.plain(kept.__dict__ | {"dense": 0, "compressed": 0}) == record.plain(
        made.__dict__ | {"dense": 0, "compressed": 0}
    )
    assert kept.dense.params == 5872 and kept.compressed.params < 0.6 * kept.dense.params
    assert kept.meter["train_calls"] == 1 and kept.meter["steps"] == 8 and kept.after_compression["top1"] > 0
    (layer,) = (layer for layer in kept.layers if layer["name"] == "features.0")
    assert (layer["dense"], layer["compressed"], layer["params"]) == ([8, 3], [4, 3], [8 * 28, 4 * 28])
    assert layer["macs"] == [8 * 27 * 256, 4 * 27 * 256] and layer["bit_ops"] == [1024 * n for n in layer["macs"]]
    assert kept.compressed.bit_ops == 1024 * kept.compressed.macs and kept.dense.bit_ops == 1024 * kept.dense.macs
    assert kept.starts_from == "trained" and not kept.given_weights and kept.status == "ok"
    assert set(kept.provenance["data_sha256"]) == {"x_train", "y_train", "x_test", "y_test"}
    assert 4 * kept.compressed.params < kept.compressed.bytes < kept.dense.bytes
    assert (
        kept.compressed.bits == 32 * kept.compressed.params and 0 < kept.compressed.onnx_bytes < kept.dense.onnx_bytes
    )
    assert record.stored_bits(kept.stored) == 8 * kept.compressed.bytes
    old, new = kept.dense, kept.compressed
    mac = {"params": new.params, "macs": new.macs, "dense_params": old.params, "dense_macs": old.macs}
    assert kept.counted["mac"] == mac and set(kept.counted) == {"mac", "two_per_mac", "nonzero", "hrank_out_only"}
    assert [(c["batch"], c["rounds"] >= 3) for c in kept.latency["cells"][:2]] == [(1, True), (64, True)]
    assert kept.latency["kernel"] == "dense"


def test_layers_that_were_clamped_are_on_the_record(tmp_path):
    made = run(config(tmp_path, L1Filter(ratio=0.95)))
    kept = record.load(tmp_path / "results" / "records" / made.place())
    assert kept.details["clamped"] == ["features.0", "features.4"] and kept.compressed.top1 is not None


def test_running_again_replaces_and_another_seed_adds(tmp_path):
    first, again, other = (run(config(tmp_path, seed=s)) for s in (0, 0, 1))
    assert first.id == again.id != other.id and first.compressed == again.compressed
    records, problems = record.load_all(tmp_path / "results")
    assert len(records) == 2 and not problems


def test_the_dense_net_is_trained_once_and_measured_once(tmp_path, monkeypatch):
    run(config(tmp_path))
    monkeypatch.setattr("baselines.task.Task.train_dense", lambda *_: pytest.fail("trained again"))
    ground = prepare(config(tmp_path))
    assert len([*(ground.cache / "dense").iterdir()]) == len([*(ground.cache / "measured").iterdir()]) == 1
    run(config(tmp_path, RandomFilter(ratio=0.25)))
    assert not [*(ground.cache / "journal").iterdir()], "a finished run leaves no journal"


def test_a_damaged_dense_net_in_the_cache_is_refused(tmp_path):
    run(config(tmp_path))
    (path,) = (tmp_path / "cache" / "dense").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        run(config(tmp_path))


def test_given_weights_are_used_and_the_record_says_so(tmp_path):
    ground = prepare(config(tmp_path))
    file = weights.save(dense_net(ground).model, tmp_path / "mine.safetensors")
    made = run(config(tmp_path, weights_file=str(file), budget="zero"))
    assert made.given_weights and made.meter["steps"] == 0 and made.after_compression is None
    assert made.provenance["dense_sha256"] == weights.digest(weights.read(file)[0])
    with pytest.raises(UserError, match="weights of another net than tiny_resnet_synthetic"):
        run(config(tmp_path, baseline="tiny_resnet_synthetic", weights_file=str(file)))
    with pytest.raises(UserError, match="There is no weights file"):
        run(config(tmp_path, weights_file=str(tmp_path / "none.safetensors")))


def test_train_writes_its_own_record_with_its_curve(tmp_path):
    made = train_dense(config(tmp_path))
    assert made.kind == "train" and made.starts_from == "scratch" and made.meter["steps"] == 16
    assert len(made.curve) == 16 and made.curve[0][1] > made.curve[-1][1]
    assert train_dense(config(tmp_path)).curve == made.curve, "the second call takes it from the cache"
    with pytest.raises(UserError, match="budget=zero trains nothing"):
        train_dense(config(tmp_path, budget="zero"))


def test_a_run_can_start_from_another_record(tmp_path):
    parent = run(config(tmp_path))
    child = run(config(tmp_path, L1Filter(ratio=0.25), start=parent.id))
    assert child.parent == parent.id and child.compressed.params < parent.compressed.params
    assert child.dense == parent.dense, "both stand beside the same dense net"
    with pytest.raises(UserError, match="start=abc: there is no such record"):
        run(config(tmp_path, start="abc"))
    with pytest.raises(UserError, match="is a run on tiny_plain_synthetic, not on tiny_resnet_synthetic"):
        run(config(tmp_path, baseline="tiny_resnet_synthetic", start=parent.id))
    for file in packed.files(tmp_path / "cache" / "nets" / parent.id):
        file.unlink()
    with pytest.raises(UserError, match="is not in the cache"):
        run(config(tmp_path, start=parent.id))


@pytest.mark.parametrize("baseline", ["tiny_plain_synthetic", "tiny_resnet_synthetic"])
def test_measure_gives_the_same_figures_from_the_kept_net(tmp_path, baseline):
    made = run(config(tmp_path, baseline=baseline))
    path = tmp_path / "results" / "records" / made.place()
    before = json.loads(path.read_text())
    assert measure.refresh(config(tmp_path, baseline=baseline)) == ([path], [])
    assert json.loads(path.read_text()) == before


def test_measure_fills_in_what_an_older_version_did_not_measure(tmp_path):
    runs = [run(config(tmp_path, seed=seed)) for seed in (0, 1)]
    for made in runs:
        old = replace(
            made, counted={}, latency=None, stored=None, layers=[{k: layer[k] for k in SHAPES} for layer in made.layers]
        )
        old.compressed = replace(made.compressed, bit_ops=None, onnx_bytes=None)
        old.dense = replace(made.dense, bit_ops=None, onnx_bytes=None)
        old.save(tmp_path / "results")
    paths, left = measure.refresh(config(tmp_path, latency=0.01))
    again = {r.seed: r for r in record.load_all(tmp_path / "results")[0]}
    assert len(paths) == 2 and not left
    for made in runs:
        assert again[made.seed].latency["cells"]
        assert replace(again[made.seed], latency=None) == made


def test_latency_alone_can_be_measured_again(tmp_path, monkeypatch):
    made = run(config(tmp_path))
    assert made.latency is None
    monkeypatch.setattr(measure, "accuracy", lambda *_: pytest.fail("the test set was gone through again"))
    ((path,), left) = measure.refresh(config(tmp_path, latency=0.01, only="latency"))
    again = record.load(path)
    assert again.latency["cells"] and replace(again, latency=None) == made and not left


def test_latency_is_measured_where_it_is_missing(tmp_path):
    train_dense(config(tmp_path))  # has no latency
    timed, untimed = (run(config(tmp_path, seed=seed, latency=latency)) for seed, latency in ((0, 0.01), (1, 0.0)))
    assert timed.latency["cells"] and untimed.latency is None
    ((path,), left) = measure.refresh(config(tmp_path, latency=0.01, only="untimed"))
    again = record.load(path)
    assert again.latency["cells"] and replace(again, latency=None) == untimed and not left
    assert measure.refresh(config(tmp_path, latency=0.01, only="untimed")) == ([], [])


def test_measure_fills_in_the_record_of_a_dense_training(tmp_path):
    made = train_dense(config(tmp_path))
    bare = replace(made.dense, bit_ops=None, onnx_bytes=None)
    replace(made, dense=bare, compressed=bare, layers=[]).save(tmp_path / "results")
    paths, left = measure.refresh(config(tmp_path))
    assert len(paths) == 1 and not left
    assert record.load(paths[0]) == made and made.dense.onnx_bytes and made.layers


def test_measure_leaves_a_record_alone_whose_nets_are_gone(tmp_path):
    made = run(config(tmp_path))
    path = tmp_path / "results" / "records" / made.place()
    before = path.read_text()
    for file in (tmp_path / "cache" / "dense").iterdir():
        file.unlink()
    paths, (sentence,) = measure.refresh(config(tmp_path))
    assert not paths and path.read_text() == before
    assert made.id in sentence and "its dense net is not in the cache: give it with baseline.weights=FILE" in sentence
    assert not any((tmp_path / "cache" / "dense").iterdir()), "nothing is trained to measure"


def test_a_net_that_cannot_be_kept_is_told_and_its_record_is_not_lost(tmp_path):
    class Odd(torch.nn.Sequential):
        """Not a class of the project: no description gives it back."""

    @dataclass
    class Wraps(Method):
        """Returns a net of its own class."""

        def compress(self, model, task):
            return Odd(model)

    Wraps.__module__ = "methods.controls.dense"
    with pytest.raises(UserError, match="Odd"):
        run(config(tmp_path, Wraps()))
    ((kept,), problems) = record.load_all(tmp_path / "results")
    assert kept.compressed.params == kept.dense.params and not problems


def test_another_teacher_and_holdout_are_part_of_the_identity(tmp_path):
    from baselines import base

    file = weights.save(base.load("tiny_plain_synthetic").net(4), tmp_path / "teacher.safetensors")
    plain, taught, held = (run(config(tmp_path, **o)) for o in ({}, {"teacher": str(file)}, {"holdout": True}))
    assert len({plain.id, taught.id, held.id}) == 3
    assert plain.validation_seen and not held.validation_seen


@pytest.mark.parametrize("sibling", [None, "student"])
def test_the_given_teacher_is_the_one_that_teaches(sibling, tmp_path, monkeypatch):
    """Its weights are those of the file, not the dense net's; without a file it is the dense net."""
    from baselines import base

    here = base.load("tiny_plain_synthetic")
    monkeypatch.setattr(base, "load", lambda name: replace(here, siblings={"student": here.student}))
    seen = []

    @dataclass
    class Looks(Method):
        """Looks at its teacher and changes nothing."""

        def compress(self, model, task):
            pairs = zip(model.parameters(), task.teacher.parameters(), strict=True)
            seen.append((copy.deepcopy(task.teacher), all(torch.equal(a, b) for a, b in pairs)))
            return model

    Looks.__module__ = "methods.controls.dense"
    net = (here.student if sibling else here.net)(4)
    file = weights.save(net, tmp_path / "teacher.safetensors")
    run(config(tmp_path, Looks()))
    run(config(tmp_path, Looks(), teacher=str(file)))
    assert [same for _, same in seen] == [True, False] and not seen[1][0].training
    for key, value in net.state_dict().items():
        assert torch.equal(seen[1][0].state_dict()[key], value)
    with pytest.raises(UserError, match=r"weights of another net .* a sibling \(student\)"):
        run(config(tmp_path, Looks(), teacher=str(weights.save(TinyPlain(4, hidden=7), tmp_path / "odd.safetensors"))))


@pytest.mark.parametrize("net, params", [("lenet300_mnist", 266_610), ("lenet5_mnist", 431_080)])
def test_the_lenets_run_on_all_of_mnist(tmp_path, monkeypatch, net, params):
    random, arrays = np.random.RandomState(0), {}
    for part, n in (("train", 130), ("test", 70)):
        arrays[f"x_{part}"] = random.randint(0, 256, (n, 28, 28, 1), np.uint8)
        arrays[f"y_{part}"] = np.arange(n, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    recipe = method_class("deep_compression").recipes[net]
    made = run(config(tmp_path, method_class("deep_compression")(**recipe), net, budget="smoke"))
    assert (made.status, made.options["data"], made.dense.params) == ("ok", "mnist", params)
    assert made.compressed.nonzero < 0.1 * params


def test_a_loss_that_is_not_a_number_is_a_visible_record(tmp_path):
    made = run(config(tmp_path, L1Filter(ratio=0.5, lr=1e15)))
    assert made.status == "diverged"
    assert record.load(tmp_path / "results" / "records" / made.place()).status == "diverged"


def test_unknown_devices_and_budgets_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no baseline 'vgg17'"):
        prepare(config(tmp_path, baseline="vgg17"))
    with pytest.raises(UserError, match="has no budget 'paper'"):
        prepare(config(tmp_path, baseline="lenet5_mnist5k", budget="paper"))
    if not torch.cuda.is_available():
        cfg = config(tmp_path)
        cfg.device.name = "cuda"
        with pytest.raises(UserError, match=r"device.name=cuda, but torch sees no such device"):
            prepare(cfg)


def test_no_absolute_path_gets_into_a_record(tmp_path):
    made = run(config(tmp_path))
    text = Path(tmp_path / "results" / "records" / made.place()).read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text
