"""Ten thousand damaged or crafted inputs: each is used or refused with a sentence, and nothing else happens."""

import copy
import io
import json
import os
import random
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_codec import every_coding, read_file, ruin, twist, write_file
from test_records import CELL, COUNTED, LATENCY, LAYERS, STORED, a_record
from test_run import config as run_config

from baselines import base, weights
from baselines import task as tasks
from baselines.data import DataOptions, read_npz
from baselines.errors import UserError
from baselines.task import Fit, Journal, Meter, Task
from methods.filter_pruning.l1_filter import L1Filter
from repro import codec, config, leaderboard, measure, report
from repro.__main__ import main
from repro.ground import Dense, fastest, prepare, trained
from repro.record import is_measurement, is_training, load, load_all
from repro.verify import configured

HUGE = [0, -1, 1, 2**31, 2**32 - 1, 2**63, 10**18, 10**40, 1e308, -0.0, 1e999, True, None]
ODD = [*HUGE, "", "x", "../../x", "a\x00b", "\ud800", "=1+1", "</script><script>x", "|\n|", "\\input{x}", [], {}, [[]]]
ODD += [{"": {}}, [None], ["x"] * 3, [1, 2], [0, "", {}], {"a": [{"b": [1e300]}]}]
NAMES = [
    "..",
    "../x",
    "/etc/passwd",
    "a\x00b",
    "a\nb",
    "a\tb",
    "\udc80",
    "\u2025/x",
    "\uff0e\uff0e/x",
    "\u202ex",
    "C:\\x",
]
NAMES += ["CON", "~root/x", "$(id)", "${oc.env:HOME}", "${x}", "${", "-1", "9" * 60, "9" * 5000, "a" * 5000, "1e999"]
NAMES += [
    "null",
    "[1,2]",
    "[",
    "{a:1}",
    "{",
    "'",
    '"',
    "a,b",
    "=",
    "a=b",
    "range(9)",
    "glob(*)",
    "%2e%2e/x",
    "a b",
    "é",
]
KEYS = ["method", "baseline", "recipe", "start", "budget", "seed", "latency", "device.name", "device.threads", "only"]
KEYS += ["method.ratio", "baseline.weights", "data.classes", "results.dir", "cache", "", "..", "hydra", "~seed", "+x"]
MEMORY = 1 << 20  # KiB that the process may grow by in one test


@pytest.fixture(autouse=True)
def contained(tmp_path, monkeypatch):
    """A working folder two levels down, around which no file appears; memory does not grow without bound."""
    work = tmp_path / "outer" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert [*tmp_path.iterdir()] == [work.parent] and [*work.parent.iterdir()] == [work]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def survived(use, inputs):
    """(used, refused) numbers of inputs; any error but a UserError with words ends the test."""
    used = refused = 0
    for one in inputs:
        try:
            use(one)
            used += 1
        except UserError as error:
            assert str(error)
            refused += 1
    return used, refused


def bytes_like(whole, rng, number):
    """Copies with flipped bits, cuts, insertions, and 4 or 8 bytes that read as a length replaced."""
    for _ in range(number):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 1:
                del data[at:]
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.randrange(9))
            else:
                size = rng.choice((4, 8))
                data[at : at + size] = rng.choice((0, 1, 2**31, 2**32 - 1)).to_bytes(size, "little")
        yield bytes(data)


def places(value, path=()):
    """The paths of all that is in a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(data, rng):
    """One to three places of a JSON object hold something else, are gone, or have a neighbour."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randrange(1, 4)):
        if not data:
            break
        *way, last = rng.choice([*places(data)])
        inner = data
        for key in way:
            inner = inner[key]
        kind = rng.random()
        if kind < 0.1:
            del inner[last]
        elif kind < 0.2 and isinstance(inner, dict):
            inner[rng.choice(["", "x", "=x", "../x", "\ud800", "<b>"])] = copy.deepcopy(rng.choice(ODD))
        else:
            inner[last] = copy.deepcopy(rng.choice(ODD))
    return data


def test_packed_files():
    rng = random.Random(1)
    whole = codec.encode(*every_coding()).data
    rows, payload = read_file(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "LIMIT", 1 << 24)
        crafted = [write_file(twist(rows, rng), payload) for _ in range(1200)]
        crafted += [write_file(rows, ruin(payload, rng)) for _ in range(800)]
        used, refused = survived(codec.unpack, [*bytes_like(whole, rng, 1500), *crafted])
    assert used + refused == 3500 and refused > 1500


def a_whole_record():
    latency = LATENCY | {"cells": [CELL]}
    return a_record(recipe="vgg16_cifar10/a", counted=COUNTED, latency=latency, stored=STORED, layers=LAYERS)


def test_records(tmp_path):
    rng, record = random.Random(2), a_whole_record()
    path = record.save("results")
    whole = path.read_bytes()
    data = json.loads(whole)

    def use(content):
        path.write_bytes(content)
        found = load(path)
        assert found.id == found.identity() and all(n >= 0 for n in (found.seed, found.dense.params))
        found.save("again")
        if rng.random() < 0.02:
            assert "<script" not in report.page(found, None, None)
            boards = leaderboard.build([found], {}, {})
            assert leaderboard.markdown(boards) and leaderboard.files(boards)
            assert "\n=" not in leaderboard.csv(boards).replace(",", "\n")

    def reidentified(content):
        """The id fits again, as whoever wants to do harm would see to."""
        try:
            path.write_bytes(content)
            load(path)
        except UserError as error:
            found = str(error).partition("what it holds gives ")[2][:12]
            return content.replace(record.id.encode(), found.encode()) if found else content
        return content

    texts = (json.dumps(changed(data, rng)).encode() for _ in range(2000))
    used, refused = survived(use, [*map(reidentified, texts), *bytes_like(whole, rng, 1000)])
    assert used + refused == 3000 and used > 100 and refused > 1500


def links(path, whole):
    path.rename("elsewhere.json")
    path.symlink_to("/work/elsewhere.json")


def nested(path, whole):
    path.write_bytes(whole.replace(b'"clamped"', b'"deep": ' + b"[" * 200 + b"]" * 200 + b', "clamped"'))


CRAFTED = {
    "a link": (links, "not a file of its own"),
    "a pipe": (lambda path, whole: (path.unlink(), os.mkfifo(path)), "not a file of its own"),
    "a gigabyte": (lambda path, whole: os.truncate(path, 1 << 30), "1073741824 bytes"),
    "deep": (nested, "levels deep"),
    "infinite": (lambda path, whole: path.write_bytes(whole.replace(b'"ratio": 0.5', b'"ratio": 1e999')), "finite"),
    "a key twice": (
        lambda path, whole: path.write_bytes(whole.replace(b'"seed"', b'"seed": 1, "seed"')),
        "occurs twice",
    ),
    "half a pair": (lambda path, whole: path.write_bytes(whole.replace(b'"c0de"', b'"\\ud800"')), "surrogates"),
    "no numbers": (lambda path, whole: path.write_bytes(whole.replace(b"0, 2.5, 0.01", b'0, "", {}')), "'curve'"),
    "a formula": (lambda path, whole: path.write_bytes(whole.replace(b'"ratio"', b'"=ratio"')), "names of fields"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_record_is_named_and_skipped(case):
    change, words = CRAFTED[case]
    good, path = a_record(seed=1), a_record().save("results")
    good.save("results")
    change(path, path.read_bytes())
    records, (problem,) = load_all("results")
    assert records == [good] and words in problem and str(path) in problem


def test_weights(tmp_path):
    rng = random.Random(3)
    net = base.load("tiny_plain_synthetic").net(4)
    state = dict(net.state_dict())
    whole = save(state, {"sha256": weights.digest(state), "facts": "{}"})
    size = int.from_bytes(whole[:8], "little")
    header, path = json.loads(whole[8 : 8 + size]), tmp_path / "outer" / "work" / "net.safetensors"

    def headed():
        text = json.dumps(changed(header, rng)).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    def use(content):
        path.write_bytes(content)
        weights.load(net, path, "tiny")

    used, refused = survived(use, [*bytes_like(whole, rng, 700), *(headed() for _ in range(800))])
    assert used + refused == 1500 and refused > 1000
    for content in (save(state, {"facts": "{"}), save(state, {"facts": "[]"})):
        with pytest.raises(UserError, match=r"safetensors|facts"):
            use(content)
    with pytest.raises(UserError, match=r"has torch\.complex64, expected torch\.float32"):
        use(save({name: value.to(torch.complex64) for name, value in state.items()}))
    torch.save(state, path)
    with pytest.raises(UserError, match=r"Pickles .* are not opened"):
        weights.load(net, path, "tiny")


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_data_files(tmp_path):
    rng, path = random.Random(4), tmp_path / "outer" / "work" / "cifar10.npz"
    x, y = np.zeros((3, 32, 32, 3), np.uint8), np.array([0, 1, 2])
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    odd = [np.array(v) for v in (["a", "b", "c"], [np.nan] * 3, [1j] * 3, [True] * 3, 5, [], [[1, 2, 3]])]
    odd += [x[:, :5], x.astype(float), -y, y + 2**62, y.astype("M8[s]"), np.zeros(3, "i4,f4"), y.astype(object)]
    bombs = io.BytesIO()
    with (
        zipfile.ZipFile(bombs, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x_train.npy", "w") as member,
    ):
        for _ in range(65):
            member.write(bytes(1 << 24))

    def use(content):
        path.write_bytes(content)
        read_npz(path, "cifar10")

    use(npz(**arrays))
    crafted = [npz(**{**arrays, rng.choice([*arrays]): rng.choice(odd)}) for _ in range(300)]
    used, refused = survived(use, [*bytes_like(npz(**arrays), rng, 700), *crafted, bombs.getvalue()])
    assert used + refused == 1001 and refused > 500
    with pytest.raises(UserError, match="unpacks to"):
        use(bombs.getvalue())


def tiny(**options):
    return prepare(run_config(Path("."), budget="smoke", **options))


def test_what_was_measured_before(capsys, monkeypatch):
    """The choice of arithmetic and the numbers of the dense net in the cache: used, or told and measured again."""
    rng, ground, net = random.Random(6), tiny(), base.load("tiny_plain_synthetic").net(4)
    dense = Dense(net, "d" * 64, False)
    engines = [[precision, last] for precision in ("fp32", "bf16") for last in (False, True)]
    before, made = measure.measured_dense(ground, dense), []
    monkeypatch.setattr(tasks, "fastest", lambda *given: made.append(1) or ("bf16", True))
    monkeypatch.setattr(measure, "measure", lambda *given: made.append(1) or before)
    monkeypatch.setattr(measure, "exported", lambda *given: (None, ""))
    device = torch.device("cpu")
    assert fastest(ground, device) == ("bf16", True)
    (speed, measured), used = (ground.cache / "speed.json", *(ground.cache / "measured").iterdir()), 0
    for path, use in (
        (speed, lambda: fastest(ground, device)),
        (measured, lambda: measure.measured_dense(ground, dense)),
    ):
        whole = path.read_bytes()
        texts = (json.dumps(changed(json.loads(whole), rng)).encode() for _ in range(250))
        for content in [b"[]", b"1", b"", b"[" * 10**5, *texts, *bytes_like(whole, rng, 250)]:
            path.write_bytes(content)
            made.clear()
            found = use()
            if path == speed:
                assert [*found] in engines and type(found[1]) is bool
            else:
                assert is_measurement(vars(found))
            told = f"{path} is damaged and is not used" in capsys.readouterr().err
            assert (path.read_bytes() == content) is not bool(made) and (made or not told)
            used += not made
    assert 5 < used < 200


def test_the_facts_beside_a_trained_net():
    rng, ground = random.Random(7), tiny()
    trained(ground)
    (path,) = (ground.cache / "dense").iterdir()
    state, facts = weights.read(path)

    def use(new):
        kept = {"sha256": weights.digest(state), "facts": json.dumps(new)}
        path.write_bytes(save(state, kept))
        found = trained(ground)[1]
        assert is_training(found) and Meter(**found["meter"])

    used, refused = survived(use, [{}, [], *(changed(facts, rng) for _ in range(150))])
    assert used > 5 and refused > 100


def test_journals(capsys):
    """What a killed run has left: used, or done again with a sentence, or refused."""
    rng, found = random.Random(8), base.load("tiny_plain_synthetic")
    data, folder = found.data(DataOptions()), Path("journal")

    def training(steps=1):
        task = Task(found, data, budget="paper", journal=folder)
        fit = Fit(task, found.net(4), found.finetune, steps, 8)
        return fit, Journal(task, fit)

    fit, journal = training()
    fit.run()
    whole = journal.whole.read_bytes()
    kept = torch.load(journal.whole, weights_only=True)

    def use(content):
        journal.whole.write_bytes(content)
        training()[1].restore()

    def altered():
        value, file = copy.deepcopy(kept), io.BytesIO()
        inner = rng.choice([value, value, value["meter"], value["rng"], value["optimizer"], value["things"]])
        inner[rng.choice([*inner] if isinstance(inner, dict) else range(len(inner)))] = copy.deepcopy(rng.choice(ODD))
        torch.save(rng.choice([value] * 20 + ODD), file)
        return file.getvalue()

    used, refused = survived(use, [whole, *bytes_like(whole, rng, 200), *(altered() for _ in range(200))])
    damaged = capsys.readouterr().err.count("call0.pt is damaged and is not used")
    assert used + refused == 401 and refused > 30 and 150 < damaged < used


def test_records_to_verify():
    """What a valid record may lack of what a run needs."""
    rng, old = random.Random(9), replace(a_record(), method="l1_filter")
    place = {"data_sha256": {}, "device": "cpu (x)", "precision": "fp32", "channels_last": False, "threads": 1}
    fields = {"provenance": old.provenance | place, "options": {"data": "synthetic[3x2]", "holdout": False}}
    fields["hyperparameters"] = {"ratio": 0.5}

    def use(fields):
        cfg = configured(replace(old, **fields), {})
        assert isinstance(cfg.method, L1Filter) and type(cfg.device.threads) is int and type(cfg.data.holdout) is bool

    altered = ({**fields, name: changed(fields[name], rng)} for name in fields for _ in range(150))
    used, refused = survived(use, [fields, *altered])
    assert used > 20 and refused > 200


def a_name(rng):
    name = rng.choice(NAMES)
    if rng.random() < 0.5:
        at = rng.randrange(min(len(name), 20) + 1)
        name = name[:at] + rng.choice(NAMES)[:40] + name[at:]
    return name


def test_words(capsys):
    rng = random.Random(5)
    words = [f"{rng.choice(KEYS)}={a_name(rng)}" for _ in range(980)]
    used, refused = survived(lambda word: config.check(config.quoted([word])), words)
    assert used + refused == 980 and refused > 500
    a_record().save("results")
    verbs = [("report", "run"), ("export", "format=onnx", "run"), ("check", "method"), ("leaderboard", "results.dir")]
    verbs += [("run", "method"), ("run", "baseline"), ("run", "start"), ("run", "device.name"), ("train", "recipe")]
    for _ in range(20):
        *before, key = rng.choice(verbs)
        assert main([*before, f"{key}={a_name(rng)}"]) == 2
        assert capsys.readouterr().err
