"""``python -m repro export``: files of a run's net for other programs, and one sentence for whatever is wrong."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from baselines import base
from methods.kit import surgery
from repro import __main__ as cli
from repro import packed
from repro.architecture import choose_root
from repro.interchange import session

ROOT = Path(__file__).parent.parent
NAME, ID, OTHER, GONE = "tiny_resnet_synthetic", "3f2a00112233", "3f2b00112233", "77e100000000"


@pytest.fixture(scope="module")
def nets():
    """A pruned net and its student."""
    torch.manual_seed(0)
    found = base.load(NAME)
    pruned, example = found.net(4).eval(), torch.randn(8, 3, 16, 16)
    keep = {n: torch.arange(layer.width) % 3 > 0 for n, layer in surgery.layers(pruned, example).items()}
    return surgery.remove(pruned, example, keep), found.student(4).eval()


@pytest.fixture
def words(tmp_path, nets, monkeypatch):
    """The options of an export from a cache with two nets, beside the record of a third run."""
    for run, net in zip((ID, OTHER), nets, strict=True):
        root = choose_root(net, base.load(NAME), 4)
        packed.save(net, tmp_path / "cache" / "nets" / run, root, {"input": [3, 16, 16]})
    record = tmp_path / "results" / "records" / NAME / "short" / "l1_filter" / f"{GONE}.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return [f"cache={tmp_path / 'cache'}", f"results.dir={tmp_path / 'results'}"]


def written(tmp_path):
    return sorted(str(path.relative_to(tmp_path / "work")) for path in (tmp_path / "work").rglob("*.*"))


def test_packed_in_another_process_and_loaded_in_a_third(tmp_path, words, nets):
    out = tmp_path / "work" / "new" / "folder"
    call = [sys.executable, "-m", "repro", "export", "run=3f2a", "format=packed", f"out={out}", *words]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(out / f"{ID}.packed"), str(out / f"{ID}.json")]
    code = f"""
import json, pathlib, sys, torch
from repro import packed
unpickled = []
sys.addaudithook(lambda event, details: unpickled.append(details) if event.startswith("pickle") else None)
net = packed.load(pathlib.Path({str(out / ID)!r}))
print(json.dumps([net(torch.arange(768.0).view(1, 3, 16, 16) / 768).tolist(), unpickled]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [nets[0](torch.arange(768.0).view(1, 3, 16, 16) / 768).tolist(), []]


@pytest.mark.parametrize("run", [ID, OTHER, "3f2b0"])
def test_onnx_gives_the_same_logits_for_any_batch(tmp_path, words, nets, capsys, run):
    assert cli.main(["export", f"run={run}", "format=onnx", *words]) == 0
    name, net = (f"{ID}.onnx", nets[0]) if run == ID else (f"{OTHER}.onnx", nets[1])
    assert capsys.readouterr().out.split() == [name] == written(tmp_path)
    compiled = session((tmp_path / "work" / name).read_bytes())
    for n in (1, 5):
        x = torch.randn(n, 3, 16, 16)
        assert torch.allclose(compiled(x), net(x), atol=1e-5)


def test_pt2_gives_the_same_logits_for_any_batch(tmp_path, words, nets):
    assert cli.main(["export", f"run={ID}", "format=pt2", *words]) == 0
    assert written(tmp_path) == [f"{ID}.pt2"]
    data = (tmp_path / "work" / f"{ID}.pt2").read_bytes()
    assert zipfile.is_zipfile(io.BytesIO(data))
    program = torch.export.load(io.BytesIO(data)).module()  # a file of this test itself
    for n in (2, 5):
        x = torch.randn(n, 3, 16, 16)
        assert torch.allclose(program(x), nets[0](x), atol=1e-5)


def test_an_export_replaces_what_was_there(tmp_path, words, nets):
    for name in (f"{ID}.json", f"{ID}.packed"):
        (tmp_path / "work" / name).write_text("old")
    assert cli.main(["export", f"run={ID}", "format=packed", *words]) == 0
    assert written(tmp_path) == [f"{ID}.json", f"{ID}.packed"]
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(packed.load(tmp_path / "work" / ID)(x), nets[0](x))


@pytest.mark.parametrize(
    "asked, says",
    [
        ("run=abcd format=onnx", "There is no run abcd in "),
        (
            "run=3f2 format=onnx",
            "run=3f2 is no id: give the 12 digits (0-9, a-f) of a record's name, or at least 4 of them.",
        ),
        ("run=3F2A format=onnx", "run=3F2A is no id"),
        ("run=../../x format=onnx", "run=../../x is no id"),
        (f"run={ID}0 format=onnx", f"run={ID}0 is no id"),
        ("run=3f2a format=tflite", "There is no format 'tflite'. Choose one of: packed, onnx, pt2."),
        ("run=77e1 format=packed", f"The net of run '{GONE}' is not in the cache"),
        ("run=3f2a", "export needs format=...: python -m repro export run=ID format=onnx."),
        ("format=onnx", "export needs run=...: python -m repro export"),
        ("run=3f2a format=onnx to=x", "'to=x' is not an option here. Choose one of: run=..., format=..., out=..., res"),
    ],
)
def test_bad_words(tmp_path, words, capsys, asked, says):
    assert cli.main(["export", *asked.split(), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and written(tmp_path) == []


def test_an_ambiguous_prefix(tmp_path, words, capsys, nets):
    name = f"{ID[:-1]}4"
    packed.save(nets[0], tmp_path / "cache" / "nets" / name, choose_root(nets[0], base.load(NAME), 4), {})
    assert cli.main(["export", "run=3f2a0011", "format=onnx", *words]) == 2
    says = f"run=3f2a0011 fits 2 runs ({ID}, {name}): give more digits."
    assert capsys.readouterr().err.strip() == says
    assert cli.main(["export", f"run={ID}", "format=packed", *words]) == 0
    assert cli.main(["export", f"run={name}", "format=onnx", *words]) == 2
    assert "give its input as None, not as [C, H, W]: run it again" in capsys.readouterr().err


def test_a_net_that_cannot_be_traced(words, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("data-dependent\nguard")

    monkeypatch.setattr("torch.export.export", fail)
    assert cli.main(["export", f"run={ID}", "format=pt2", *words]) == 2
    assert "cannot be exported to pt2 (RuntimeError: data-dependent guard): take format=" in capsys.readouterr().err


def test_a_damaged_net_is_not_exported(tmp_path, words, capsys):
    file = tmp_path / "cache" / "nets" / f"{ID}.packed"
    file.write_bytes(file.read_bytes()[:-1])
    assert cli.main(["export", f"run={ID}", "format=packed", *words]) == 2
    assert "is damaged" in capsys.readouterr().err and written(tmp_path) == []


def test_the_help_says_what_may_be_loaded(capsys):
    assert cli.main(["export", "--help"]) == 0
    assert "written, never loaded" in capsys.readouterr().out
