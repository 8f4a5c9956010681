"""The commands: what they print, their exit status, and one sentence on stderr for whatever is wrong."""

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import DEMO, DENSE

from baselines.errors import UserError
from repro import __main__ as cli
from repro import registry, show
from repro.config import RunConfig
from repro.record import Measurement, Record

ROOT = Path(__file__).parent.parent
HEAVY = (
    "hydra",
    "omegaconf",
    "pandas",
    "torchvision",
    "torch_pruning",
    "sklearn",
    "onnx",
    "matplotlib",
    "numba",
    "PIL",
    "mlxtend",
)


@pytest.fixture
def methods(tmp_path, monkeypatch):
    """A methods folder with dense, demo and every kind of bad file."""
    bad = {
        "pruning/bad.py": "import nowhere_to_be_found\n",
        "pruning/empty.py": "x = 1\n",
        "pruning/both.py": DEMO + DENSE,
        "pruning/same.py": DENSE,
        "quantization/same.py": DENSE,
    }
    for place, text in {"pruning/demo.py": DEMO, "controls/dense.py": DENSE, **bad}.items():
        path = tmp_path / "methods" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    monkeypatch.setattr(registry, "ROOT", tmp_path / "methods")


@pytest.fixture
def runs(methods, monkeypatch, tmp_path):
    """The configurations that `run` would have run, from an empty working folder; a rate above 1 is refused."""
    seen = []

    def run_one(cfg):
        if getattr(cfg.method, "rate", 0) > 1:
            raise UserError(f"The rate {cfg.method.rate} lies outside [0, 1): give a share, such as 0.5.")
        seen.append(cfg)

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cli, "run_one", run_one)
    return seen


@pytest.fixture(autouse=True)
def logging_as_before():
    """Hydra sets up the root logger; other tests get it back as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def complaint(capsys, *words):
    """The one line on stderr with which a command ends at exit status 2."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in out + err
    return err.strip()


@pytest.mark.parametrize(
    "words, says",
    [
        ("method=demmo", "There is no method 'demmo'. Did you mean 'demo'? Choose one of: demo, dense."),
        ("baseline=vgg16", "There is no baseline 'vgg16'. Did you mean"),
        ("method=demo method.foo=1", "has no field 'foo'. Choose one of: rate, rates, epochs, limit, greedy, order."),
        ("method.foo=1", "The method 'dense' has no field 'foo'"),
        ("foo=1", "There is no option 'foo'. Choose one of: method, baseline, recipe,"),
        ("method=demo recipe=nope", "There is no recipe 'nope'. Choose one of: demo-vgg16_mnist5k,"),
        ("recipe=demo-vgg16_mnist5k", "is for method=demo baseline=vgg16_mnist5k, but this run has method=dense"),
        ("budget=fast", "There is no budget 'fast' for vgg16_mnist5k. Choose one of: smoke, zero, short."),
        ("seed=abc", "seed=abc has the wrong type: seed takes a whole number."),
        ("method=demo method.rate=[1]", "method.rate=[1] has the wrong type: method.rate takes a number."),
        ("method=demo method.rate=1.5", "The rate 1.5 lies outside [0, 1): give a share, such as 0.5."),
        ("method=demo,dense", "gives method several values: add -m to run each of them."),
        ("-m method=demo,nope", "There is no method 'nope'."),
        ("method=bad", "methods/pruning/bad.py fails to import: ModuleNotFoundError: No module named 'nowhere_to_be"),
        ("method=empty", "methods/pruning/empty.py holds no Method: define one subclass of methods.base.Method in it."),
        ("method=both", "methods/pruning/both.py holds 2 Methods (Demo, Dense)"),
        ("method=same", "2 files are called 'same', methods/pruning/same.py and methods/quantization/same.py"),
        ("seed", "'seed' is not an option: write KEY=VALUE"),
        ("--verbose", "'--verbose' is not known here. Choose one of: -m"),
        ("--cfg everything", "'everything' is not known here."),
        ("-m --cfg job", "-m runs all combinations and --cfg runs none: leave out one of them."),
        ("--cfg", "'--cfg' needs a word after it. Choose one of: job, hydra, all."),
        ("hydra/launcher=nope", "Could not find 'hydra/launcher/nope'; Available options in 'hydra/launcher'; basic"),
        ("hydra.run.dri=x", "Could not override 'hydra.run.dri'"),
    ],
)
def test_bad_words_of_a_run(runs, capsys, words, says):
    assert says in complaint(capsys, "run", *words.split())
    assert runs == []


@pytest.mark.parametrize(
    "words, says",
    [
        ("rnu", "There is no command 'rnu'. Did you mean 'run'? Choose one of: run, train, leaderboard, list,"),
        ("train method=demo", "There is no option 'method'."),
        ("train baseline=nope", "There is no baseline 'nope'."),
        ("train budget=nope", "There is no budget 'nope' for vgg16_mnist5k."),
        ("measure recipe=none", "There is no option 'recipe'."),
        ("check method=demmo", "There is no method 'demmo'. Did you mean 'demo'?"),
        ("check baseline=x", "'baseline=x' is not an option here. Choose one of: method=..."),
        ("list --yaml", "'--yaml' is not an option of list: give --json or nothing."),
        ("leaderboard out=x", "'out=x' is not an option here. Choose one of: results.dir=..."),
        ("leaderboard results.dir=nowhere", "There are no records below nowhere/records"),
    ],
)
def test_bad_words_of_the_other_commands(methods, capsys, words, says):
    assert says in complaint(capsys, *words.split())


def test_a_run_gets_its_configuration_and_leaves_nothing_in_the_working_folder(runs, tmp_path):
    assert cli.main(["run", "method=demo", "method.rate=0.9", "seed=3", f"cache={tmp_path / 'cache'}"]) == 0
    (cfg,) = runs
    assert (cfg.method.rate, cfg.method.epochs, cfg.seed) == (0.9, 7, 3)
    assert os.listdir(tmp_path / "work") == []
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "cache").rglob("*")] == ["cache/hydra"]


def test_a_sweep_runs_every_combination(runs, tmp_path, capsys):
    assert cli.main(["run", "method=dense,demo", "-m", "seed=0,1,2"]) == 0
    found = [(type(cfg.method).__name__, cfg.seed, getattr(cfg.method, "epochs", None)) for cfg in runs]
    assert found == [(name, seed, epochs) for name, epochs in (("Dense", None), ("Demo", 7)) for seed in (0, 1, 2)]
    assert os.listdir(tmp_path / "work") == [] and capsys.readouterr().err == ""


def test_a_sweep_over_a_pattern_runs_what_it_matches(runs, tmp_path):
    assert cli.main(["run", "-m", "method=glob(dem*)", "seed=0,1"]) == 0
    assert [(type(cfg.method).__name__, cfg.seed) for cfg in runs] == [("Demo", 0), ("Demo", 1)]


def test_one_bad_run_of_a_sweep_stops_no_other(runs, capsys):
    assert "method.rate=1.5: The rate 1.5 lies" in complaint(capsys, "run", "-m", "method=demo", "method.rate=1.5,0.5")
    assert [cfg.method.rate for cfg in runs] == [0.5]


def test_a_bug_is_no_bad_input(runs, monkeypatch):
    monkeypatch.setattr(cli, "run_one", lambda cfg: cfg.nowhere)
    with pytest.raises(AttributeError):
        cli.main(["run"])


def test_what_a_sweep_sends_to_another_process():
    job = pickle.loads(pickle.dumps(cli.Job(cli.run_one, sweep=True)))
    assert job.work is cli.run_one and job.process == os.getpid()


def test_bad_input_in_another_process_comes_back_as_an_error(methods, monkeypatch):
    from types import SimpleNamespace

    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    def work(cfg):
        raise UserError("Wrong.")

    launcher = OmegaConf.create({"_target_": "ray"})
    overrides = SimpleNamespace(overrides=SimpleNamespace(task=["seed=1"]), launcher=launcher)
    monkeypatch.setattr(HydraConfig, "get", lambda: overrides)
    job = cli.Job(work, sweep=True)
    job.process += 1
    with pytest.raises(UserError, match=r"^seed=1: Wrong\.$"):
        job(OmegaConf.structured(RunConfig()))


def test_showing_the_configuration_runs_nothing(runs, capsys):
    assert cli.main(["run", "method=demo", "--cfg", "job"]) == 0
    assert "rate: 0.3" in capsys.readouterr().out and runs == []


def test_stopping_a_run(runs, monkeypatch, capsys):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_one", interrupted)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err.startswith("Stopped. ")


def test_help(methods, capsys):
    for words in ([], ["--help"], ["help"]):
        assert cli.main(words) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in cli.VERBS) and "python -m repro run method=hrank" in text
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  data.root=" in text and "-m " in text and "method=NAME" in text
    assert cli.main(["run", "method=demo", "--help"]) == 0
    text = capsys.readouterr().out
    assert "method.epochs=" in text and "a whole number; default 40" in text
    assert "recipe=demo-vgg16_mnist5k-gentle" in text
    assert cli.main(["train", "-h"]) == 0
    assert "recipe=" not in capsys.readouterr().out


def test_list(methods, capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [next(i for i, line in enumerate(lines) if word in line) for word in ("controls", "dense ", "pruning")]
    assert places == sorted(places)
    assert any("bad" in line and "broken: methods/pruning/bad.py fails to import" in line for line in lines)
    assert any("demo" in line and "vgg16_mnist5k/gentle" in line for line in lines)
    assert any("resnet56_cifar10 " in line and "93.26 %" in line for line in lines)


def test_list_as_json(methods, capsys):
    assert cli.main(["list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in data["methods"]}
    assert list(rows) == ["dense", "bad", "both", "demo", "empty", "same"]
    assert rows["demo"]["fields"]["epochs"] == 40 and "vgg16_mnist5k/gentle" in rows["demo"]["recipes"]
    assert rows["demo"]["error"] is None and "fails to import" in rows["bad"]["error"]
    baseline = next(row for row in data["baselines"] if row["name"] == "vgg16_cifar10")
    assert baseline["published"] == {"top1": 93.96} and baseline["error"] is None


def test_a_baseline_that_does_not_load_is_listed(methods, capsys, monkeypatch):
    def load(name):
        raise ValueError(f"{name} is odd")

    monkeypatch.setattr("baselines.base.load", load)
    assert cli.main(["list"]) == 0
    assert "broken: ValueError: vgg16_cifar10 is odd" in capsys.readouterr().out


def measured(params, top1):
    return Measurement(top1=top1, params=params, nonzero=params, macs=9 * params, effective_macs=9 * params, bytes=4000)


def record(**changes):
    facts = {
        "kind": "run", "method": "demo", "family": "pruning", "baseline": "vgg16_mnist5k", "budget": "short", "seed": 1,
        "dense": measured(1000, 98.5), "compressed": measured(250, 97.25), "after_compression": {"top1": 40.5},
        "details": {"clamped": ["conv3"], "nothing": []},
        "layers": [
            {"name": "conv1", "dense": [16, 3], "compressed": [4, 3]},
            {"name": "conv2", "dense": [8, 16], "compressed": [8, 16]},
            {"name": "fc", "dense": [10, 8], "compressed": None},
        ],
        "provenance": {"dense_sha256": "0" * 64, "code_hash": "0" * 16, "kit_versions": {}},
    }  # fmt: skip
    return Record(**(facts | changes))


def test_the_summary_of_a_run(capsys):
    show.summary(record(), Path("results/records/x.json"))
    out = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "demo on vgg16_mnist5k (budget short, seed 1)" in rows
    assert "conv1 16 -> 4 3 75 %" in rows and "fc 10 8 replaced" in rows and "conv2" not in out
    assert "clamped: conv3" in rows and "nothing" not in out
    assert "top-1 98.50 % 97.25 % -1.25" in rows and "top-1 before retraining 40.50 % -58.00" in rows
    assert "params 1,000 250 -75.0 %" in rows and "MACs 9,000 2,250 -75.0 %" in rows
    assert "bytes 4,000 4,000 +0.0 %" in rows and rows[-1] == "Record: results/records/x.json"


def test_the_summary_of_a_dense_training(capsys):
    show.summary(record(kind="train", status="diverged", layers=[]), Path("x.json"))
    out = capsys.readouterr().out
    assert "diverged" in out and "compressed" not in out and "No layer" not in out and "1,000" in out


def test_the_leaderboard_leaves_out_a_bad_record_and_says_so(capsys, tmp_path):
    record(method="dense", family="controls", compressed=measured(1000, 98.5)).save(tmp_path)
    words = ("leaderboard", f"results.dir={tmp_path}")
    assert cli.main(words) == 0
    capsys.readouterr()
    (tmp_path / "records" / "broken.json").write_text("{")
    assert "broken.json is not valid JSON" in complaint(capsys, *words)
    assert "vgg16_mnist5k" in (tmp_path / "leaderboard.md").read_text()


def test_check_says_what_failed(capsys, monkeypatch, methods):
    from repro import checks

    def run_all(name):
        return [
            checks.Result("metadata", "", "passed", ""),
            checks.Result("output", "tiny", {"demo": "failed", "dense": "expected"}[name], "do this"),
        ]

    monkeypatch.setattr(checks, "run_all", run_all)
    assert cli.main(["check", "method=dense"]) == 0
    assert cli.main(["check", "method=dense,demo"]) == 1
    assert "do this" in capsys.readouterr().out


def test_a_real_run_prints_its_summary_and_writes_its_record(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "method=l1_filter", "baseline=tiny_plain_synthetic", "budget=smoke"]) == 0
    out, err = capsys.readouterr()
    path = Path(out.strip().splitlines()[-1].removeprefix("Record: "))
    assert json.loads(path.read_text())["method"] == "l1_filter" and path.parts[0] == "results"
    assert "top-1" in out and "MACs" in out and "Traceback" not in err
    assert os.listdir(tmp_path) == ["results"]


def test_the_process_itself():
    words = [sys.executable, "-m", "repro", "run", "method=nope"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("There is no method 'nope'.") and done.stderr.count("\n") == 1


def test_list_imports_no_heavy_library():
    code = f"""
import sys
from repro.__main__ import main
assert main(["list"]) == 0
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "[]"
