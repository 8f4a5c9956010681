"""The scripts: the matrix and its loop, the bundle and its way back, the downloads, the README's table."""

import importlib.util
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from baselines import base
from baselines.errors import UserError
from methods.base import Paper
from repro import locks, registry
from repro.record import Measurement, Record, code_version, load

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    """A file of ``scripts/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reproduce, bundle, fetch_data, methods_table = map(script, ("reproduce", "bundle", "fetch_data", "methods_table"))
Cell, Job, Plan = reproduce.Cell, reproduce.Job, reproduce.Plan

NET = Measurement(top1=90.0, params=10, nonzero=10, macs=20, effective_macs=20)
RATIO = {"ratio": None, "ratios": [], "macs_reduction": None, "greedy": True, "epochs": 40, "lr": 1e-3}


def record(ratio=0.5, seed=0, **changes):
    """A fresh record of l1_filter on tiny_plain_synthetic at smoke."""
    provenance = {"dense_sha256": "ab", **code_version("l1_filter", registry.ROOT), **changes.pop("provenance", {})}
    facts = {
        "kind": "run",
        "method": "l1_filter",
        "family": "filter_pruning",
        "baseline": "tiny_plain_synthetic",
        "budget": "smoke",
        "seed": seed,
        "dense": NET,
        "compressed": NET,
        "provenance": provenance,
        "hyperparameters": {**RATIO, "ratio": ratio},
        "options": {"data": "synthetic", "holdout": False},
        "meter": {"seconds": 100.0},
    }
    return Record(**{**facts, **changes})


def cell(ratio=0.5, seeds=(0,), **changes):
    """The cell that ``record`` is a run of."""
    facts = {"seeds": seeds, "recipe": "none", "settings": {"ratio": ratio}}
    return Cell("l1_filter", "tiny_plain_synthetic", "smoke", **{**facts, **changes})


class FakeRunner:
    """Stands in for the child process: takes ``cost`` seconds of a fake clock and writes the record, or fails."""

    def __init__(self, results, cost=60.0, fails=(), silent=()):
        self.results, self.cost, self.fails, self.silent = results, cost, fails, silent
        self.now, self.ran = 0.0, []

    def clock(self):
        return self.now

    def __call__(self, words, limit, log):
        given = dict(word.split("=", 1) for word in words if "=" in word)
        ratio = float(given["method.ratio"])
        log.write_text("a first line\nthe last line")
        if limit is not None and limit < self.cost:
            self.now += limit
            return None
        self.now += self.cost
        self.ran.append((ratio, int(given["seed"])))
        if ratio in self.fails:
            return 1
        if ratio not in self.silent:
            record(ratio, int(given["seed"]), parent=given.get("start")).save(self.results)
        return 0


def loop(results, todo, runner, **changes):
    """``work`` with a fake runner and its clock."""
    return reproduce.work(todo, Plan(results, runner=runner, clock=runner.clock, **changes))


# ----------------------------------------------------------------------------------------------------- the matrix


def test_every_run_of_the_matrix_can_be_configured():
    from repro import config

    config.register()
    kinds = {(c.method, c.baseline, c.recipe == "none", *c.settings): c for c in reproduce.matrix()}
    for cell in kinds.values():
        config.check(reproduce.command(Job(cell, cell.seeds[-1]), Path("results"), None)[4:])


def test_no_run_of_the_matrix_is_there_twice():
    names = [(reproduce.run_of(cell), seed) for cell in reproduce.matrix() for seed in cell.seeds]
    assert len(names) == len(set(names)) > 1500


def test_every_method_and_every_recipe_is_in_the_matrix_or_excluded_with_a_reason():
    there = {reproduce.run_of(cell)[:-1] for cell in reproduce.matrix()}
    classes = {name: entry.cls for name, entry in registry.entries().items()}
    assert set(classes) == {method for method, *_ in there}
    assert {*reproduce.DIALLED, *reproduce.OTHERS, *reproduce.EXCLUDED} == set(base.names())
    assert not {net for _, net, *_ in there} & reproduce.EXCLUDED.keys() and all(reproduce.EXCLUDED.values())
    for method, cls in classes.items():
        for name in cls.recipes:
            net, _, variant = name.partition("/")
            budgets = {"short", "paper"} & set(base.load(net).budgets)
            wanted = {reproduce.run_of(Cell(method, net, budget, recipe=variant))[:-1] for budget in budgets}
            assert net in reproduce.EXCLUDED or wanted <= there, (method, name)


def test_controls_start_from_runs_of_the_matrix():
    cells = reproduce.matrix()
    assert all(cell.parent for cell in cells if cell.method == "scratch")
    places = {reproduce.run_of(cell): place for place, cell in enumerate(cells)}
    children = {reproduce.run_of(cell): cell for cell in cells if cell.parent}
    assert {(c.method, c.parent.method) for c in children.values()} >= {
        *(("random_filter", method) for method in ("thinet", "channel_pruning", "entropy", "apoz", "gal")),
        *(("scratch", "thinet"), ("scratch", "network_slimming")),
        *((by, of) for by in ("magnitude", "random_weight") for of in ("han_pruning", "amc", "combination_pruning")),
    }
    for run, cell in children.items():
        assert places[reproduce.run_of(cell.parent)] < places[run] and set(cell.seeds) <= set(cell.parent.seeds)


def test_structured_methods_have_their_operating_points_wherever_they_can_be_compared():
    cells = reproduce.matrix()
    for net, budgets in (("vgg16_mnist5k", ["short"]), ("resnet56_cifar10", ["short", "paper"])):
        for budget in budgets:
            here = [c for c in cells if (c.baseline, c.budget) == (net, budget)]
            for percent in (30, 50, 70):
                methods = {
                    c.method for c in here if reproduce.hyperparameters(c).get("macs_reduction") == percent / 100
                }
                assert methods >= {*reproduce.STRUCTURED.split(), "random_filter", "l1_filter", "hrank"}


def test_operating_points_come_behind_what_the_tables_need_and_half_of_the_macs_first():
    cells = reproduce.matrix()
    todo = reproduce.jobs(cells)
    needed = [job for job in reproduce.jobs(reproduce.needed()) if job.cell in cells]
    assert todo[: len(needed)] == needed and {job.cell.tier for job in todo[len(needed) :]} == {1, 2, 3, 4}
    assert [job.cell.tier for job in todo] == sorted(job.cell.tier for job in todo)
    for net in ("vgg16_mnist5k", "vgg16_cifar10"):
        here = [j.cell.recipe for j in todo if (j.cell.method, j.cell.baseline, j.cell.budget) == ("gal", net, "short")]
        assert [name for name in dict.fromkeys(here) if "macs" in name] == ["macs50", "macs30", "macs70"]


def test_a_board_with_a_taught_student_has_the_student_alone_with_the_same_seeds():
    runs = {(c.method, (c.baseline, c.budget, seed)) for c in reproduce.matrix() for seed in c.seeds}
    taught, alone = (
        {at for method, at in runs if method in names} for names in (("kd", "fitnets", "at"), ("student",))
    )
    assert len(taught) > 20 and taught <= alone, taught - alone


def test_a_recipe_of_the_matrix_that_no_method_has_is_an_error():
    with pytest.raises(UserError, match=r"l1_filter has no recipe 'resnet56_cifar10/Z' .*resnet56_cifar10/A"):
        reproduce.hyperparameters(Cell("l1_filter", "resnet56_cifar10", "short", recipe="Z"))


def test_first_seeds_of_a_board_come_before_second_ones():
    cells = [cell(0.1, (0, 1)), cell(0.2, (0, 1)), Cell("dense", "vgg16_mnist5k", "short", (0, 1))]
    assert [(j.cell.baseline, j.seed) for j in reproduce.jobs(cells)] == [
        *[("tiny_plain_synthetic", 0)] * 2,
        *[("tiny_plain_synthetic", 1)] * 2,
        ("vgg16_mnist5k", 0),
        ("vgg16_mnist5k", 1),
    ]


@pytest.mark.parametrize(
    ("only", "budget", "left"),
    [
        ((), None, "abc"),
        (("hrank",), None, "a"),
        (("resnet56",), None, "ac"),
        (("hrank,dense", "resnet56"), None, "ac"),
        (("kd", "resnet56"), None, ""),
        (("resnet56",), "paper", "c"),
        (("short",), None, "ab"),
    ],
)
def test_only_and_budget(only, budget, left):
    cells = {
        "a": Cell("hrank", "resnet56_cifar10", "short"),
        "b": Cell("kd", "vgg16_mnist5k", "short"),
        "c": Cell("dense", "resnet56_cifar100", "paper"),
    }
    assert reproduce.select(cells.values(), only, budget) == [cells[name] for name in left]


# ------------------------------------------------------------------------------------------- what is done already


def test_a_run_is_found_again_by_what_was_asked(tmp_path):
    record(0.5).save(tmp_path)
    assert reproduce.state(Job(cell(0.5), 0), tmp_path) == "fresh"
    assert reproduce.state(Job(cell(0.4), 0), tmp_path) == "missing"
    assert reproduce.state(Job(cell(0.5), 1), tmp_path) == "missing"
    assert reproduce.state(Job(cell(0.5, given=True), 0), tmp_path) == "missing"


def test_a_net_that_the_project_brings_counts_as_given(tmp_path, monkeypatch):
    from baselines import weights

    monkeypatch.setattr(weights, "CHECKPOINTS", tmp_path)
    (tmp_path / "tiny_plain_synthetic_smoke.safetensors").touch()
    record(0.5).save(tmp_path)
    assert reproduce.state(Job(cell(0.5), 0), tmp_path) == "missing"
    record(0.5, given_weights=True).save(tmp_path)
    assert reproduce.state(Job(cell(0.5), 0), tmp_path) == "fresh"


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": "0" * 12},
        {"options": {"data": "synthetic", "holdout": True}},
        {"options": {"data": "synthetic", "holdout": False, "teacher_sha256": "ab"}},
        {"kind": "train"},
    ],
)
def test_a_run_of_something_else_does_not_count(tmp_path, changes):
    record(0.5, **changes).save(tmp_path)
    assert reproduce.state(Job(cell(0.5), 0), tmp_path) == "missing"


def test_a_stale_record_is_run_again(tmp_path):
    record(0.5, provenance={"code_hash": "old"}).save(tmp_path)
    job = Job(cell(0.5), 0)
    assert reproduce.state(job, tmp_path) == "stale"
    runner = FakeRunner(tmp_path)
    assert loop(tmp_path, [job], runner)["done"] == 1
    assert reproduce.state(job, tmp_path) == "fresh"


def test_fresh_records_are_skipped(tmp_path, capsys):
    record(0.5).save(tmp_path)
    runner = FakeRunner(tmp_path)
    count = loop(tmp_path, reproduce.jobs([cell(0.5), cell(0.3)]), runner)
    assert runner.ran == [(0.3, 0)]
    assert (count["fresh"], count["done"]) == (1, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].endswith("1.0 min  top1 90.00")


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, capsys):
    runner = FakeRunner(tmp_path)
    todo = reproduce.jobs([cell(0.5), cell(0.3)])
    with locks.attempt(tmp_path, reproduce.lock_of(todo[0])):
        count = loop(tmp_path, todo, runner)
    assert runner.ran == [(0.3, 0)] and (count["busy"], count["done"]) == (1, 1)
    assert loop(tmp_path, todo, runner)["done"] == 1 and runner.ran == [(0.3, 0), (0.5, 0)]
    assert "busy" in capsys.readouterr().out


def test_an_unreadable_record_is_named_and_does_not_stop_the_matrix(tmp_path, capsys):
    path = record(0.5).save(tmp_path)
    path.write_text("{")
    assert loop(tmp_path, [Job(cell(0.5), 0)], FakeRunner(tmp_path))["done"] == 1
    assert str(path) in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ failures, time


def test_it_goes_on_after_a_failed_run(tmp_path, capsys):
    runner = FakeRunner(tmp_path, fails=(0.1,), silent=(0.2,))
    count = loop(tmp_path, reproduce.jobs([cell(0.1), cell(0.2), cell(0.3)]), runner)
    assert (count["failed"], count["done"]) == (2, 1)
    said = capsys.readouterr().out
    assert "exit status 1; its last lines:\n    a first line\n    the last line" in said
    assert "exit status 0 but no record of this run" in said


def test_no_run_is_started_that_would_end_too_late(tmp_path):
    """10 minutes are supposed for the first run; then 75 s, 1.25 times what it took: 15 minutes hold 14 runs."""
    runner = FakeRunner(tmp_path, cost=60.0)
    todo = reproduce.jobs([cell(ratio / 100) for ratio in range(1, 40)])
    count = loop(tmp_path, todo, runner, minutes=15, default=600.0)
    assert count["done"] == len(runner.ran) == 14
    assert count["no time"] == 39 - 14
    assert runner.now <= 15 * 60


def test_nothing_is_started_when_the_default_estimate_does_not_fit(tmp_path):
    runner = FakeRunner(tmp_path)
    assert loop(tmp_path, [Job(cell(), 0)], runner, minutes=9, default=600.0)["no time"] == 1
    assert runner.ran == []


def test_a_run_that_outlasts_its_estimate_is_ended_in_time(tmp_path):
    runner = FakeRunner(tmp_path, cost=1000.0)
    assert loop(tmp_path, [Job(cell(), 0)], runner, minutes=11, default=600.0)["no time"] == 1
    assert runner.now == 11 * 60
    assert list(tmp_path.rglob("*.json")) == []


def test_estimates_come_from_records_of_this_device(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "devices", lambda: {"here"})
    job = Job(cell(0.9), 0)
    record(0.1, provenance={"device": "elsewhere"}, meter={"seconds": 9999.0}).save(tmp_path)
    assert reproduce.estimate(job, tmp_path, {}, 7.0) == 7.0
    record(0.2, provenance={"device": "here"}, meter={"seconds": 100.0}).save(tmp_path)
    assert reproduce.estimate(job, tmp_path, {}, 7.0) == 1.25 * 130.0
    other = {("hrank", "tiny_plain_synthetic", "smoke"): 40.0, ("hrank", "elsewhere", "smoke"): 999.0}
    assert reproduce.estimate(job, tmp_path, other, 7.0) == 1.25 * 40.0
    own = {**other, ("l1_filter", "tiny_plain_synthetic", "smoke"): 8.0}
    assert reproduce.estimate(job, tmp_path, own, 7.0) == 1.25 * 8.0


def test_the_estimate_without_any_record_depends_on_the_budget(tmp_path):
    short, paper = (Job(Cell("l1_filter", "vgg16_cifar10", budget), 0) for budget in ("short", "paper"))
    assert reproduce.estimate(short, tmp_path, {}, None) < reproduce.estimate(paper, tmp_path, {}, None)


def test_a_real_process_is_ended_with_its_children(tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    assert reproduce.run([sys.executable, "-c", code], 3.0, tmp_path / "log") is None
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(int(child.read_text()), 0)
            if "Z" in Path(f"/proc/{child.read_text()}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                raise ProcessLookupError  # ended, waiting for a parent that is gone too
            time.sleep(0.1)


def test_a_real_process_reports_its_status_and_output(tmp_path):
    code = "import os, sys; print(os.getcwd()); sys.exit(7)"
    assert reproduce.run([sys.executable, "-c", code], None, tmp_path / "log") == 7
    assert (tmp_path / "log").read_text().strip() == str(ROOT)


# ------------------------------------------------------------------------------------- weights, command, archive


def test_a_run_from_given_weights_waits_for_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(reproduce.WEIGHTS, "tiny_plain_synthetic", "tiny.safetensors")
    runner = FakeRunner(tmp_path / "results")
    job = Job(cell(given=True), 0)
    assert loop(tmp_path / "results", [job], runner, weights=tmp_path)["no weights"] == 1
    assert "tiny.safetensors" in capsys.readouterr().out and runner.ran == []
    (tmp_path / "tiny.safetensors").write_bytes(b"")
    words = reproduce.command(job, tmp_path / "results", tmp_path)
    assert f"baseline.weights='{tmp_path}/tiny.safetensors'" in words


def test_a_run_starts_from_its_parents_run_with_its_seed_and_waits_for_it(tmp_path, capsys):
    results, parent = tmp_path / "results", cell(0.5, seeds=(0, 1))
    child = cell(0.25, seeds=(0, 1), parent=parent)
    runner = FakeRunner(results, fails=(0.5,))
    assert loop(results, reproduce.jobs([parent, child]), runner)["no parent"] == 2
    assert "needs the run of l1_filter ratio=0.5 tiny_plain_synthetic smoke seed 1 first" in capsys.readouterr().out
    assert loop(results, reproduce.jobs([parent, child]), FakeRunner(results))["done"] == 4
    for seed in (0, 1):
        before, after = (reproduce.find(Job(c, seed), results) for c in (parent, child))
        assert (before.seed, after.seed, before.parent, after.parent) == (seed, seed, None, before.id)
    assert reproduce.find(Job(cell(0.25), 0), results) is None, "a run without a parent is another one"
    assert reproduce.state(Job(child, 0), results) == "fresh"


def test_the_command_names_recipe_settings_and_results():
    job = Job(Cell("hrank", "resnet56_cifar10", "short", recipe="oneshot"), 1)
    words = reproduce.command(job, Path("/r"), None, ["device.threads=1"])
    assert words[1:4] == ["-m", "repro", "run"]
    assert words[4:8] == ["method=hrank", "baseline=resnet56_cifar10", "budget=short", "seed=1"]
    assert words[8:] == ["recipe=hrank-resnet56_cifar10-oneshot", "results.dir='/r'", "device.threads=1"]


def test_after_each_run_the_archive_holds_the_new_records_only(tmp_path):
    results, target = tmp_path / "results", tmp_path / "out" / "records.tar"
    old = record(0.9).save(results)
    os.utime(old, (1, 1))
    sizes = []

    def after():
        reproduce.archive(results, target, since=1000.0)
        with tarfile.open(target) as tar:
            sizes.append(tar.getnames())

    new = [record(ratio).place().as_posix() for ratio in (0.1, 0.2)]
    loop(results, reproduce.jobs([cell(0.1), cell(0.2)]), FakeRunner(results), after=after)
    assert sizes == [[f"results/records/{new[0]}"], sorted(f"results/records/{name}" for name in new)]
    assert [p.name for p in target.parent.iterdir()] == ["records.tar"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "method.ratio=0.5"], "--set method.ratio=0.5 would change what is run"),
        (["--minutes", "0"], "--minutes 0 leaves no time"),
        (["--weights-dir", "/nowhere"], "--weights-dir /nowhere is not a folder"),
        (["--only", "no_such_method"], "No run of the matrix is left"),
    ],
)
def test_wrong_options_get_a_sentence(words, sentence, capsys):
    assert reproduce.main([*words, "--list"]) == 2
    assert sentence in capsys.readouterr().err


def test_the_exit_status_says_whether_a_run_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "matrix", lambda: [cell(0.1), cell(0.2)])
    for fails, status, said in (((0.2,), 1, "1 done, 1 failed"), ((), 0, "1 done, 1 fresh")):
        monkeypatch.setattr(reproduce, "run", None)
        plan = Plan(tmp_path, runner=FakeRunner(tmp_path, fails=fails))
        monkeypatch.setattr(reproduce, "prepare", lambda _, plan=plan: (reproduce.jobs(reproduce.matrix()), plan))
        assert reproduce.main([]) == status
        assert capsys.readouterr().out.splitlines()[-1] == said


def test_the_matrix_can_be_listed(capsys):
    assert reproduce.main(["--list", "--only", "l1_filter", "vgg16_mnist5k", "--results", "/nowhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = ("", *(f" macs_reduction={s}" for s in ("0.5", "0.5 lr=0.01", "0.735 lr=0.01", "0.735")))
    tables = [f"l1_filter{settings} vgg16_mnist5k" for settings in asked]
    points = [f"l1_filter macs_reduction={share} vgg16_mnist5k" for share in (0.3, 0.7)]
    expected = [
        f"missing   {name} short seed {seed}  about 15.0 min"
        for named in (tables, points)
        for seed in range(3)
        for name in named
    ]
    totals = [f"{board}: 21 of 21 runs to do, about 5.2 h" for board in ("vgg16_mnist5k short", "in all")]
    assert lines == expected + totals


def test_the_totals_of_a_list_are_those_of_each_board(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "devices", lambda: {"here"})
    record(0.5, provenance={"device": "here"}, meter={"seconds": 5730.0}).save(tmp_path)
    record(0.4, provenance={"code_hash": "old"}).save(tmp_path)
    other = Cell("dense", "vgg16_mnist5k", "short", (0, 1))
    reproduce.show(reproduce.jobs([cell(0.5), cell(0.4), cell(0.3), other]), Plan(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["fresh", "stale", "missing", "missing", "missing"]
    assert lines[5:] == [
        "tiny_plain_synthetic smoke: 2 of 3 runs to do, about 4.0 h",
        "vgg16_mnist5k short: 2 of 2 runs to do, about 0.5 h",
        "in all: 4 of 5 runs to do, about 4.5 h",
    ]


def test_a_record_that_was_written_again_is_read_again(tmp_path):
    path = record(0.5).save(tmp_path)
    assert [r.meter["seconds"] for r in reproduce.read(tmp_path)] == [100.0]
    assert record(0.5, meter={"seconds": 7.0}).save(tmp_path) == path
    assert [r.meter["seconds"] for r in reproduce.read(tmp_path)] == [7.0]


def test_real_runs_are_found_again(tmp_path, monkeypatch):
    """The one test through the runner itself: hyper-parameters on the command line, and given weights."""
    from baselines import weights

    monkeypatch.setitem(reproduce.WEIGHTS, "tiny_plain_synthetic", "tiny weights.safetensors")
    net = base.load("tiny_plain_synthetic").net(4)
    weights.save(net, tmp_path / "tiny weights.safetensors")
    todo = reproduce.jobs([cell(0.25, given=True)])
    plan = Plan(tmp_path / "results", weights=tmp_path, extra=("device.name=cpu",))
    assert reproduce.work(todo, plan)["done"] == 1
    assert reproduce.work(todo, plan)["fresh"] == 1


# ------------------------------------------------------------------------------------------------------ the bundle


def test_splitting_fills_parts_and_loses_nothing():
    sizes = {"a": 50, "b": 40, "c": 30, "d": 20, "e": 10, "f": 0}
    parts = bundle.split(sizes, 60)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    assert all(sum(sizes[name] for name in part) <= 60 for part in parts)
    assert len(parts) == 3


def test_a_file_larger_than_a_part_is_refused():
    with pytest.raises(UserError, match=r"sheets/x has 61.0 MB, but a part holds 60.0 MB"):
        bundle.split({"sheets/x": 61_000_000}, 60_000_000)


def test_wheels_are_asked_for_the_target_not_for_this_machine(tmp_path):
    names = ["omegaconf", "no-such-package", "gymnasium==1.0"]
    download, built = bundle.wheel_commands(tmp_path, names, "3.12", ["manylinux_2_28_x86_64"])
    text = " ".join(download)
    assert "pip download" in text and "--no-deps --only-binary=:all:" in text
    assert "--python-version 3.12 --platform manylinux_2_28_x86_64" in text
    assert download[-3:] == [f"omegaconf=={version('omegaconf')}", "no-such-package", "gymnasium==1.0"]
    assert built[3] == "wheel" and built[-1] == f"antlr4-python3-runtime=={version('antlr4-python3-runtime')}"


def make_wheel(folder):
    """A wheel that holds one module, ``carried``."""
    folder.mkdir(parents=True)
    name = "carried-1.0.dist-info"
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 'from the wheel'\n")
        wheel.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr(
            f"{name}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}/RECORD", f"carried.py,,\n{name}/METADATA,,\n{name}/WHEEL,,\n{name}/RECORD,,\n")


STAND_IN = """import carried, json, os, pathlib, sys
print(json.dumps({
    "argv": sys.argv[1:], "wheel": carried.VALUE, "commit": os.environ["REPRO_COMMIT"],
    "data": pathlib.Path(os.environ["REPRO_DATA"], "set").read_text(),
    "sheet": sorted(p.name for p in pathlib.Path("../sheets").iterdir()), "results": os.listdir("../results"),
}))
"""


@pytest.fixture
def packed(tmp_path):
    """A tiny bundle in two parts: a wheel, a project whose reproduce.py prints what it sees, and two sheets."""
    make_wheel(tmp_path / "wheels")
    project, sheets = tmp_path / "project", tmp_path / "sheets"
    (project / "scripts").mkdir(parents=True)
    (project / "scripts" / "reproduce.py").write_text(STAND_IN)
    (project / ".gitignore").write_text("secret\n")
    (project / "secret").write_text("must not travel")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    sheets.mkdir()
    (sheets / "a.bin").write_bytes(bytes(30_000))
    (sheets / "it's b").write_bytes(bytes(20_000))
    found = bundle.contents(tmp_path / "wheels", project, sheets)
    prepare = "cat \"it's b\" a.bin | wc -c | tr -d ' ' > $REPRO_DATA/set"
    parts = bundle.pack(tmp_path / "bundle", found, bundle.RESERVE + 35_000, prepare, "c0ffee+")
    return SimpleNamespace(parts=parts, out=tmp_path / "bundle", found=found, tmp=tmp_path)


def run_sh(part, *words):
    """Run a part's run.sh with this Python."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    return subprocess.run(
        ["bash", str(part / "run.sh"), *map(str, words)], capture_output=True, text=True, env=environment
    )


def test_the_bundle_holds_what_git_does_not_ignore_and_keeps_to_its_limit(packed):
    names = {name for name in packed.found if name.startswith("project/")}
    assert names == {"project/.gitignore", "project/scripts/reproduce.py"}
    assert [p.name for p in packed.parts] == ["part1", "part2"]
    for part in packed.parts:
        assert sum(p.stat().st_size for p in part.rglob("*") if p.is_file()) <= bundle.RESERVE + 35_000
        assert (part / "run.sh").stat().st_mode & stat.S_IXUSR
    carried = [p.relative_to(part).as_posix() for part in packed.parts for p in part.rglob("*") if p.is_file()]
    assert set(packed.found) <= set(carried)


def test_the_bundle_runs_without_a_network(packed):
    work, out = packed.tmp / "work", packed.tmp / "out"
    done = run_sh(packed.parts[0], "run", work, out, 25, "--budget", "short")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    work = work.resolve()
    assert seen["argv"] == [
        *("--results", f"{work}/results", "--minutes", "24", "--archive", f"{out.resolve()}/records.tar"),
        *("--newer", f"{work}/seeded", "--budget", "short"),
    ]
    assert seen["wheel"] == "from the wheel" and seen["commit"] == "c0ffee+"
    assert seen["data"].strip() == "50000" and seen["sheet"] == ["a.bin", "it's b"]


def test_parts_can_be_brought_one_after_the_other(packed):
    work, elsewhere = packed.tmp / "work", packed.tmp / "elsewhere"
    for part in packed.parts:
        shutil.move(part, elsewhere / part.name)
        if part is packed.parts[0]:
            early = run_sh(elsewhere / part.name, "run", work, packed.tmp / "out", 5)
            assert early.returncode == 2 and "bring the missing parts" in early.stderr
            shutil.rmtree(elsewhere / part.name)
    assert run_sh(elsewhere / "part2", "stage", work).returncode == 0
    assert run_sh(elsewhere / "part2", "run", work, packed.tmp / "out", 5).returncode == 0


def test_a_damaged_part_is_refused(packed):
    damaged = next(p for p in packed.out.rglob("*.bin"))
    damaged.write_bytes(b"x" * 30_000)
    done = run_sh(packed.parts[0], "stage", packed.tmp / "work")
    assert done.returncode == 2 and "is damaged: bring it again" in done.stderr


def test_a_new_bundle_replaces_the_old_one_but_not_its_records(packed):
    work, out = packed.tmp / "work", packed.tmp / "out"
    assert run_sh(packed.parts[0], "run", work, out, 5).returncode == 0
    (work / "results" / "records" / "mine.json").write_text("{}")
    for name in ("a.bin", "it's b"):
        packed.found.pop(f"sheets/{name}")
    parts = bundle.pack(packed.out, packed.found, 60 * bundle.MEGABYTE)
    assert sorted(p.name for p in packed.out.iterdir()) == ["part1"]
    assert run_sh(parts[0], "stage", work).returncode == 0
    assert not (work / "sheets").exists()
    assert (work / "results" / "records" / "mine.json").exists()


@pytest.mark.parametrize("minutes", ["", "x", "1.5", "-3"])
def test_minutes_of_run_sh_are_whole(packed, minutes):
    done = run_sh(packed.parts[0], "run", packed.tmp / "work", packed.tmp / "out", minutes)
    assert done.returncode == 2 and "give a whole number" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--limit", "61"], "--limit 61 is not a size from 1 to 60 MB"),
        (["--sheets", "/nowhere"], "--sheets /nowhere is not a folder"),
        (["--out", str(ROOT / "scripts")], "holds other files than a bundle"),
        (["--collect", "/nowhere.tar"], "/nowhere.tar cannot be read as a tar archive"),
    ],
)
def test_wrong_options_of_the_bundle_get_a_sentence(words, sentence, capsys, tmp_path):
    default = ["--out", str(tmp_path / "bundle"), "--wheels", str(tmp_path)]
    assert bundle.main([*default, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


# ------------------------------------------------------------------------------------------------- the way back


def packed_records(path, *members):
    """A tar archive of (name, text or TarInfo changes)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return path


def as_text(made, folder):
    """The text that a record's file holds."""
    return made.save(folder / "scratch").read_text()


def test_records_come_back(tmp_path):
    results = tmp_path / "results"
    made = record(0.1, provenance={"created": "2024-02-01T00:00:00+00:00"})
    name = f"results/records/{made.place().as_posix()}"
    tar = packed_records(tmp_path / "records.tar", (name, as_text(made, tmp_path)))
    assert bundle.collect(tar, results) == {"new": 1, "replaced": 0, "older than ours": 0}
    assert load(results / "records" / made.place()) == made
    assert bundle.collect(tar, results)["older than ours"] == 1
    newer = record(0.1, provenance={"created": "2024-03-01T00:00:00+00:00"})
    tar = packed_records(tmp_path / "newer.tar", (name, as_text(newer, tmp_path)))
    assert bundle.collect(tar, results)["replaced"] == 1
    assert load(results / "records" / made.place()) == newer


PLACE = "results/records/tiny_plain_synthetic/smoke/l1_filter/"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../evil.json", "{}"),
        ("/tmp/evil.json", "{}"),
        (f"{PLACE}../../../../../evil.json", "{}"),
        ("results/records/../../x/l1_filter/0123456789ab.json", "{}"),
        (f"{PLACE}0123456789ab.json.exe", "{}"),
        (f"{PLACE}0123456789ab.json\n", "{}"),
        ("results/leaderboard.md", "text"),
        (f"{PLACE}0123456789ab.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        (f"{PLACE}0123456789ab.json", {"type": tarfile.LNKTYPE, "linkname": "../x"}),
        (f"{PLACE}0123456789ab.json", {"type": tarfile.FIFOTYPE}),
        (f"{PLACE}0123456789ab.json", {"type": tarfile.DIRTYPE}),
    ],
)
def test_anything_but_records_is_refused_and_nothing_is_written(tmp_path, name, content):
    made = record(0.1)
    good = (f"results/records/{made.place().as_posix()}", as_text(made, tmp_path))
    tar = packed_records(tmp_path / "records.tar", good, (name, content))
    with pytest.raises(UserError, match="which is not a record file"):
        bundle.collect(tar, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.parent.rglob("evil*"))


def test_an_invalid_or_misplaced_record_is_refused_and_nothing_is_written(tmp_path):
    made = record(0.1)
    text, good = as_text(made, tmp_path), f"results/records/{made.place().as_posix()}"
    wrong = good.replace("l1_filter", "hrank")
    for members, sentence in (
        ([(good, text), (wrong, text)], "says that it belongs at"),
        ([(good, text.replace('"top1": 90.0', '"top1": 190.0'))], "is not valid"),
        ([(good, text.replace('"seed": 0', '"seed": 1'))], "its id is"),
    ):
        tar = packed_records(tmp_path / "records.tar", *members)
        with pytest.raises(UserError, match=sentence):
            bundle.collect(tar, tmp_path / "results")
        assert not (tmp_path / "results").exists()


def test_a_truncated_archive_gets_a_sentence(tmp_path):
    made = record(0.1)
    tar = packed_records(tmp_path / "records.tar", (f"results/records/{made.place()}", as_text(made, tmp_path)))
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match="cannot be read as a tar archive"):
        bundle.collect(tar, tmp_path / "results")


# ---------------------------------------------------------------------------------------------------- downloads


def test_a_download_without_a_network_is_a_sentence(tmp_path, monkeypatch, capsys):
    import torchvision.datasets

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_network)
    monkeypatch.setattr(torchvision.datasets, "Imagenette", no_network)
    assert fetch_data.main(["cifar10", "imagenette", "--root", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"cifar10: There is no cifar10 in {tmp_path} and it could not be downloaded")


def test_data_that_is_there_is_not_downloaded_again(tmp_path, monkeypatch, capsys):
    import numpy as np

    import baselines.data

    monkeypatch.setattr(baselines.data, "fetch", lambda name, root: root / f"downloaded {name}")
    x, y = np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "imagenette2k" / "train").mkdir(parents=True)
    (tmp_path / "imagenette2k" / "val").mkdir()
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    assert fetch_data.main(["cifar10", "imagenette", "cifar100"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"cifar10: already in {tmp_path / 'cifar10.npz'}",
        f"imagenette: already in {tmp_path / 'imagenette2k'}",
        f"cifar100: written to {tmp_path / 'downloaded cifar100'}",
    ]


def test_a_damaged_data_file_is_not_taken_for_the_data(tmp_path, capsys):
    (tmp_path / "cifar100.npz").write_bytes(b"PK\x03\x04 half a file")
    assert fetch_data.main(["cifar100", "--root", str(tmp_path)]) == 2
    assert "cannot be read as cifar100" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- documents


def test_the_readme_holds_the_table_of_the_methods_that_there_are():
    readme = (ROOT / "README.md").read_text()
    now = methods_table.filled(readme, methods_table.table(registry.entries().values()))
    assert readme == now, "README.md is out of date: run python scripts/methods_table.py --write"


def test_the_table_has_one_line_a_usable_method():
    paper = Paper(title="On | Pipes", authors="A", venue="V 2020", url="https://a.b")
    usable = SimpleNamespace(paper=paper, recipes={"n_d": {}, "n_d/b": {}, "m_d": {}})
    entries = [
        SimpleNamespace(name="good", family="low_rank", cls=usable),
        SimpleNamespace(name="broken", family="low_rank", cls=None),
    ]
    assert methods_table.table(entries).splitlines()[2:] == [
        "| `good` | low rank | [On \\| Pipes](https://a.b) (V 2020) | `n_d`, `m_d` |"
    ]


def test_a_readme_without_markers_is_refused():
    with pytest.raises(UserError, match="needs the line '<!-- methods:begin -->' once"):
        methods_table.filled("no markers", "table")


def test_the_readme_starts_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    commands = ["pip install -e . && python -m repro run method=hrank", 'pip install -e ".[test]" && pytest']
    places = [readme.index(text) for text in commands]
    assert places == sorted(places) and places[1] < 600


def code_in(document):
    """The one block of Python in a document."""
    (block,) = re.findall(r"```python\n(.*?)```\n", (ROOT / document).read_text(), re.S)
    return block


@pytest.fixture
def example(tmp_path):
    """The method that the README shows, as a file of a family of its own."""
    family = tmp_path / "methods" / "weight_pruning"
    family.mkdir(parents=True)
    (family / "__init__.py").write_text('"""Weights that go one by one."""\n')
    (family / "smallest_weights.py").write_text(code_in("README.md"))
    return registry.entries(tmp_path / "methods")["smallest_weights"]


def test_the_method_in_the_readme_keeps_the_contract(example, monkeypatch):
    from repro import checks

    there = registry.entries()
    monkeypatch.setattr(registry, "entries", lambda root=None: {**there, example.name: example})
    assert example.error is None
    results = [checks.judge(example, check, baseline) for check, baseline in checks.cases(example)]
    assert [r.sentence for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) > 10


def test_the_oracle_in_contributing_passes_and_catches_its_mutant(example, monkeypatch):
    module = sys.modules[example.cls.__module__]
    package = ModuleType("methods.weight_pruning")
    package.smallest_weights = module
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, "mutant", None)
    names = {}
    exec(code_in("CONTRIBUTING.md"), names)
    tests = [function for name, function in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_check_script_installs_as_the_readme_says_and_fails_without_tests():
    text = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet -e ".[test]"' in text and "ruff check ." in text and "ruff format --check ." in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")]).returncode == 0


@pytest.mark.parametrize(("status", "said"), [(0, "all passed"), (1, "tests failed"), (5, "no tests were collected")])
def test_the_check_script_passes_on_pytests_verdict(tmp_path, status, said):
    """.ci/run with stand-ins for python, pip, ruff and pytest."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("pip", 0), ("ruff", 0), ("pytest", status)):
        (folder / name).write_text(f"#!/bin/sh\nexit ${{PYTHONDONTWRITEBYTECODE:-{code}}}\n")
        (folder / name).chmod(0o755)
    maker = folder / "python"
    maker.write_text(f'#!/bin/sh\nmkdir -p "$3/bin" && cp {folder}/pip {folder}/ruff {folder}/pytest "$3/bin"\n'
                     f'echo "PATH=$3/bin:\\$PATH" > "$3/bin/activate"\n')  # fmt: skip
    maker.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(maker), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "9"}
    done = subprocess.run([str(ROOT / ".ci" / "run")], capture_output=True, text=True, env=environment)
    assert done.returncode == (0 if status == 0 else 1)
    assert said in done.stdout + done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin"]
