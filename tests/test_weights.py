"""Weights files: a round trip, fp16, and a sentence for every file that does not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from baselines import base, weights
from baselines.errors import UserError


def net(classes=4):
    torch.manual_seed(0)
    return base.load("tiny_plain_synthetic").net(classes)


def test_round_trip_keeps_every_bit_and_the_facts(tmp_path):
    path = weights.save(net(), tmp_path / "a" / "net.safetensors", {"epochs": 3})
    state, facts = weights.read(path)
    assert facts == {"epochs": 3} and weights.digest(state) == weights.digest(net().state_dict())
    loaded = weights.load(base.load("tiny_plain_synthetic").net(4), path, "tiny")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net().parameters(), strict=True))
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"], "a temporary file stayed behind"


def test_half_precision_and_missing_batch_counters_are_read(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in net().state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "half.safetensors")
    loaded = weights.load(net(), tmp_path / "half.safetensors", "tiny")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def altered(path):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def reshaped(path):
    state = net().state_dict()
    state["features.0.weight"] = torch.zeros(8, 3, 5, 5)
    save_file(state, path)


def other(path):
    save_file({"conv.weight": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.unlink(), "There is no weights file"),
        (lambda path: path.write_bytes(b"junk"), "is not a readable safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is not a readable safetensors file"),
        (altered, "does not match its own checksum"),
        (reshaped, r"'features.0.weight' has shape \(8, 3, 5, 5\), expected \(8, 3, 3, 3\)"),
        (other, r"lacks 'features.0.weight': these are weights of another net than tiny"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, damage, words):
    path = weights.save(net(), tmp_path / "net.safetensors")
    damage(path)
    with pytest.raises(UserError, match=words):
        weights.load(net(), path, "tiny")


def test_weights_with_a_layer_too_many_are_refused(tmp_path):
    save_file({**net().state_dict(), "more.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"holds 'more.weight', which the net does not have"):
        weights.load(net(), tmp_path / "x.safetensors", "tiny")


def test_checkpoints_of_the_project_fit_their_baselines():
    files = sorted(weights.CHECKPOINTS.glob("*.safetensors"))
    for path in files:
        name, budget = path.stem.rsplit("_", 1)
        baseline = base.load(name)
        assert budget in baseline.budgets and path.stat().st_size < 5e6
        state, facts = weights.read(path)
        weights.fit(baseline.net(100 if "cifar100" in name else 10), state, path, name)
        assert json.dumps(facts) and facts["meter"]["steps"] > 0
