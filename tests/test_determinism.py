"""Every method runs twice, the second time in a process that orders sets otherwise: the records are equal.

So are the weights, of which a record holds only what was measured.
"""

import json
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from test_run import config

from baselines import weights
from methods.filter_pruning.l1_filter import L1Filter
from repro import checks
from repro.ground import dense_net, prepare
from repro.registry import entries
from repro.run import made
from repro.verify import comparable, differences

METHODS = {name: entry.cls for name, entry in entries().items() if entry.cls}


def unseeded(self, model, task):
    """A method that draws from a generator of its own, which nobody seeds."""
    with torch.no_grad():
        next(model.parameters()).mul_(random.SystemRandom().random())
    return model


def by_hash(self, model, task):
    """A method that goes through a set of names, in an order that each process has of its own."""
    task.report(order=[*{name for name, _ in model.named_parameters()}])
    return model


MUTANTS = {mutant.__name__: mutant for mutant in (unseeded, by_hash)}


def baseline_of(cls):
    """The cheaper one of the tiny baselines, unless the method does not take it."""
    return next(name for name in reversed(checks.TINY) if f"fits/{name}" not in cls.expected_failures)


def numbers(folder, cls):
    """What of a record has to be equal, as a file holds it, and the digest of the net's weights."""
    baseline = baseline_of(cls)
    ground = prepare(config(folder, checks.instance(cls, baseline), baseline, "smoke"))
    record, net, _ = made(ground, dense_net(ground))
    return json.loads(json.dumps(comparable(record) | {"weights": net and weights.digest(net.state_dict())}))


def mutated(folder, compress):
    """The numbers of a method that has this ``compress``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L1Filter, "compress", compress)
        return numbers(folder, L1Filter)


def work(folder):
    """What the second process does: the numbers of all, or why there are none."""
    torch.set_num_threads(1)
    found = {name: mutated(folder, compress) for name, compress in MUTANTS.items()}
    for name, cls in METHODS.items():
        try:
            found[name] = numbers(folder, cls)
        except Exception:
            found[name] = traceback.format_exc()
    (folder / "numbers.json").write_text(json.dumps(found))


def told(found, again, other):
    """All differences, and those that are left when this process does the work once more."""
    left = [*differences(again, other)]
    return "\n".join(map(str, found)) + f"\nDone again in the same process: {left or 'equal to the other process'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """The numbers that another process came to, by method; its dense nets are its own."""
    out = tmp_path_factory.mktemp("second")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"}
    done = subprocess.run([sys.executable, __file__, str(out)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((out / "numbers.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_record_in_another_process(folder, second, name):
    assert isinstance(second[name], dict), second[name]
    found = [*differences(numbers(folder, METHODS[name]), second[name])]
    assert not found, told(found, numbers(folder / "again", METHODS[name]), second[name])


@pytest.mark.parametrize(("name", "field"), [("unseeded", "weights"), ("by_hash", "details.order[")])
def test_a_method_without_seed_or_order_is_found(folder, second, name, field):
    found = [where for where, *_ in differences(mutated(folder, MUTANTS[name]), second[name])]
    assert found and all(where.startswith(field) for where in found)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
