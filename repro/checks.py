"""The contract of a method as functions: each looks at one aspect and fails with a sentence.

Used over every method by ``tests/test_contract.py`` and for one by ``python -m repro check method=NAME``. The checks
of ``OF_FILE`` read the file and its data; those of ``OF_NETWORK`` run ``compress`` at budget ``smoke`` on each tiny
baseline. A method declares a check that it is known to fail: ``expected_failures = {"onnx": "reason"}``, or for one
baseline ``{"onnx/tiny_plain_synthetic": "reason"}``. ``fits/BASELINE`` says that the method cannot compress that net.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines import base
from baselines.cost import cost
from baselines.data import DataOptions
from baselines.errors import UserError
from baselines.task import Engine, Normalise, Task, seed_everything
from methods.base import Method, Paper
from methods.kit.coding import codings
from repro import architecture, codec, config, packed, registry
from repro.counting import RULES
from repro.interchange import session, to_onnx
from repro.registry import Entry

TINY = ("tiny_resnet_synthetic", "tiny_plain_synthetic")
SEED = 7
TOLERANCE = 1e-4  # largest difference of two outputs that should be equal, relative to the largest logit if above 1
BASELINE_MODULES = ("baselines.cost", "baselines.errors", "baselines.task")
OWN_MODULES = ("methods.base", "methods.kit", *BASELINE_MODULES)
FOREIGN = ("repro", "methods", "baselines", "argparse", "importlib", "os", "pathlib", "subprocess", "sys", "tests")
CALLS = ("print", "open", "input", "eval", "exec", "__import__", "breakpoint", "torch.load", "torch.save", "np.load")
TRAINING = ("epochs", "lr")
TEST_SET = ("test", "test_set", "testset", "test_loader", "x_test", "y_test")


class CheckFailed(AssertionError):
    """What is wrong, what was expected, what to do."""


@dataclass(frozen=True)
class Result:
    """One check on one method: ``status`` is passed, failed, expected (declared) or skipped; ``baseline`` may be ""."""

    check: str
    baseline: str
    status: str
    sentence: str


@dataclass(frozen=True)
class Outcome:
    """What one ``compress`` gave: the network, its task, and the hyper-parameters before and after."""

    net: nn.Module
    task: Task
    before: dict[str, Any]
    after: dict[str, Any]


def expect(holds: object, sentence: str) -> None:
    """CheckFailed with the sentence unless ``holds``."""
    if not holds:
        raise CheckFailed(sentence)


# ------------------------------------------------------------------------------------------- compressing a tiny net


@functools.cache
def ground(baseline: str) -> tuple[base.Baseline, Any, nn.Module]:
    """(baseline, data, trained dense net): made once; copy the net before changing it."""
    seed_everything(SEED)
    found = base.load(baseline)
    data = found.data(DataOptions())
    net = found.net(data.num_classes)
    Task(found, data, budget="short", seed=SEED).train_dense(net, found.train["short"])
    return found, data, net


@functools.cache
def images(baseline: str, n: int = 5) -> torch.Tensor:
    """``n`` normalised training images (n, C, H, W)."""
    found, data, _ = ground(baseline)
    pixels, _ = next(data.train.plain(n))
    return Normalise(found.mean, found.std, Engine())(pixels)


def instance(cls: type[Method], baseline: str) -> Method:
    """The method with the values that its recipe for ``baseline`` gives, else with its defaults."""
    return cls(**cls.recipes.get(baseline, {}))


def compress(method: Method, baseline: str, journal: Path | None = None, kill_after: int = 0) -> Outcome:
    """Compress a copy of the dense net at budget ``smoke``; Killed behind the ``kill_after``-th new train call."""
    found, data, dense = ground(baseline)
    task = Task(found, data, dense, budget="smoke", seed=SEED, journal=journal)
    if kill_after:
        task.train = functools.partial(_train_then_die, task, task.train, kill_after)
    before = copy.deepcopy(dataclasses.asdict(method))
    seed_everything(SEED)
    net = method.compress(copy.deepcopy(dense), task)
    if isinstance(net, nn.Module):
        net.eval()
    return Outcome(net, task, before, dataclasses.asdict(method))


class Killed(BaseException):
    """Stands for the end of the process behind a train call."""


def _train_then_die(task: Task, train: Callable, calls: int, *args: Any, **options: Any) -> nn.Module:
    model = train(*args, **options)
    if task.meter.train_calls >= calls:
        raise Killed
    return model


@functools.cache
def first(entry: Entry, baseline: str) -> Outcome:
    """The outcome that the checks share; never change it."""
    return compress(instance(entry.cls, baseline), baseline)


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, x: torch.Tensor) -> str:
    """Where two nets differ, bit for bit, in their state or in their outputs on ``x``; empty when they are the same."""
    one, two = a.state_dict(), b.state_dict()
    for key in one.keys() ^ two.keys():
        return f"only one of them has '{key}'"
    for key, value in one.items():
        same = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        if not same:
            return f"'{key}' differs"
    return "" if torch.equal(a(x), b(x)) else "the same weights give other outputs"


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two tensors, relative to the largest entry of the first where that is above 1."""
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


# ------------------------------------------------------------------------------------------- the file and its data


def check_metadata(entry: Entry) -> None:
    """Docstrings, paper, reported rows, declared failures."""
    cls, file = entry.cls, entry.path.name
    tree = ast.parse(entry.path.read_text())
    own = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__), None)
    expect(ast.get_docstring(tree), f"{file} has no docstring: begin the file with the citation and the idea.")
    expect(own and ast.get_docstring(own), f"{cls.__name__} in {file} has no docstring: say what it does.")
    paper = getattr(cls, "paper", None)
    expect(isinstance(paper, Paper), f"{cls.__name__}.paper is {paper!r}; expected Paper(title, authors, venue, url).")
    empty = [name for name in ("title", "authors", "venue") if not getattr(paper, name).strip()]
    expect(not empty, f"{cls.__name__}.paper has no {', '.join(empty)}: cite the paper in full.")
    expect(paper.url.startswith("https://"), f"{cls.__name__}.paper.url is '{paper.url}': give an https:// address.")
    for problem in itertools.chain(_reported_problems(cls), _declared_problems(cls)):
        raise CheckFailed(f"{file}: {problem}")


def _reported_problems(cls: type[Method]) -> Iterator[str]:
    """A sentence for each fault in the rows that a paper reports."""
    for i, row in enumerate(cls.reported):
        name = f"reported row {i + 1} ('{row.label}')"
        values = [v for k, v in vars(row).items() if isinstance(v, int | float)]
        if not row.source.strip():
            yield f"{name} has no source: name the table of the paper."
        if row.baseline not in base.names():
            yield f"{name} names the baseline '{row.baseline}'; choose one of: {', '.join(base.names())}."
        if row.recipe and (row.recipe not in cls.recipes or row.recipe.split("/")[0] != row.baseline):
            yield f"{name} names the recipe '{row.recipe}', which is not one of {cls.__name__} for {row.baseline}."
        method, _, recipe = row.start.partition(":")
        if (row.start and recipe.split("/")[0] != row.baseline) or method not in ("", *registry.entries()):
            yield f"{name} starts from '{row.start}': name a method and its recipe for {row.baseline}, METHOD:RECIPE."
        if row.rule not in RULES:
            yield f"{name} has the counting rule '{row.rule}'; choose one of: {', '.join(RULES)}."
        if not values:
            yield f"{name} holds no number: give at least one value of the paper, or leave the row out."


def _declared_problems(cls: type[Method]) -> Iterator[str]:
    """A sentence for each fault in ``expected_failures``."""
    for key, reason in cls.expected_failures.items():
        check, _, baseline = key.partition("/")
        if check not in OF_NETWORK or (baseline and baseline not in TINY) or (check == "fits" and not baseline):
            yield f"expected_failures names '{key}'; expected CHECK or CHECK/BASELINE of {', '.join(OF_NETWORK)}."
        if not reason.strip():
            yield f"expected_failures['{key}'] gives no reason: say why the check cannot pass."
    if all(f"fits/{baseline}" in cls.expected_failures for baseline in TINY):
        yield "it declares that it fits no tiny baseline, so nothing of it is tested: make it run on one."


def check_config(entry: Entry) -> None:
    """Fields have defaults of types that Hydra takes; recipes name fields and baselines; the command line gives one."""
    cls, names = entry.cls, base.names()
    for key, values in {"": {}, **cls.recipes}.items():
        what = f"{entry.path.name}: {f'recipe {key!r}' if key else 'a field'} of {cls.__name__}"
        expect(not key or key.split("/")[0] in names, f"{what} is for no baseline; choose one of: {', '.join(names)}.")
        expect(key.count("/") < 2, f"{what} is not called BASELINE or BASELINE/VARIANT: rename it.")
        try:
            asked = {**_defaults(cls), **values}
            made = [_merged(cls, values), *([_composed(entry, key)] if key == max(cls.recipes, default="") else [])]
        except Exception as error:
            raise CheckFailed(
                f"{what} cannot be configured ({_cause(error)}); expected fields with defaults, of type int, float, "
                "bool, str, Enum, X | None or tuple[float, ...]: change the field or the recipe."
            ) from error
        turned_into = [(k, v) for method in made for k, v in vars(method).items() if v != _tuple(asked.get(k))]
        changed = ", ".join(f"{k}={asked.get(k)!r} into {v!r}" for k, v in turned_into)
        expect(not changed, f"{what} turns {changed}: keep fields as they are given.")


def _defaults(cls: type[Method]) -> dict[str, Any]:
    """The default of each field; TypeError where there is none."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise TypeError(f"{field.name} has no default")
        found[field.name] = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return found


def _merged(cls: type[Method], values: dict[str, Any]) -> Method:
    """The method as OmegaConf makes it from the schema of its class and these values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))


def _composed(entry: Entry, key: str) -> Method:
    """The method with the recipe ``key`` ("": its defaults) as the whole command line makes it."""
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    node = ConfigStore.instance().repo.get("method", {}).get(f"{entry.name}.yaml")
    if node is None or OmegaConf.get_type(node.node) is not entry.cls:
        config.register([entry.name])
    name = f"{entry.name}-{key.replace('/', '-')}" if key else config.NO_RECIPE
    words = [f"method={entry.name}", f"baseline={key.split('/')[0] or TINY[0]}", f"recipe={name}"]
    with initialize(version_base="1.3", config_path=None):
        return OmegaConf.to_object(compose(config.NAME, words).method)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_task_only(entry: Entry) -> None:
    """The file sees a Task: no other method, no runner, no output, no path, no device, no test set."""
    for node in ast.walk(ast.parse(entry.path.read_text())):
        for problem in _reaches_out(node):
            raise CheckFailed(
                f"{entry.path.name}, line {node.lineno}: {problem}. A method sees a Task and nothing else: use what "
                "the task and methods/kit offer, and task.report for facts."
            )


def _reaches_out(node: ast.AST) -> Iterator[str]:
    """In words, what one node of a method's syntax tree must not do."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    else:
        names = []
    for name in names:
        own = any(name == module or name.startswith(f"{module}.") for module in OWN_MODULES)
        if name.startswith(".") or (name.split(".")[0] in FOREIGN and not own) or "datasets" in name:
            yield f"it imports {name}"
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in CALLS or called.endswith(".cuda"):
            yield f"it calls {called}(...)"
    if isinstance(node, ast.Attribute):
        private = node.attr.startswith("_") and not node.attr.startswith("__")
        if private and isinstance(node.value, ast.Name) and node.value.id == "task":
            yield f"it reads task.{node.attr}, which is private"
        if node.attr in TEST_SET:
            yield f"it reads .{node.attr}, the test set"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(":")[0] == "cuda":
        yield f"it names the device '{node.value}'"


# ------------------------------------------------------------------------------------------- the network


def check_fits(entry: Entry, baseline: str) -> None:
    """``compress`` takes the tiny net and returns a network."""
    try:
        net = first(entry, baseline).net
    except UserError as error:
        raise CheckFailed(
            f"{entry.name} refuses {baseline}: {error} If it cannot compress such a net, declare "
            f"expected_failures = {{'fits/{baseline}': reason}}."
        ) from error
    kind = type(net).__name__
    expect(isinstance(net, nn.Module), f"{entry.name}.compress returns a {kind} on {baseline}; expected an nn.Module.")


def check_output(entry: Entry, baseline: str) -> None:
    """Logits of the right shape, finite, and the same for an image alone as in a batch."""
    net, x, classes = first(entry, baseline).net, images(baseline), ground(baseline)[1].num_classes
    where = f"the network of {entry.name} on {baseline}"
    with torch.no_grad():
        together = net(x)
        try:
            alone = torch.cat([net(image) for image in x.split(1)])
        except Exception as error:
            raise CheckFailed(f"{where} cannot take a single image ({error}): it must work at batch size 1.") from error
    shape = tuple(together.shape)
    expect(shape == (len(x), classes), f"{where} gives shape {shape}; expected {(len(x), classes)}: return logits.")
    expect(together.isfinite().all(), f"{where} gives NaN or infinite logits: look for a division or an empty layer.")
    far = gap(together, alone) if alone.shape == together.shape else float("inf")
    expect(far <= TOLERANCE, f"{where} gives an image alone other logits than in a batch (off by {far:.2g}).")


def check_smaller(entry: Entry, baseline: str) -> None:
    """Less than the dense net on some axis that the counter knows, or in the bits of its file."""
    nets, example = (ground(baseline)[2], first(entry, baseline).net), images(baseline)[:1]
    old, new = (
        {**dataclasses.asdict(cost(copy.deepcopy(net), example)), "bits": sum(codec.pack(net).bits.values())}
        for net in nets
    )
    expect(
        any(new[axis] < old[axis] for axis in old),
        f"{entry.name} on {baseline} has as much of everything as the dense net ({new}): compress must remove "
        "something, or declare expected_failures = {'smaller': reason}.",
    )


def check_dial(entry: Entry, baseline: str) -> None:
    """Some number among the hyper-parameters changes the network."""
    usual, tried = instance(entry.cls, baseline), []
    for name, value in turned(usual):
        tried.append(f"{name}={value}")
        try:
            other = compress(dataclasses.replace(usual, **{name: value}), baseline)
        except UserError:
            continue
        if difference(first(entry, baseline).net, other.net, images(baseline)):
            return
    same = f"gives the same network for {', '.join(tried)} as for its defaults" if tried else "has no numeric field"
    raise CheckFailed(
        f"{entry.name} on {baseline} {same}: make a hyper-parameter count, or declare expected_failures = "
        "{'dial': reason}."
    )


def turned(method: Method) -> Iterator[tuple[str, Any]]:
    """(field, another value) for each number or tuple of numbers; how long and fast it trains is no dial.

    A number becomes half of itself, or one more where there is no half; a float that may be None and is, 0.25.
    """
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name in TRAINING or field.name.endswith(tuple(f"_{name}" for name in TRAINING)):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield field.name, _half(value)
        elif isinstance(value, tuple) and value and all(isinstance(v, int | float) for v in value):
            yield field.name, tuple(_half(v) for v in value)
        elif value is None and float in typing.get_args(hints[field.name]):
            yield field.name, 0.25


def _half(value: float) -> float:
    if isinstance(value, int):
        return value // 2 if value > 1 else value + 1
    return value / 2 if value else 0.5


def check_deterministic(entry: Entry, baseline: str) -> None:
    """The same seed gives the same network, bit for bit."""
    again = compress(instance(entry.cls, baseline), baseline)
    different = difference(first(entry, baseline).net, again.net, images(baseline))
    expect(
        not different,
        f"{entry.name} on {baseline} gives two networks for one seed ({different}): draw random numbers from torch or "
        "numpy only, keep no state in the class or module.",
    )


def check_hyperparameters(entry: Entry, baseline: str) -> None:
    """``compress`` leaves the fields of the method as they were."""
    before, after = first(entry, baseline).before, first(entry, baseline).after
    changed = [f"{name} from {before[name]!r} to {value!r}" for name, value in after.items() if value != before[name]]
    expect(
        not changed,
        f"{entry.name}.compress changes its hyper-parameters on {baseline} ({'; '.join(changed)}): the record would "
        "name other values than were asked for; keep working values in local variables.",
    )


def check_saves(entry: Entry, baseline: str) -> None:
    """The state dict, read with ``weights_only=True``, holds everything that the outputs depend on."""
    net, x, file = first(entry, baseline).net, images(baseline), io.BytesIO()
    where = f"the network of {entry.name} on {baseline}"
    try:
        torch.save(net.state_dict(), file)
        file.seek(0)
        emptied(twin := copy.deepcopy(net)).load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        raise CheckFailed(
            f"{where} cannot be saved and loaded ({type(error).__name__}: {error}): keep only tensors in the state "
            "dict, and nothing in the network that copy.deepcopy refuses."
        ) from error
    different = difference(net, twin, x)
    expect(not different, f"{where} is another one after loading ({different}): register every tensor as a buffer.")


def check_packs(entry: Entry, baseline: str) -> None:
    """Its architecture as JSON and its packed file give the same network: outputs, cost and codings."""
    net, x, (found, data, _) = first(entry, baseline).net, images(baseline), ground(baseline)
    where = f"the network of {entry.name} on {baseline}"
    try:
        root = architecture.choose_root(net, found, data.num_classes)
        described = json.dumps(architecture.describe(net, root))
        twin = packed.restore(json.loads(described), codec.pack(net).data)
    except UserError as error:
        raise CheckFailed(f"{where} cannot be packed and loaded on another machine: {error}") from error
    with torch.no_grad():
        far = gap(net(x), twin(x))
    expect(far <= 1e-5, f"{where} gives other logits after loading (off by {far:.2g}): keep what they depend on.")
    costs = [cost(copy.deepcopy(one), x[:1]) for one in (net, twin)]
    expect(costs[0] == costs[1], f"{where} costs {costs[0]}, but {costs[1]} after loading.")
    expect(codings(net) == codings(twin), f"{where} has other codings after loading: attach them to parameters.")


def emptied(net: nn.Module) -> nn.Module:
    """The net with every tensor that its modules hold set to zero, also those outside its state dict."""
    for module in net.modules():
        for held in vars(module).values():
            inner = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]
            for value in inner:
                if isinstance(value, torch.Tensor):
                    value.data.zero_()
    return net


def check_onnx(entry: Entry, baseline: str) -> None:
    """One ONNX file, any batch size, outputs as PyTorch's."""
    net, x = first(entry, baseline).net, images(baseline)
    where = f"the network of {entry.name} on {baseline}"
    with torch.no_grad():
        pairs = [(batch, net(batch)) for batch in (x, x[:1])]
    try:
        run = session(in_onnx(entry, baseline))
        far = max(gap(ours, run(batch)) for batch, ours in pairs)
    except Exception as error:
        cause = str(error) if isinstance(error, UserError) else f"{_cause(error)}."
        raise CheckFailed(
            f"{where} does not run in ONNX: {cause} If it cannot, declare expected_failures = {{'onnx': reason}}."
        ) from error
    expect(far <= TOLERANCE, f"{where} gives other logits in ONNX (off by {far:.2g}; allowed {TOLERANCE:g}).")


@functools.cache
def in_onnx(entry: Entry, baseline: str) -> bytes:
    """The ONNX file of the outcome that the checks share: exported once."""
    return to_onnx(first(entry, baseline).net, images(baseline)[:2])


def check_resumes(entry: Entry, baseline: str) -> None:
    """Killed behind each of its train calls in turn and started again, it ends at the same network."""
    whole, x = first(entry, baseline), images(baseline)
    with tempfile.TemporaryDirectory() as folder:
        for call in range(1, whole.task.meter.train_calls + 1):
            try:
                compress(instance(entry.cls, baseline), baseline, Path(folder), kill_after=call)
            except Killed:
                continue
            raise CheckFailed(f"{entry.name} on {baseline} makes fewer train calls when it is started again.")
        different = difference(whole.net, compress(instance(entry.cls, baseline), baseline, Path(folder)).net, x)
    expect(
        not different,
        f"{entry.name} on {baseline} ends elsewhere after a kill behind a train call ({different}): pass all that its "
        "callbacks remember in train(state=[...]).",
    )


OF_FILE: dict[str, Callable[[Entry], None]] = {
    "metadata": check_metadata,
    "config": check_config,
    "task_only": check_task_only,
}
OF_NETWORK: dict[str, Callable[[Entry, str], None]] = {
    "fits": check_fits,
    "output": check_output,
    "smaller": check_smaller,
    "dial": check_dial,
    "deterministic": check_deterministic,
    "hyperparameters": check_hyperparameters,
    "saves": check_saves,
    "packs": check_packs,
    "onnx": check_onnx,
    "resumes": check_resumes,
}


# ------------------------------------------------------------------------------------------- all of them


def cases(entry: Entry) -> list[tuple[str, str]]:
    """(check, baseline) for everything that is looked at; baseline "" for the checks of the file."""
    if entry.cls is None:
        return [("import", "")]
    return [*((check, "") for check in OF_FILE), *((check, baseline) for baseline in TINY for check in OF_NETWORK)]


def judge(entry: Entry, check: str, baseline: str = "") -> Result:
    """Run one check and hold it against what the method declares: a declared failure that passes has failed."""
    if entry.cls is None:
        return Result("import", "", "failed", f"The method '{entry.name}' cannot be used: {entry.error}")
    declared = entry.cls.expected_failures
    reason = declared.get(f"{check}/{baseline}", declared.get(check, "")) if check in OF_NETWORK else ""
    unfit = declared.get(f"fits/{baseline}", "")
    if unfit and check != "fits":
        return Result(check, baseline, "skipped", f"declared not to fit: {unfit}")
    try:
        problem = OF_NETWORK[check](entry, baseline) if baseline else OF_FILE[check](entry)
    except CheckFailed as failure:
        return Result(check, baseline, "expected" if reason else "failed", reason or str(failure))
    except Exception as error:
        return Result(check, baseline, "failed", f"{entry.name} raises {_cause(error)} in check '{check}'.")
    if reason:
        problem = f"'{check}' passes, but {entry.path.name} declares that it fails ({reason}): remove the declaration."
    return Result(check, baseline, "failed" if problem else "passed", problem or "")


def _cause(error: Exception) -> str:
    """The error in one line, with the place in the code of a method or network where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if "/methods/" in f.filename), frames[-1])
    text = " ".join((str(error).splitlines() or [""])[0].split())[:300]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}, line {frame.lineno})"


def run_all(name: str) -> list[Result]:
    """Every check on the method called ``name``; UserError where there is none, or onnxruntime is missing."""
    found = registry.entries()
    if name not in found:
        registry.method_class(name)
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("The checks run networks in onnxruntime, which is not installed: pip install -e '.[test]'.")
    return [judge(found[name], check, baseline) for check, baseline in cases(found[name])]
