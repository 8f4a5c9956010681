"""kill -9 in the middle of a run: started again it ends at the record of the run that nobody killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from dataclasses import replace
from multiprocessing import forkserver

import pytest
import torch
from test_run import config
from test_task import net, task
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from baselines import task as tasks
from baselines.validations import Validations
from methods.distillation.fitnets import FitNets
from methods.filter_pruning.thinet import ThiNet
from methods.search.abcpruner import ABCPruner
from methods.search.combination_pruning import CombinationPruning
from methods.structured_sparsity.gal import GAL
from methods.weight_sharing.deep_compression import DeepCompression
from repro import record
from repro.ground import dense_net, prepare
from repro.measure import measured_dense
from repro.run import journal_name, run
from repro.verify import comparable, differences

METHODS = {  # each trains over several epochs, all but GAL in more than two calls
    "gal": GAL(epochs=3, finetune_epochs=2, updates=4),
    "deep_compression": DeepCompression(epochs=2, centroid_epochs=2, iterations=2),
    "thinet": ThiNet(images=100, epochs=1, last_epochs=2),
    "fitnets": FitNets(hint_epochs=2, epochs=2),
    "abcpruner": ABCPruner(sources=2, cycles=1, search_epochs=1, epochs=2, calibration=100),
}
KILLS = 4  # of each: 20 in all


def work(cfg, moment, diary):
    """Run in a process of its own; SIGKILL at event number ``moment``, after a word on where that was.

    Events: a module's forward pass, an optimiser's step, and both sides of the renaming of a file.
    """
    torch.set_num_threads(1)
    tasks.Journal.SECONDS = -1.0
    seen, where, loop, rename = 0, "between", tasks.Fit._loop, os.replace

    def event(*_):
        nonlocal seen
        seen += 1
        if seen == moment:
            diary.write_text(where)
            os.kill(os.getpid(), signal.SIGKILL)

    def training(fit):
        nonlocal where
        where = "training"
        loop(fit)
        where = "between"

    def renaming(*paths):
        event()
        rename(*paths)
        event()

    tasks.Fit._loop, os.replace = training, renaming
    register_module_forward_hook(event)
    register_optimizer_step_post_hook(event)
    run(cfg)
    diary.write_text(str(seen))


@pytest.fixture(scope="module")
def start():
    """A function that does ``work`` in a child of a server which has done the imports; the exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo", "torch_pruning", "onnx", "onnxruntime"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # some versions of Python give it no other path
        forkserver.ensure_running()

    def go(*words):
        child = context.Process(target=work, args=words)
        child.start()
        child.join(120)
        assert child.exitcode is not None, "it hangs"
        return child.exitcode

    return go


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder whose cache holds the dense net and its measurement."""
    folder = tmp_path_factory.mktemp("dense")
    ground = prepare(config(folder, budget="paper"))
    measured_dense(ground, dense_net(ground))
    return folder


def only_record(folder):
    ((found,), problems) = record.load_all(folder / "results")
    assert not problems
    return comparable(found)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_at_the_same_record(name, start, dense, tmp_path):
    def fresh(folder):
        shutil.copytree(dense / "cache", folder / "cache")
        return config(folder, METHODS[name], budget="paper"), folder / "diary"

    cfg, diary = fresh(tmp_path / "whole")
    assert start(cfg, 0, diary) == 0
    want, events = only_record(tmp_path / "whole"), int(diary.read_text())
    draw, places, again = random.Random(f"kill {name}"), [], []
    for i in range(KILLS):
        cfg, diary = fresh(tmp_path / str(i))
        moment = draw.randrange(events * i // KILLS + 1, events * (i + 1) // KILLS)  # one in each quarter
        assert start(cfg, moment, diary) == -signal.SIGKILL
        places.append(diary.read_text())
        assert start(cfg, 0, diary) == 0
        again.append(int(diary.read_text()))
        assert not list(differences(want, only_record(tmp_path / str(i)))), f"killed at {moment} of {events}"
    assert min(again) < events, f"what was finished is done again (killed: {places})"


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_journal_is_told_and_not_used(tmp_path, harm, capsys):
    want = net()
    task().train(want, 2)
    task(journal=tmp_path).train(net(), 2)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[harm])
    got = net()
    task(journal=tmp_path).train(got, 2)
    assert "is damaged and is not used" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(want.state_dict().values(), got.state_dict().values(), strict=True))


@pytest.fixture
def judging(monkeypatch):
    """The number of nets that a task really validates, counted; a function that lets one of them end the process."""
    measured, last, inner = [], [10**9], tasks.accuracy

    def counted(*words):
        if len(measured) == last[0]:
            raise KeyboardInterrupt
        measured.append(inner(*words))
        return measured[-1]

    monkeypatch.setattr(tasks, "accuracy", counted)
    monkeypatch.setattr(Validations, "SECONDS", -1.0)
    return measured, last


def test_a_killed_search_validates_no_net_again(tmp_path, judging):
    measured, last = judging
    method = CombinationPruning(mode="ddpg", warmup=2, episodes=4, sparsity=0.5, calibration=100, epochs=1)
    cfg, folder = [config(tmp_path / name, method, budget="paper") for name in ("whole", "killed")], tmp_path / "killed"
    want, nets = run(cfg[0]), len(measured)
    last[0] = nets + 4
    with pytest.raises(KeyboardInterrupt):
        run(cfg[1])
    last[0] = 10**9
    (path,) = (folder / "cache" / "journal").rglob("validations.json")
    kept = [seconds for _, _, seconds in json.loads(path.read_text()).values()]
    del measured[:]
    made = run(cfg[1])
    assert (len(kept), len(measured)) == (4, nets - 4) and made.meter["validations"] == nets - 1  # one on test images
    assert made.details["earlier_seconds"] == pytest.approx(sum(kept)) and not path.exists()
    assert not list(differences(comparable(want), only_record(folder)))


def test_a_net_is_validated_anew_at_another_place_or_with_other_weights(tmp_path, judging):
    measured, _ = judging
    first, second, other = net(0), net(1), net(2)
    before = task(journal=tmp_path)
    want = [before.validate(model) for model in (first, second)]
    again = task(journal=tmp_path)
    assert again.validate(first) == want[0] and len(measured) == 2
    assert again.validate(other) == measured[-1]["top1"] and len(measured) == 3
    assert again.validate(second) == want[1] and len(measured) == 4
    assert task().validate(first) == want[0] and len(measured) == 5  # without a journal
    third = task(journal=tmp_path)
    assert [third.validate(model) for model in (first, other, second)] == [want[0], measured[2]["top1"], want[1]]
    assert len(measured) == 5 and first.training


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"0": ["a", 1.0]}', '{"0": ["a", "b", 1.0]}', "\udcff"])
def test_damaged_validations_are_told_and_not_used(tmp_path, judging, content, capsys):
    (tmp_path / "validations.json").write_text(content, errors="surrogateescape")
    assert task(journal=tmp_path).validate(net()) == judging[0][0]["top1"]
    assert "is damaged and is not used" in capsys.readouterr().err
    assert task(journal=tmp_path).validate(net()) == judging[0][0]["top1"] and len(judging[0]) == 1


def test_the_journal_belongs_to_what_its_numbers_come_from(tmp_path):
    ground = prepare(config(tmp_path))
    source = {"code_hash": "c", "kit_versions": {"task": 1}, "data_sha256": {"x": "1"}, "dense_sha256": "d"}
    source |= {"device": "cpu", "precision": "fp32", "channels_last": False, "threads": 1, "packages": {}}
    recipe = replace(ground.baseline, finetune=replace(ground.baseline.finetune, lr=0.5))
    others = [{**source, key: "other"} for key in source]
    names = [journal_name("id", one, "start", ground) for one in (source, *others)]
    names += [journal_name("other", source, "start", ground), journal_name("id", source, "other", ground)]
    names += [journal_name("id", source, "start", replace(ground, baseline=recipe))]
    assert len(set(names)) == len(names) - 2, "all count but threads and packages"
