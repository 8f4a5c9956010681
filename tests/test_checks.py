"""Every check passes a sound method and catches a method that is wrong in the one way it looks for."""

import dataclasses
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Method, Paper, Reported
from methods.kit import coding
from repro import checks, packed, registry
from repro.registry import Entry

RESNET, PLAIN = checks.TINY
SOUND = '"""Citation."""\n\n\nclass Sound:\n    """One sentence."""\n'
ROW = Reported(baseline="vgg16_cifar10", label="A", source="Table 1", top1=93.4)


@dataclass
class Sound(Method):
    """Zeroes the smallest share of all convolution weights and keeps it zero while it trains, in two rounds."""

    paper = Paper("A title", "A. Author", "Venue 2020", "https://example.org/paper")
    reported = (ROW, dataclasses.replace(ROW, recipe="vgg16_cifar10/half"))
    recipes = {"vgg16_cifar10/half": {"ratio": 0.5}}

    ratio: float = 0.25

    def compress(self, model, task):
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        masks = [w.abs() > w.abs().flatten().quantile(self.ratio) for w in weights]

        @torch.no_grad()
        def mask(step):
            for weight, kept in zip(weights, masks, strict=True):
                weight.mul_(kept)

        task.train(model, 1, of=3, after_step=mask)
        task.train(model, 1, of=3, after_step=mask)
        return model


class Around(nn.Module):
    """The sound network with something around it."""

    def __init__(self, net, around):
        super().__init__()
        self.net, self.around = net, around

    def forward(self, x):
        return self.around(self.net(x))


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Makes the entry of a method class, with a file of the given source, and registers it."""

    def make(cls=Sound, source=SOUND):
        path = tmp_path / "sound.py"
        path.write_text(source)
        made = Entry("sound", "controls", path, cls)
        monkeypatch.setattr(registry, "entries", lambda: {"sound": made})
        return made

    return make


def variant(compress=None, **attributes):
    """``Sound`` with another ``compress`` (which gets Sound's own as its last argument) and other class data."""
    if compress:
        attributes["compress"] = lambda self, model, task: compress(
            self, model, task, lambda: Sound.compress(self, model, task)
        )
    return dataclass(type("Sound", (Sound,), {"__doc__": "One sentence.", **attributes}))


def wrapped(around):
    """``Sound`` whose network ends in ``around``."""
    return variant(lambda self, model, task, sound: Around(sound(), around))


@pytest.mark.parametrize("case", checks.cases(Entry("sound", "controls", Path("sound.py"), Sound)), ids="-".join)
def test_a_sound_method_passes(entry, case):
    check, baseline = case
    result = checks.judge(entry(), check, baseline)
    assert (result.status, result.sentence) == ("passed", "")


# ------------------------------------------------------------------------------------------- mutants of the data


def declares(**failures):
    return variant(expected_failures={key.replace("__", "/"): reason for key, reason in failures.items()})


def reports(**changes):
    return variant(reported=(dataclasses.replace(ROW, **changes),))


METADATA = {
    "no paper": (variant(paper=None), "paper is None"),
    "no venue": (variant(paper=Paper("T", "A", " ", "https://a.b")), "no venue"),
    "no address": (variant(paper=Paper("T", "A", "V", "arxiv.org/abs/1")), "'arxiv.org/abs/1'"),
    "no source": (reports(source=""), "no source"),
    "unknown baseline": (reports(baseline="vgg_cifar10"), "'vgg_cifar10'"),
    "starts from an unknown method": (reports(start="l2:vgg16_cifar10"), "starts from 'l2:vgg16_cifar10'"),
    "starts from another net": (reports(start="sound:resnet56_cifar10/A"), "recipe for vgg16_cifar10"),
    "unknown recipe": (reports(recipe="vgg16_cifar10/third"), "'vgg16_cifar10/third'"),
    "recipe of another baseline": (
        reports(recipe="vgg16_cifar10/half", baseline="resnet56_cifar10"),
        "vgg16_cifar10/half",
    ),
    "unknown rule": (reports(rule="flops"), "'flops'"),
    "no number": (reports(top1=None), "no number"),
    "unknown check": (declares(small="reason"), "'small'"),
    "unknown net": (declares(onnx__tiny_vgg="reason"), "'onnx/tiny_vgg'"),
    "no reason": (declares(onnx=" "), "no reason"),
    "fits nothing": (declares(fits="reason"), "'fits'"),
    "fits no net": (declares(**{f"fits__{name}": "reason" for name in checks.TINY}), "fits no tiny baseline"),
}


@pytest.mark.parametrize(("cls", "words"), METADATA.values(), ids=METADATA)
def test_metadata_catches(entry, cls, words):
    with pytest.raises(checks.CheckFailed, match=words):
        checks.check_metadata(entry(cls))


@pytest.mark.parametrize("source", ['class Sound:\n    """One."""\n', '"""One."""\nclass Sound:\n    x = 1\n'])
def test_metadata_catches_a_missing_docstring(entry, source):
    with pytest.raises(checks.CheckFailed, match="no docstring"):
        checks.check_metadata(entry(source=source))


def with_field(name, kind, *default):
    spec = [(name, kind, dataclasses.field(default=default[0]))] if default else [(name, kind)]
    made = dataclasses.make_dataclass("Sound", spec, bases=(Method,), kw_only=True)
    made.compress, made.__abstractmethods__ = Sound.compress, frozenset()
    return made


class Rounding(Sound):
    """Changes what it was given."""

    def __post_init__(self):
        self.ratio = self.ratio + 0.125


CONFIG = {
    "unknown field": (variant(recipes={"vgg16_cifar10": {"rate": 0.5}}), "recipe 'vgg16_cifar10'.*rate"),
    "wrong type": (variant(recipes={"vgg16_cifar10": {"ratio": "half"}}), "recipe 'vgg16_cifar10'.*half"),
    "unknown baseline": (variant(recipes={"vgg_cifar10": {"ratio": 0.5}}), "'vgg_cifar10'.*for no baseline"),
    "type Hydra refuses": (with_field("mode", Literal["a", "b"], "a"), "a field of Sound"),
    "no default": (with_field("ratio", float), "a field of Sound"),
    "recipe of two variants": (variant(recipes={"vgg16_cifar10/a/b": {}}), "'vgg16_cifar10/a/b'.*rename it"),
    "another value comes back": (Rounding, "turns ratio=0.25 into 0.375"),
}


@pytest.mark.parametrize(("cls", "words"), CONFIG.values(), ids=CONFIG)
def test_config_catches(entry, cls, words):
    with pytest.raises(checks.CheckFailed, match=words):
        checks.check_config(entry(cls))


def test_config_catches_what_only_the_whole_command_line_shows(entry, monkeypatch):
    made = entry(variant())
    monkeypatch.setattr(registry, "entries", dict)
    with pytest.raises(checks.CheckFailed, match=r"recipe 'vgg16_cifar10/half'.*cannot be configured"):
        checks.check_config(made)


FORBIDDEN = [
    "from methods.filter_pruning.hrank import HRank",
    "import methods.filter_pruning.hrank",
    "from methods.filter_pruning import hrank",
    "from .hrank import HRank",
    "from . import hrank",
    "import importlib",
    "from repro import run",
    "import repro.run as r",
    "from baselines import data",
    "from baselines.data import stored",
    "import baselines.vgg16_cifar10",
    "from torchvision.datasets import CIFAR10",
    "from torchvision import datasets",
    "import argparse",
    "import os.path",
    "from pathlib import Path",
    "print(1)",
    "open('weights.pt')",
    "torch.load(file)",
    "model.cuda()",
    "model.to('cuda:0')",
    "device = 'cuda'",
    "task._validation",
    "data.test",
    "self.x_test",
]


@pytest.mark.parametrize("line", FORBIDDEN)
def test_task_only_catches(entry, line):
    with pytest.raises(checks.CheckFailed, match=r"sound.py, line 6: it .*A method sees a Task"):
        checks.check_task_only(entry(source=f"{SOUND}{line}\n"))


ALLOWED = [
    "import torch, numpy as np",
    "from methods.base import Method, Paper",
    "from methods.kit import surgery",
    "from methods.kit.surgery import remove",
    "from baselines.errors import UserError",
    "from baselines.cost import cost",
    "if TYPE_CHECKING:\n    from baselines.task import Task",
    "task.report(clamped=[])",
    "model.eval()",
    "self._scores(model)",
    "label = 'test'",
    "scores.cpu().numpy()",
]


@pytest.mark.parametrize("line", ALLOWED)
def test_task_only_allows(entry, line):
    checks.check_task_only(entry(source=f"{SOUND}{line}\n"))


# ------------------------------------------------------------------------------------------- mutants of compress


def refuse(self, model, task, sound):
    raise UserError("This net has no gates.")


def untouched(self, model, task, sound):
    return model


def deaf(self, model, task, sound):
    return Sound.compress(Sound(ratio=0.25), model, task)


def counting(self, model, task, sound):
    type(self).runs = getattr(type(self), "runs", 0) + 1
    self = dataclasses.replace(self, ratio=self.ratio + 0.125 * (type(self).runs % 2))
    return Sound.compress(self, model, task)


def greedy(self, model, task, sound):
    self.ratio = 0.5
    return sound()


def forgetful(self, model, task, sound):
    """What the callback counts in the first train call decides the ratio after it, and is in no state."""
    seen = []
    task.train(model, 1, of=3, after_step=seen.append)
    self = dataclasses.replace(self, ratio=self.ratio + 0.0625 * len(seen))
    for weight in (m.weight.data for m in model.modules() if isinstance(m, nn.Conv2d)):
        weight.mul_(weight.abs() > weight.abs().flatten().quantile(self.ratio))
    return task.train(model, 2, of=3)


def impatient(self, model, task, sound):
    """Trains less when the journal already holds something."""
    rounds = 1 if task._journal and any(task._journal.glob("*")) else 2
    for _ in range(rounds):
        task.train(model, 1, of=2)
    return model


def with_fields(compress, **defaults):
    """``Sound`` with ``compress`` as given, and float fields with these defaults, of which it trains with ``lr``."""
    spec = [(name, float | None, dataclasses.field(default=value)) for name, value in defaults.items()]

    def trained(self, model, task):
        model = compress(self, model, task, None)
        return task.train(model, 1, of=3, lr=getattr(self, "lr", None))

    return dataclasses.make_dataclass("Sound", spec, bases=(Sound,), namespace={"compress": trained})


class OneOrMore(nn.Module):
    """Adds 1 to a single image's logits."""

    def forward(self, x):
        return x + (1 if len(x) == 1 else 0)


class Single(nn.Module):
    """Loses the batch axis of a single image."""

    def forward(self, x):
        return x.squeeze(0)


class Refuses(nn.Module):
    """Wants more than one image, as BatchNorm does in training mode."""

    def forward(self, x):
        if len(x) == 1:
            raise ValueError("more than 1 value per channel")
        return x


class Unregistered(nn.Module):
    """Scales by a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.scale = torch.full((4,), 2.0)

    def forward(self, x):
        return x * self.scale


class Listed(Unregistered):
    """Keeps the tensor in a list."""

    def __init__(self):
        super().__init__()
        self.scale = [self.scale]

    def forward(self, x):
        return x * self.scale[0]


def slanted(self, model, task, sound):
    """Keeps a number that no constructor is told."""
    model = sound()
    model.features[2].slope = 0.25
    return model


class Lock(nn.Identity):
    """Holds something that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Sized(nn.Module):
    """Adds the number of images, a constant after tracing."""

    def forward(self, x):
        return x + int(x.shape[0])


class Exotic(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, x):
        return torch.linalg.qr(x @ x.T)[0] @ x


class Wide(nn.Module):
    """Gives one logit too many."""

    def forward(self, x):
        return torch.cat([x, x[:, :1]], 1)


NETWORK = {
    "refuses": ("fits", variant(refuse), "This net has no gates.*'fits/tiny_plain_synthetic': reason"),
    "no network": ("fits", variant(lambda self, model, task, sound: (model, 0.5)), "returns a tuple"),
    "one logit too many": ("output", wrapped(Wide()), r"shape \(5, 5\); expected \(5, 4\)"),
    "not a number": ("output", variant(lambda self, model, task, sound: nan(sound())), "NaN or infinite"),
    "loses the batch axis": ("output", wrapped(Single()), "an image alone"),
    "fails for one image": ("output", wrapped(Refuses()), "cannot take a single image"),
    "sees the batch": ("output", wrapped(OneOrMore()), "other logits than in a batch"),
    "returns the net as it was": ("smaller", variant(untouched), "as much of everything"),
    "deaf to its ratio": ("dial", variant(deaf), "for ratio=0.125 as for its defaults"),
    "deaf but for its learning rate": (
        "dial",
        with_fields(deaf, ratio=0.25, lr=0.01),
        "ratio=0.125 as for its defaults",
    ),
    "deaf to an optional ratio": ("dial", with_fields(untouched, ratio=None, start_lr=0.01), "ratio=0.25 as for"),
    "no hyper-parameter": ("dial", with_field("name", str, "x"), "has no numeric field"),
    "state in the class": ("deterministic", variant(counting), "two networks for one seed"),
    "changes its ratio": ("hyperparameters", variant(greedy), "ratio from 0.25 to 0.5"),
    "tensor outside the state": ("saves", wrapped(Unregistered()), "register every tensor"),
    "tensor in a list": ("saves", wrapped(Listed()), "register every tensor"),
    "cannot be copied": ("saves", wrapped(Lock()), "cannot be saved"),
    "class of another package": ("packs", wrapped(nn.Identity()), "on another machine: .*Around is none of torch.nn"),
    "number outside the arguments": (
        "packs",
        variant(slanted),
        "'features.2' .* has 0.25 as 'slope', but .* give nothing",
    ),
    "batch size baked in": ("onnx", wrapped(Sized()), "other logits in ONNX"),
    "no such operator": ("onnx", wrapped(Exotic()), "cannot be exported to ONNX"),
    "callback forgets": ("resumes", variant(forgetful), "ends elsewhere"),
    "fewer calls": ("resumes", variant(impatient), "fewer train calls"),
}


def nan(model):
    next(model.parameters()).data[:] = float("nan")
    return model


@pytest.mark.parametrize(("check", "cls", "words"), NETWORK.values(), ids=NETWORK)
def test_network_check_catches(entry, check, cls, words):
    with pytest.raises(checks.CheckFailed, match=words):
        checks.OF_NETWORK[check](entry(cls), PLAIN)


@torch.no_grad()
def shifted(net):
    next(net.parameters()).add_(1)


def uncoded(net):
    for module in net.modules():
        vars(module).pop(coding.DECLARED, None)


def wider(net):
    net.add_module("unused", nn.Linear(1, 1))


@pytest.mark.parametrize(
    "change, words",
    [(shifted, "other logits after loading"), (uncoded, "other codings"), (wider, "costs .*, but .* aft")],
)
def test_packs_catches_what_loads_otherwise(entry, monkeypatch, change, words):
    def restore(*args):
        change(net := real(*args))
        return net

    def coded(self, model, task, sound):
        model = sound()
        coding.attach(model.classifier[1], "weight", coding.Coding(bits=32))
        return model

    real = packed.restore
    checks.check_packs(made := entry(variant(coded)), PLAIN)
    monkeypatch.setattr(packed, "restore", restore)
    with pytest.raises(checks.CheckFailed, match=words):
        checks.check_packs(made, PLAIN)


def test_every_check_has_a_mutant():
    assert {check for check, _, _ in NETWORK.values()} == set(checks.OF_NETWORK)


def test_the_dense_net_is_not_changed(entry):
    before = {key: value.clone() for key, value in checks.ground(PLAIN)[2].state_dict().items()}
    checks.compress(Sound(), PLAIN)
    assert all(torch.equal(value, before[key]) for key, value in checks.ground(PLAIN)[2].state_dict().items())


# ------------------------------------------------------------------------------------------- declared failures


def test_a_declared_failure_is_expected(entry):
    found = checks.judge(entry(variant(untouched, expected_failures={"smaller": "the reference"})), "smaller", PLAIN)
    assert (found.status, found.sentence) == ("expected", "the reference")


def test_a_declared_failure_that_passes_has_failed(entry):
    found = checks.judge(entry(variant(expected_failures={"smaller": "the reference"})), "smaller", PLAIN)
    assert found.status == "failed" and "remove the declaration" in found.sentence


def test_a_declaration_for_one_net_says_nothing_of_the_other(entry):
    method = entry(variant(untouched, expected_failures={f"smaller/{PLAIN}": "the reference"}))
    assert [checks.judge(method, "smaller", name).status for name in (RESNET, PLAIN)] == ["failed", "expected"]


def test_a_net_declared_unfit_is_tried_once_and_skipped_after(entry):
    method = entry(variant(refuse, expected_failures={f"fits/{PLAIN}": "no gates"}))
    assert [checks.judge(method, check, PLAIN).status for check in ("fits", "output")] == ["expected", "skipped"]
    assert checks.judge(method, "fits", RESNET).status == "failed"


def crash(self, model, task, sound):
    return {}["features"]


def test_a_crash_is_a_failure_even_where_a_failure_is_declared(entry):
    method = entry(variant(crash, expected_failures={"smaller": "the reference"}))
    found = checks.judge(method, "smaller", PLAIN)
    assert found.status == "failed" and "KeyError: 'features' (test_checks.py, line" in found.sentence


def test_a_file_that_fails_to_import_fails_alone():
    broken = Entry("broken", "controls", Path("broken.py"), error="controls/broken.py fails to import: no module x.")
    assert checks.cases(broken) == [("import", "")]
    found = checks.judge(broken, "import")
    assert found.status == "failed" and "no module x" in found.sentence


def test_an_unknown_method_is_one_sentence():
    with pytest.raises(UserError, match="There is no method 'hrnak'"):
        checks.run_all("hrnak")


def test_a_missing_onnxruntime_is_one_sentence(entry, monkeypatch):
    entry()
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime, which is not installed: pip install"):
        checks.run_all("sound")


def test_run_all_gives_every_result(entry):
    found = checks.run_all(entry().name)
    assert {result.status for result in found} == {"passed"}
    assert len(found) == len(checks.OF_FILE) + len(checks.TINY) * len(checks.OF_NETWORK)
