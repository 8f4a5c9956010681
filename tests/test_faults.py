"""Full disks, folders that cannot be written, signals, too little memory, two processes at once."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_run import config
from test_task import net, task

from baselines import faults
from baselines.errors import UserError
from baselines.task import Fit, Task
from methods.filter_pruning.l1_filter import L1Filter
from repro import __main__ as cli
from repro import ground, locks, record
from repro.run import run

ROOT = Path(__file__).parent.parent
SMALL = ("run", "method=l1_filter", "baseline=tiny_plain_synthetic", "budget=short", "device.precision=fp32",
         "device.channels_last=false", "latency=0")  # fmt: skip


def words(tmp_path, *more):
    return [*SMALL, f"cache={tmp_path / 'cache'}", f"results.dir={tmp_path / 'results'}", *more]


def gap(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def two_at_once(tmp_path):
    """Runs a function in this thread while another one, in a process of its own, does not let go of a lock."""

    def hold(name, seconds=60.0):
        code = (
            "import sys, time; from pathlib import Path; from repro import locks\n"
            f"with locks.attempt(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); time.sleep({seconds})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    started = []
    yield hold
    for process in started:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------------------------------------- locks


def test_a_lock_is_held_against_others_and_a_killed_process_lets_go(tmp_path, two_at_once):
    holder = two_at_once("one")
    with locks.attempt(tmp_path, "one") as mine, locks.attempt(tmp_path, "two") as other:
        assert not mine and other
    holder.kill()
    holder.wait()
    with locks.attempt(tmp_path, "one") as mine:
        assert mine


def test_the_second_process_waits_with_a_sentence(tmp_path, two_at_once, capsys, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.02)
    began = time.perf_counter()
    two_at_once("one", seconds=0.5)
    with locks.alone(tmp_path, "one", "the thing"):
        assert time.perf_counter() - began > 0.4
    assert capsys.readouterr().err == "Another process is busy with the thing: waiting until it is done.\n"


def at_the_same_time(*works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_of_two_runs_of_a_cell_is_made_and_both_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.02)
    run(config(tmp_path, L1Filter(ratio=0.25)))  # the dense net is there
    made, got = [], []
    compress = L1Filter.compress

    def slow(self, model, task):
        made.append(1)
        time.sleep(0.5)
        return compress(self, model, task)

    monkeypatch.setattr(L1Filter, "compress", slow)
    at_the_same_time(*[lambda: got.append(run(config(tmp_path)))] * 2)
    assert made == [1] and len(got) == 2 and got[0] == got[1]
    run(config(tmp_path))
    assert made == [1, 1], "a run that waited for nobody is made again"


def test_the_dense_net_is_trained_by_one_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.02)
    trainings, train = [], Task.train_dense

    def slow(self, *given):
        trainings.append(1)
        time.sleep(0.5)
        return train(self, *given)

    monkeypatch.setattr(Task, "train_dense", slow)
    got = []
    at_the_same_time(*[lambda: got.append(ground.dense_net(ground.prepare(config(tmp_path))).sha256)] * 2)
    assert trainings == [1] and got[0] == got[1]


# ------------------------------------------------------------------------------------- full and locked folders


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), faults.whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


@pytest.fixture
def disk(tmp_path):
    """A disk of its own in memory, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        words = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        return shutil.which("mount") and subprocess.run(words, capture_output=True).returncode == 0

    if not mount("size=8k"):
        pytest.skip("this user may not mount a disk")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_in_the_first_or_a_later_run_and_then_read_only(disk, capsys):
    folder, remount = disk

    def refused(says, *more):
        assert cli.main(words(folder, *more)) == 2
        assert says in capsys.readouterr().err and not [*folder.rglob("*.part")]

    refused("The disk is full")
    assert remount("size=2m") and cli.main(words(folder)) == 0
    finished = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - 4096))
    refused("The disk is full", "method.ratio=0.25")
    assert all(path.read_bytes() == content for path, content in finished.items())
    filler.unlink()
    assert cli.main(words(folder, "method.ratio=0.25")) == 0
    assert remount("ro")
    refused("Nothing can be written there")
    assert len(record.load_all(folder / "results")[0]) == 2


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(tmp_path, capsys):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, old[1]))
    try:
        status = cli.main(words(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert status == 2
    assert "The disk is full" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.part")] and not [*tmp_path.rglob("results/records/**/*.json")]
    assert cli.main(words(tmp_path)) == 0
    assert len(record.load_all(tmp_path / "results")[0]) == 1


def test_a_full_disk_at_the_end_keeps_the_training(tmp_path, monkeypatch, capsys):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record.Record, "save", full)
        assert cli.main(words(tmp_path)) == 2
    assert "The disk is full" in capsys.readouterr().err
    steps = []
    monkeypatch.setattr(Fit, "_update", lambda *given: steps.append(1))
    assert cli.main(words(tmp_path)) == 0 and steps == [], "nothing is trained a second time"


@pytest.mark.parametrize("folder", ["cache", "results.dir"])
def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path, capsys, folder):
    (tmp_path / "file").write_text("")
    assert cli.main(words(tmp_path, f"{folder}={tmp_path / 'file' / 'below'}")) == 2
    err = capsys.readouterr().err
    assert "Nothing can be written there" in err and str(tmp_path / "file") in err and "Traceback" not in err


# ------------------------------------------------------------------------------------------------- signals


def test_sigterm_ends_a_run_behind_the_step_and_it_goes_on_from_there(tmp_path, monkeypatch, capsys):
    want = cli_record(tmp_path / "whole")
    done, update = [], Fit._update

    def interrupted(self, *given):
        done.append(self.done)
        if len(done) == 22:  # 16 steps of the dense net, then the sixth of the run's eight, in an epoch's middle
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *given)

    monkeypatch.setattr(Fit, "_update", interrupted)
    assert cli.main(words(tmp_path)) == 143
    assert "the same command again" in capsys.readouterr().err and done[-1] == 5
    assert signal.getsignal(signal.SIGTERM) is not faults.on_signal
    assert cli.main(words(tmp_path)) == 0
    assert done[22:] == [6, 7], "the step was finished and kept"
    ((got,), _) = record.load_all(tmp_path / "results")
    assert got.compressed == want.compressed and got.curve == want.curve


def cli_record(folder):
    assert cli.main(words(folder)) == 0
    ((found,), _) = record.load_all(folder / "results")
    return found


def test_a_signal_outside_of_a_training_and_a_second_one_end_at_once():
    with faults.signals_handled():
        with pytest.raises(faults.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), faults.steps():
            os.kill(os.getpid(), signal.SIGINT)
            assert isinstance(faults.asked_to_stop(), KeyboardInterrupt)
            os.kill(os.getpid(), signal.SIGINT)
    assert faults.asked_to_stop() is None


def test_sigterm_from_slurm_and_from_the_parent_is_one_wish():
    with faults.signals_handled(), faults.steps():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(faults.asked_to_stop(), faults.Stopped)


# -------------------------------------------------------------------------------------------------- memory


def too_many(limit):
    """A loss that has memory for ``limit`` images only."""

    def loss(model, x, y):
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return torch.nn.functional.cross_entropy(model(x), y)

    return loss


def without_norm(model):
    """Batch norm with its running statistics: the gradients of parts then add up to those of the batch."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().train = lambda mode=True, module=module: module
    return model


def test_too_little_memory_cuts_the_batch_into_parts_with_the_same_gradients(capsys):
    want, got = without_norm(net()), without_norm(net())
    task().train(want, 1, loss=too_many(32))
    t = task()
    t.train(got, 1, loss=too_many(8))
    assert t.details["batch_split"] == {"images": 32, "parts": 4}
    assert gap(want, got) < 1e-5 < gap(want, net())
    assert t.meter.steps == 8 and "in 4 parts" in capsys.readouterr().out


def test_the_parts_are_told_also_when_the_training_comes_from_the_journal(tmp_path):
    task(journal=tmp_path).train(net(), 1, loss=too_many(16))
    again = task(journal=tmp_path)
    again.train(net(), 1, loss=too_many(0))
    assert again.details["batch_split"] == {"images": 32, "parts": 2}


def test_too_little_memory_for_two_images_is_an_error_with_a_sentence():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        task().train(net(), 1, loss=too_many(1))
    assert "There is not enough memory (CUDA out of memory" in str(faults.sentence(caught.value))


def test_a_step_of_the_methods_own_cannot_be_cut():
    def step(model, x, y, optimizer):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="a step of 32 images, and this method's steps cannot be cut"):
        task().train(net(), 1, step=step)


def test_another_error_in_a_step_is_not_taken_for_a_lack_of_memory():
    sizes = []

    def loss(model, x, y):
        sizes.append(len(x))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        task().train(net(), 1, loss=loss)
    assert sizes == [32]


def test_too_little_memory_in_a_method_is_a_sentence(tmp_path, capsys, monkeypatch):
    def compress(self, model, task):
        raise MemoryError

    monkeypatch.setattr(L1Filter, "compress", compress)
    assert cli.main(words(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("There is not enough memory (MemoryError)")
