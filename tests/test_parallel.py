"""One run on two processes is the run on one: torchrun starts this file once, and every case is compared.

The nets have no batch normalisation in training mode, except where the case says so.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_task import task
from torch import nn

from baselines import base, parallel
from baselines.base import Recipe
from baselines.data import ArraySplit
from baselines.errors import UserError
from baselines.task import Fit, Journal, seed_everything
from methods.structured_sparsity.gal import GAL
from repro.record import load
from repro.verify import comparable

ODD = Recipe(epochs=2, lr=0.05, batch_size=33)  # 16 images for one process, 17 for the other
RUN = ["run", "method=gal", "baseline=tiny_resnet_synthetic", "budget=smoke"]


def plain(dropout=0.0):
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(54, 4)
    return nn.Sequential(*layers)


def default(folder):
    t, model = task(), plain()
    t.train(model, 2, recipe=ODD)
    return {"curve": torch.tensor(t.curve), **model.state_dict()}


def statistics_kept(folder):
    model = base.load("tiny_plain_synthetic").net(4)
    task().train(model, 2, loss=lambda m, x, y: F.cross_entropy(m.eval()(x), y))
    return model.state_dict()


def every_callback(folder):
    """Teacher, regressor, own optimizer, own data, a clipped gradient (not linear), a mask, a look behind the epoch."""
    t, model, teacher, extra, seen = task(), plain(), plain().eval(), nn.Linear(4, 4), []
    split = t.train_set.subset(torch.arange(70))
    few = ArraySplit(split.x, split.y)
    mask = (model[0].weight.detach() > 0).float()

    def loss(m, x, y):
        return F.cross_entropy(m(x), y) + F.mse_loss(extra(m(x)), teacher(x).detach())

    t.train(
        model, 5, loss=loss, also_train=[extra], data=few, optimizer=lambda params: torch.optim.Adam(params, 0.01),
        after_backward=lambda i: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
        after_step=lambda i: model[0].weight.data.mul_(mask), after_epoch=lambda e: seen.append(t.validate(model)),
    )  # fmt: skip
    return {"seen": torch.tensor(seen), "extra": extra.weight, **model.state_dict()}


def own_update(folder):
    """Two optimizers in ``step``, a third one in ``after_step``; buffers of several types."""
    model, critic, mask = plain(), nn.Linear(4, 1), nn.Parameter(torch.ones(4))
    critic.register_buffer("on", torch.tensor([True, False]))
    other, third = torch.optim.SGD(critic.parameters(), 0.1), torch.optim.SGD([mask], 0.1)

    def descend(loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def step(m, x, y, optimizer):
        logits = m(x) * mask
        descend(F.softplus(critic(logits.detach())).mean(), other)
        third.zero_grad()
        return descend(F.cross_entropy(logits, y) + critic(logits).square().mean(), optimizer)

    def after_step(number):
        if number % 3 == 2:
            third.step()

    task().train(model, 2, step=step, after_step=after_step, state=[critic, other, third])
    return {"mask": mask, "critic": critic.weight, **model.state_dict()}


def killed(folder):
    """Killed in the second of three calls; it goes on from the last epoch, and from the finished call."""

    def method(t, stop=None):
        model = plain()
        for call in range(3):

            def after_step(number, call=call):
                if call == stop and number == 13:
                    raise KeyboardInterrupt

            t.train(model, 2, of=6, after_step=after_step)
        return model

    Journal.SECONDS, start = -1.0, torch.get_rng_state()
    with contextlib.suppress(KeyboardInterrupt):
        method(task(journal=folder / "journal"), 1)
    parallel.wait()
    assert sorted(path.name for path in (folder / "journal").iterdir()) == ["call0.pt", "call1.part.pt"]
    parallel.wait()
    torch.set_rng_state(start)
    again = task(journal=folder / "journal")
    model = method(again)
    return {"steps": again.meter.steps, **model.state_dict()}


EQUAL = {case.__name__: case for case in (default, statistics_kept, every_callback, own_update, killed)}


def dropout(folder):
    """Random draws of each process's own, the same net, and the same random numbers behind it."""
    model, drawn = plain(0.5), []
    model[4].register_forward_hook(lambda *_: drawn.append(float(torch.rand(()))))
    task().train(model, 2)
    return {"after": torch.rand(3), "drawn": torch.tensor(drawn), **model.state_dict()}


def statistics(folder):
    """Batch normalisation in training mode."""
    t, model = task(), base.load("tiny_plain_synthetic").net(4)
    t.train(model, 8)
    return {"top1": torch.tensor(t.validate(model)), **model.state_dict()}


def work(out):
    """What each of the two processes does: all cases, what is refused, and a run from the command line."""
    torch.set_num_threads(1)
    parallel.join(torch.device("cpu"))
    results = {}
    for name, case in {**EQUAL, "dropout": dropout, "statistics": statistics}.items():
        seed_everything(0)
        results[name] = {key: torch.as_tensor(value).detach() for key, value in case(out).items()}
    with pytest.raises(UserError, match="divided among 2 processes"):
        parallel.Share(1)
    torch.save(results, out / f"rank{parallel.rank()}.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "leave", lambda: None)  # nobody meets twice
        run(out, "run")
        verify(out, "verified")
        if parallel.rank() == 0:
            alter(out)
        verify(out, "refuted")
        stopped(out)
        run(out, "stopped", "resumed")
    alone(out)


def run(out, folder, name=""):
    told(out, name or folder, [*RUN, f"cache={out / folder}", f"results.dir={out / folder}", "latency=0"])


def told(out, name, words):
    """What the command says and its status, in a file of this process."""
    from repro.__main__ import main

    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        status = main(words)
    Path(out, f"{name}{os.environ.get('RANK', '')}.txt").write_text(f"{status}\n{written.getvalue()}")


def verify(out, name):
    parallel.wait()  # until the first one has written the record
    (path,) = (out / "run" / "records").rglob("*.json")
    told(out, name, ["verify", f"run={path.stem}", f"cache={out / 'run'}", f"results.dir={out / 'run'}"])


def alter(out):
    (path,) = (out / "run" / "records").rglob("*.json")
    record = json.loads(path.read_text())
    shutil.copy(path, out / "run.json")
    path.write_text(json.dumps(record | {"compressed": record["compressed"] | {"top1": 1.0}}))


def stopped(out):
    """SIGTERM for the second process alone, in the first step of the run (before it, the dense net takes one)."""
    seen, look = [], Fit._stop_if_asked

    def at_the_second_look(fit):
        seen.append(fit)
        if len(seen) == 2 and parallel.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        look(fit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_stop_if_asked", at_the_second_look)
        run(out, "stopped")
    if parallel.rank() == 0:
        (out / "kept.txt").write_text(" ".join(path.name for path in (out / "stopped" / "journal").glob("*/*")))


def alone(out):
    """An error in the second process alone, in the first run of a sweep: it ends, and the first one gets to know."""

    def unhappy(self, model, task):
        raise UserError("This process is unhappy.")

    with pytest.MonkeyPatch.context() as patch:
        if parallel.rank() == 1:
            patch.setattr(GAL, "compress", unhappy)
        told(out, "alone", [*RUN, "-m", "seed=0,1", f"cache={out / 'run'}", f"results.dir={out / 'alone'}"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(the folder, the results of both processes)."""
    out = tmp_path_factory.mktemp("two")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(out)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    return out, [torch.load(out / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_the_net_that_one_does(two, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Journal, "SECONDS", Journal.SECONDS)  # as it is now, afterwards
    _, (first, second) = two
    alone = {key: torch.as_tensor(value).detach() for key, value in EQUAL[name](tmp_path).items()}
    assert alone.keys() == first[name].keys()
    for key, value in alone.items():
        assert torch.equal(first[name][key], second[name][key]), key
        torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-4)


def test_random_draws_are_each_process_its_own_but_not_behind_the_training(two):
    first, second = (results["dropout"] for results in two[1])
    assert not torch.equal(first["drawn"], second["drawn"])
    assert all(torch.equal(first[key], second[key]) for key in first.keys() - {"drawn"})


def test_batch_normalisation_sees_parts_of_batches_and_learns_as_well(two, tmp_path):
    first, second = (results["statistics"] for results in two[1])
    assert all(torch.equal(first[key], second[key]) for key in first)
    alone = statistics(tmp_path)
    assert not torch.allclose(first["features.1.running_var"], alone["features.1.running_var"], atol=1e-4)
    assert abs(float(first["top1"] - alone["top1"])) <= 8, "two of 25 images"


def test_a_run_has_one_record_one_voice_and_the_number_of_its_processes(two):
    out, _ = two
    (path,) = (out / "run" / "records").rglob("*.json")
    record = json.loads((out / "run.json").read_text())
    assert record["provenance"]["processes"] == 2 and record["meter"]["steps"] == 4
    said, silent = of_both(out, "run")
    assert said[0] == "0" and any(path.name in line for line in said) and silent == ["0"]
    assert not [*(out / "run" / "journal").glob("*/*")]


def of_both(out, name):
    """The lines of both processes: status, then what was said."""
    return [(out / f"{name}{rank}.txt").read_text().splitlines() for rank in range(2)]


def test_both_verify_a_record_and_one_tells(two):
    out, _ = two
    said, silent = of_both(out, "verified")
    assert said[0] == "0" and said[1].endswith("holds: every field is equal.") and silent == ["0"]
    said, silent = of_both(out, "refuted")
    assert said[0] == "1" and "does not hold: 1 fields differ." in said[1] and silent == ["1"]


def test_a_signal_to_one_of_two_stops_both_behind_the_same_step_and_they_go_on_from_there(two):
    out, _ = two
    for lines in of_both(out, "stopped"):
        assert lines[0] == "143" and lines[-1].startswith("Stopped by SIGTERM.")
    assert (out / "kept.txt").read_text() == "call0.part.pt"
    assert [lines[0] for lines in of_both(out, "resumed")] == ["0", "0"]
    (path,) = (out / "stopped" / "records").rglob("*.json")
    assert comparable(load(path)) == comparable(load_moved(out / "run.json", path))


def load_moved(path, place):
    """The record in ``path``, read where ``place`` is."""
    shutil.copy(path, place)
    return load(place)


def test_an_error_in_one_of_two_ends_both_with_a_sentence(two):
    out, _ = two
    for said, why in zip(of_both(out, "alone"), ("Another process of this run has ended", "This process"), strict=True):
        assert said[0] == "2" and sum(f": {why}" in line for line in said) == 1
        assert not any("Traceback" in line for line in said)
    assert not (out / "alone" / "records").exists()


@pytest.mark.parametrize(
    "name, local, message", [("cuda:1", 0, "use cuda"), ("cuda", 2, "use --nproc-per-node=2"), ("cuda", 1, "")]
)
def test_every_process_has_a_gpu_of_its_own(monkeypatch, name, local, message):
    chosen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, **_: chosen.append(backend))
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        assert parallel.join(torch.device(name)) == torch.device("cuda:1")
    assert chosen == ([] if message else [torch.device("cuda:1"), "cpu:gloo,cuda:nccl"])


def test_one_process_exchanges_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parallel.join(torch.device("cuda:1")) == torch.device("cuda:1") and parallel.world() == 1
    monkeypatch.setattr(parallel, "register_optimizer_step_pre_hook", None)
    model = plain()
    before = copy.deepcopy(model.state_dict())
    task(budget="smoke").train(model, 1, after_backward=lambda i: None)
    assert not torch.equal(before["0.weight"], model[0].weight)


def test_processes_that_hold_different_networks_are_stopped(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "from_first", lambda shapes: [*shapes[:-1], ((4,), torch.float32)])
    with pytest.raises(RuntimeError, match="another network"):
        parallel.equalise([nn.Linear(2, 3)])


if __name__ == "__main__":
    work(Path(sys.argv[1]))
