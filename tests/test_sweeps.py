"""Sweeps on several processes: Hydra's launchers, also when one of their workers is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from repro import __main__ as cli
from repro import ground, locks, record
from repro.config import BaselineOptions, ResultsOptions, RunConfig

ROOT = Path(__file__).parent.parent
CELL = ("method=l1_filter", "baseline=tiny_plain_synthetic", "budget=smoke")
PATIENCE = 120.0  # seconds


def folders(tmp_path):
    return f"cache={tmp_path / 'cache'}", f"results.dir={tmp_path / 'results'}"


def seeds(tmp_path):
    return {r.seed for r in record.load_all(tmp_path / "results")[0]}


def until(found):
    """What ``found`` gives as soon as it gives something."""
    end = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def processes(root, *parts):
    """Descendants of the process ``root`` whose command lines hold all ``parts``."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").split(" ")
        except OSError:  # it has just ended
            continue

    def below(pid):
        while pid not in (root, 0, None):
            pid = parents.get(pid)
        return pid == root

    return [pid for pid, line in lines.items() if all(any(p in w for w in line) for p in parts) and below(pid)]


def killed(root, *parts):
    """Kill these processes once there are any."""
    for pid in until(lambda: processes(root, *parts)):
        os.kill(pid, signal.SIGKILL)


def waiting(tmp_path):
    """The id of the submitit job that waits for a lock: on this machine a process."""
    logs = (tmp_path / "cache").rglob("*_log.err")
    return next((log.parent.name for log in logs if "Another process is busy" in log.read_text()), None)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker to kill in /proc")
@pytest.mark.parametrize(
    "plugin, launcher",
    [
        ("joblib", ("joblib", "hydra.launcher.n_jobs=2")),
        ("submitit", ("submitit_local", "hydra.launcher.cpus_per_task=1")),
        ("ray", ("ray", "+hydra.launcher.ray.init.num_cpus=2")),
    ],
)
def test_one_killed_worker_stops_no_other_and_its_run_is_made_at_the_next_start(tmp_path, plugin, launcher):
    pytest.importorskip(
        f"hydra_plugins.hydra_{plugin}_launcher", reason=f"hydra-{plugin}-launcher is not installed (extra: cluster)"
    )
    pytest.importorskip(plugin)
    cfg = RunConfig(
        baseline=BaselineOptions("tiny_plain_synthetic"), budget="smoke", seed=1, cache=str(tmp_path / "cache"),
        results=ResultsOptions(str(tmp_path / "results")),
    )  # fmt: skip
    trained = ground._trained_place(ground.prepare(cfg))[1].stem
    name, *more = launcher
    words = (*CELL, "seed=0,1", *folders(tmp_path), f"hydra/launcher={name}", *more)
    with locks.attempt(tmp_path / "cache", trained) as mine:  # the run with seed 1 gets as far as its dense net
        assert mine
        sweep = subprocess.Popen(
            [sys.executable, "-m", "repro", "run", "-m", *words], cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            until(lambda: sweep.poll() is not None or seeds(tmp_path) == {0})
            if plugin == "joblib":
                killed(sweep.pid, "run", "repro", "seed=1", "device.threads=")
            elif plugin == "submitit":
                killed(int(until(lambda: waiting(tmp_path))))
            else:
                killed(sweep.pid, "ray::_run_job")
                until(lambda: processes(sweep.pid, "ray::_run_job"))  # Ray starts the run again by itself
        except BaseException:
            sweep.kill()
            raise
        if plugin != "ray":
            said = sweep.communicate(timeout=PATIENCE)[1]
            assert sweep.returncode == 2 and seeds(tmp_path) == {0}
            assert "give the same command again" in said and "Traceback" not in said
    if plugin == "ray":
        assert sweep.wait(PATIENCE) == 0
        sweep.stderr.close()
    else:
        assert cli.main(["run", *CELL, "seed=1", *folders(tmp_path)]) == 0
    assert seeds(tmp_path) == {0, 1}


@pytest.mark.parametrize(
    "launcher, cores, expected",
    [
        ({"n_jobs": 2}, 8, 4),
        ({"n_jobs": 3}, 8, 2),
        ({"n_jobs": 16}, 8, 1),
        ({"n_jobs": -1}, 8, 1),
        ({"cpus_per_task": 6}, 8, 6),
        ({"cpus_per_task": None}, 8, 1),
        ({"ray": {"init": {}, "remote": {}}}, 8, 1),
        ({"ray": {"remote": {"num_cpus": 3}}}, 8, 3),
    ],
)
def test_workers_share_the_cores(monkeypatch, launcher, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert cli.threads(OmegaConf.create(launcher)) == expected


SLURM = ("run", *CELL, "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=6")


def test_slurm_is_asked_for_the_threads_that_the_runs_take(capsys):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="not installed (extra: cluster)")
    assert cli.main([*SLURM, "--cfg", "hydra"]) == 0
    launcher = OmegaConf.create(capsys.readouterr().out).hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert launcher.cpus_per_task == cli.threads(launcher) == 6 and launcher.tasks_per_node == 1


def test_a_machine_without_slurm_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main([*SLURM, "-m", *folders(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "there is no Slurm on this machine" in told and told.count("\n") == 1
