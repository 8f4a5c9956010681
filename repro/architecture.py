"""What a network is made of, as JSON, and the network again from it: no pickle, no code out of the file.

A description is a root (a network that the project's own code builds) and the changes that lead from it to the model::

    {"root": {"baseline": "vgg16_cifar10", "net": "net", "classes": 10},
     "changes": [{"path": "features.0", "class": "torch.nn.Conv2d", "args": {"out_channels": 32, ...}}],
     "tied": {}, "input_bits": {}}

A *spec* says how one module is made; it is a root, or part of a change, or stands in the arguments of another one:

* ``{"baseline": NAME, "net": "net" | "student" | "sibling:NAME", "classes": N}``: a net of a baseline;
* ``{"class": NAME, "args": {...}}``: a class called with its constructor's arguments;
* ``{"class": NAME, "children": [[NAME, spec], ...]}``: a Sequential, ModuleList or ModuleDict;
* ``{"built_by": NAME, "args": {...}}``: a network of another library, made by one of ``FACTORIES``;
* ``{"replaced": true}``: the module that stood where the change puts the new one (a wrapper around it).

The other changes are ``{"path": P, "class": null}`` (that attribute is None) and ``{"path": P, "children": [...]}``
(the children that P has, in order; the rest are removed). ``tied`` maps a parameter to the one that it is the same as.

**Convention for modules** (scikit-learn's for estimators): every argument of a constructor is an attribute of the same
name on the module; it is a number, text, flag, None, a list of those, or a module. A parameter or None counts as a flag
where the constructor takes one (``bias``); what it passes on as ``**kwargs`` belongs to its base class. A network that
a factory of another library made says so in the attribute ``built_by``, such as ``("timm.create_model", {"model_name":
"mobilenetv3_small_100", "num_classes": 10})``. Everything that changes the outputs is an argument, a parameter or a
buffer: ``describe`` refuses a model that its own description does not give back.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from baselines import base
from baselines.errors import UserError
from methods.kit import coding

PACKAGES = ("torch.nn", "torchvision.models", "torchvision.ops", "timm.models", "timm.layers", "baselines", "methods")
FACTORIES = {"timm.create_model": "model_name", "torchvision.models.get_model": "name"}  # and the argument that names
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NOT_KEPT = ("device", "dtype")  # arguments that say where the tensors lie: a file does not say that
MAX_NUMBER = 10**6  # of a whole number in a description: no layer has more channels
MAX_ELEMENTS, MAX_TENSORS = 2 * 10**9, 10**4  # that building a net may make: ResNet-152 makes 10**3 tensors
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
EMPTY = nn.Module()

Spec = dict[str, Any]


# ------------------------------------------------------------------------------------------------ model -> description


def choose_root(model: nn.Module, baseline: base.Baseline, classes: int) -> Spec:
    """The root from which ``model`` is described most shortly: a net of the baseline, else its own class or factory."""
    names = ["net", "student", *(f"sibling:{name}" for name in baseline.siblings)]
    lengths, first = [], None
    for root in (*({"baseline": baseline.name, "net": name, "classes": classes} for name in names), None):
        try:
            with _building("described"):
                root = root or _spec(model, [])
                changes = list(_changes("", model, _make(root, [])))
        except UserError as error:
            first = first or error
        else:
            lengths.append((len(json.dumps([root, changes])), root))
    if not lengths:
        raise first
    return min(lengths, key=lambda pair: pair[0])[1]


def describe(model: nn.Module, root: Spec) -> dict[str, Any]:
    """``model`` as JSON-able data; UserError where the data does not give the same network back."""
    with _building("described"):
        changes = list(_changes("", model, _make(root, [])))
    description = {
        "root": root,
        "changes": changes,
        "tied": _tied(model),
        "input_bits": {path: vars(m)[coding.INPUT] for path, m in _modules(model).items() if coding.INPUT in vars(m)},
    }
    fault = _difference(model, build(json.loads(json.dumps(description))))
    if fault:
        raise UserError(f"The network cannot be described: {fault}.")
    return description


def _changes(path: str, module: nn.Module, reference: nn.Module | None) -> Iterator[dict]:
    """The changes that turn ``reference``, which stands at ``path`` of the root, into ``module``."""
    if not _fits(module, reference):
        spec = _spec(module, [reference])
        yield {"path": path, **spec}
        reference = _make(spec, [reference])
    ours, theirs = _children(module), _children(reference)
    for name, child in ours.items():
        yield from _changes(_join(path, name), child, theirs.get(name))
    none = [name for name in theirs if name not in ours and getattr(module, name, module) is None]
    yield from ({"path": _join(path, name), "class": None} for name in none)
    names = [name for name in [*theirs, *(n for n in ours if n not in theirs)] if name not in none]
    if names != list(ours):
        yield {"path": path, "children": list(ours)}


def _fits(module: nn.Module, reference: nn.Module | None) -> bool:
    """Whether both are made alike, as far as can be read; their children are compared on their own."""
    if type(module) is not type(reference):
        return False
    try:
        ours, theirs = (_own_spec(m) for m in (module, reference))
    except UserError:
        return True
    return ours == theirs


def _spec(module: nn.Module, stood: list[nn.Module | None]) -> Spec:
    """How ``module`` is made. ``stood`` holds the module in whose place it comes; it may be used once, inside."""
    spec = _own_spec(module)
    if "children" in spec:
        return {**spec, "children": [[name, _inner(child, stood)] for name, child in _children(module).items()]}
    for name in spec["args"] if "class" in spec else ():
        if isinstance(inner := getattr(module, name), nn.Module):
            spec["args"][name] = {"module": _inner(inner, stood)}
    return spec


def _inner(module: nn.Module, stood: list[nn.Module | None]) -> Spec:
    if stood and _fits(module, stood[0]):
        stood.clear()
        return {"replaced": True}
    return _spec(module, stood)


def _own_spec(module: nn.Module) -> Spec:
    """How ``module`` is made, without the modules in it; UserError where its class does not keep the convention."""
    if "built_by" in vars(module):
        factory, args = module.built_by
        return {"built_by": factory, "args": {name: _plain(value) for name, value in args.items()}}
    cls = type(module)
    if _is_container(cls):
        return {"class": _name(cls), "children": []}
    args, name, foreign = {}, _name(cls), cls.__init__.__module__.startswith(("torch", "timm"))
    for parameter in _parameters(cls):
        if not hasattr(module, parameter.name):
            if parameter.default is inspect.Parameter.empty or not foreign:
                raise UserError(
                    f"{name} has no attribute '{parameter.name}', an argument of its constructor: keep every argument "
                    "under its name"
                )
            continue
        value = getattr(module, parameter.name)
        if _is_flag(parameter) and (value is None or isinstance(value, torch.Tensor)):
            value = value is not None
        try:
            args[parameter.name] = {} if isinstance(value, nn.Module) else _plain(value)
        except UserError as error:
            raise UserError(f"the argument '{parameter.name}' of {name} {error}") from error
    return {"class": name, "args": args}


@functools.cache
def _parameters(cls: type) -> tuple[inspect.Parameter, ...]:
    """The constructor's named parameters, with those of the base class that gets its ``**kwargs``."""
    found: dict[str, inspect.Parameter] = {}
    for kind in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        if "__init__" not in vars(kind):
            continue
        own = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
        named = (p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in NOT_KEPT)
        found = {p.name: p for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return tuple(found.values())


def _is_flag(parameter: inspect.Parameter) -> bool:
    """Whether a tensor or None in its place stands for true or false."""
    return parameter.name == "bias" or isinstance(parameter.default, bool) or parameter.annotation in (bool, "bool")


def _is_container(cls: type) -> bool:
    """A class whose constructor takes its children, with nothing of its own."""
    return any(cls.__init__ is kind.__init__ for kind in CONTAINERS)


def _name(cls: type) -> str:
    """The name under which ``_class`` finds the class; UserError where it would not."""
    short = getattr(nn, cls.__name__, None) is cls
    name = f"torch.nn.{cls.__name__}" if short else f"{cls.__module__}.{cls.__qualname__}"
    if not short and getattr(importlib.import_module(cls.__module__), cls.__qualname__, None) is not cls:
        raise UserError(
            f"{name} is not found at the top of its module: define the class there (and take parametrizations off "
            "before the network is returned)"
        )
    if not _allowed(name):
        raise UserError(f"the class {name} is none of {', '.join(PACKAGES)}: only those are imported by a loader")
    return name


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if getattr(value, "ndim", None) == 0 and not isinstance(value, torch.Tensor):
        return _plain(value.item())
    raise UserError(f"is {_shown(value)}, which JSON cannot hold: use numbers, texts, flags, lists of them, or modules")


def _tied(model: nn.Module) -> dict[str, str]:
    """Name of a parameter -> the first name of the same parameter."""
    first: dict[nn.Parameter, str] = {}
    found = {n: first.setdefault(p, n) for n, p in model.named_parameters(remove_duplicate=False)}
    return {name: other for name, other in found.items() if name != other}


# -------------------------------------------------------------------------------------------- is it the same network?


def _difference(model: nn.Module, built: nn.Module) -> str:
    """In words, the first thing but weights that ``built`` has otherwise than ``model``; empty where there is none."""
    ours, theirs = _modules(model), _modules(built)
    for a, b in itertools.zip_longest(ours, theirs):
        if a != b:
            return f"its module {a!r} comes back as {b!r}"
    for path, module in ours.items():
        where = f"'{path or 'the network'}' ({type(module).__name__})"
        fault = (
            _hooks(module, theirs[path])
            or _other_attribute(module, theirs[path])
            or _other_tensor(module, theirs[path])
        )
        if fault:
            return f"{where} {fault}"
    return "" if _tied(model) == _tied(built) else f"its shared parameters are {_tied(model)}, but {_tied(built)} came"


def _hooks(module: nn.Module, built: nn.Module) -> str:
    counts = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in (module, built)]
    return "" if counts[0] == counts[1] else "has a hook, which no file holds: remove it before the network is returned"


def _other_attribute(module: nn.Module, built: nn.Module) -> str:
    ours, theirs = _attributes(module), _attributes(built)
    for name in [*ours, *theirs]:
        a, b = (_shown(held[name]) if name in held else "nothing" for held in (ours, theirs))
        if a != b:
            return (
                f"has {a} as '{name}', but its constructor's arguments give {b}: make it an argument that is kept "
                "under its name, or a buffer"
            )
    return ""


def _other_tensor(module: nn.Module, built: nn.Module) -> str:
    for kind in ("_parameters", "_buffers"):
        ours, theirs = (
            {name: (tuple(t.shape), str(t.dtype)) for name, t in getattr(m, kind).items() if t is not None}
            for m in (module, built)
        )
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                return (
                    f"has '{name}' as {ours.get(name)}, but its constructor's arguments give {theirs.get(name)}: keep "
                    "them in step"
                )
    for name in module._non_persistent_buffers_set:
        if not torch.equal(getattr(module, name).cpu(), getattr(built, name)):
            return f"has another '{name}' than its constructor makes, and no file holds it: make the buffer persistent"
    return ""


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes that are no tensors and modules: plain values as JSON, of anything else its type alone."""
    found = dict.fromkeys(name for name, child in module._modules.items() if child is None)
    for name, value in vars(module).items():
        if name in (coding.DECLARED, coding.INPUT, "built_by") or name in vars(EMPTY):
            continue
        try:
            found[name] = _plain(list(value.items()) if isinstance(value, dict) else value)
        except UserError:
            found[name] = type(value)
    return found


# ------------------------------------------------------------------------------------------------ description -> model


def build(description: dict[str, Any]) -> nn.Module:
    """The untrained network of ``describe``; UserError where it holds anything that is not allowed or does not fit."""
    with _building("built from its description"):
        _expect(description, "root", "changes", "tied", "input_bits")
        net = _make(description["root"], [])
        for change in description["changes"]:
            net = _changed(net, change)
        for name, first in description["tied"].items():
            owner, _, key = name.rpartition(".")
            tensor = net.get_parameter(first)
            _demand(net.get_parameter(name).shape == tensor.shape, f"'{name}' and '{first}' cannot be one parameter")
            _at(net, owner)._parameters[key] = tensor
        for path, bits in description["input_bits"].items():
            coding.attach_input(_at(net, path), _decoded(bits, []))
        return net


@contextmanager
def _building(what: str) -> Iterator[None]:
    """Limits on what is made, no effect on the random numbers of others, and one sentence for whatever goes wrong."""
    try:
        with torch.random.fork_rng(devices=[]), _Limits():
            yield
    except UserError as error:
        raise UserError(f"The network cannot be {what}: {str(error).rstrip('.')}.") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split()):.200}".rstrip(".")
        raise UserError(
            f"The network cannot be {what}: {cause}; the description and the constructors of this version do not fit."
        ) from error


class _Limits(TorchDispatchMode):
    """Counts the tensors that are made and their elements, before memory is taken for them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors = self.elements = 0

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one operation; UserError before one that would make too much."""
        kwargs = kwargs or {}
        if any(argument.name == "device" for argument in function._schema.arguments):
            self.tensors += 1
            plan = {**kwargs, "device": torch.device("meta")} | ({"generator": None} if "generator" in kwargs else {})
            self.elements += function(*args, **plan).numel()
            _demand(
                self.tensors <= MAX_TENSORS and self.elements <= MAX_ELEMENTS,
                f"it would make over {MAX_ELEMENTS:,} numbers or {MAX_TENSORS:,} tensors",
            )
        return function(*args, **kwargs)


def _changed(net: nn.Module, change: dict) -> nn.Module:
    """``net`` after one change; another network where the change replaces it as a whole."""
    _demand(isinstance(change, dict) and isinstance(change.get("path"), str), f"{_shown(change)} is no change")
    path = change["path"]
    if "children" in change and "class" not in change:
        _expect(change, "path", "children")
        parent, names = _at(net, path), change["children"]
        _demand(len(set(names)) == len(names), f"the children of '{path}' are named twice")
        parent._modules = {name: parent._modules[name] for name in names}
        return net
    above, _, name = path.rpartition(".")
    none = change == {"path": path, "class": None}
    if not path:
        _demand(not none, "there is no network")
        return _make({key: value for key, value in change.items() if key != "path"}, [net])
    parent = _at(net, above)
    stood = parent._modules.get(name)
    if none:
        _demand(stood is not None, f"there is no module '{path}' to leave out")
        del parent._modules[name]
        setattr(parent, name, None)
        return net
    _demand(name and not hasattr(EMPTY, name), f"'{path}' is no name for a module")
    setattr(parent, name, _make({k: v for k, v in change.items() if k != "path"}, [] if stood is None else [stood]))
    return net


def _make(spec: Spec, stood: list[nn.Module | None]) -> nn.Module:
    """The module of a spec. ``stood`` holds the module in whose place it comes, which may be used once."""
    _demand(isinstance(spec, dict), f"{_shown(spec)} does not say how a module is made")
    if "baseline" in spec:
        return _of_baseline(spec)
    if "built_by" in spec:
        return _of_factory(spec)
    if "replaced" in spec:
        _expect(spec, "replaced")
        _demand(spec["replaced"] is True and stood and stood[0] is not None, "no module stands there to be wrapped")
        return stood.pop()
    if "children" in spec:
        _expect(spec, "class", "children")
        cls = _class(spec["class"])
        _demand(_is_container(cls), f"{spec['class']} does not take children")
        made = cls()
        for name, inner in spec["children"]:
            made.add_module(name, _make(inner, stood))
        return made
    _expect(spec, "class", "args")
    cls = _class(spec["class"])
    return cls(**{name: _decoded(value, stood) for name, value in spec["args"].items()})


def _of_baseline(spec: Spec) -> nn.Module:
    """An untrained net of a baseline."""
    _expect(spec, "baseline", "net", "classes")
    _demand(all(isinstance(spec[key], str) for key in ("baseline", "net")), f"{_shown(spec)} does not name a net")
    baseline, (kind, _, name) = base.load(spec["baseline"]), spec["net"].partition(":")
    nets = {"net": baseline.net, "student": baseline.student, "sibling": baseline.siblings.get(name)}
    make = nets.get(kind) if bool(name) == (kind == "sibling") else None
    _demand(make is not None, f"{baseline.name} has no net '{spec['net']}'")
    classes = spec["classes"]
    _demand(type(classes) is int and 0 < classes <= MAX_NUMBER, f"{_shown(classes)} is no number of classes")
    return make(classes)


def _of_factory(spec: Spec) -> nn.Module:
    """An untrained network of another library: a name that it lists and numbers; nothing that could be a file."""
    _expect(spec, "built_by", "args")
    factory, args = spec["built_by"], spec["args"]
    _demand(factory in FACTORIES, f"the factory {_shown(factory)} is none of {', '.join(FACTORIES)}")
    package, _, function = factory.rpartition(".")
    library, key = importlib.import_module(package), FACTORIES[factory]
    known = library.list_models() if package == "timm" else library.list_models(module=library)
    _demand(args.get(key) in known, f"{package} has no model {_shown(args.get(key))}")
    numbers = {name: _decoded(value, []) for name, value in args.items() if name != key}
    for name, value in numbers.items():
        fine = all(isinstance(v, int | float) for v in (value if isinstance(value, tuple) else (value,)))
        _demand(fine and not name.startswith(("pretrained", "weights")), f"{factory} is not given '{name}' by a file")
    net = getattr(library, function)(**{key: args[key]}, **numbers)
    net.built_by = (factory, dict(args))
    return net


def _class(name: object) -> type[nn.Module]:
    """The class of that name; UserError unless it is a module of ``PACKAGES``, under its own name."""
    _demand(isinstance(name, str) and _allowed(name), f"the class {_shown(name)} is none of {', '.join(PACKAGES)}")
    module, _, short = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), short, None)
    except ModuleNotFoundError:
        found = None
    _demand(
        isinstance(found, type) and issubclass(found, nn.Module) and _name(found) == name,
        f"there is no module class {_shown(name)} here",
    )
    return found


def _allowed(name: str) -> bool:
    """Whether a class of this dotted name may be imported: public, in one of the packages or in ``torch.nn`` itself."""
    inside = any(name.startswith(f"{package}.") for package in PACKAGES)
    return inside and DOTTED.fullmatch(name) is not None and (name.count(".") == 2 or not name.startswith("torch.nn."))


def _decoded(value: Any, stood: list[nn.Module | None]) -> Any:
    """An argument out of its JSON: lists as tuples, specs as modules."""
    if isinstance(value, dict):
        _expect(value, "module")
        return _make(value["module"], stood)
    if isinstance(value, list):
        return tuple(_decoded(inner, stood) for inner in value)
    _demand(not isinstance(value, int) or abs(value) <= MAX_NUMBER, f"{_shown(value)} is above {MAX_NUMBER:,}")
    return value


# ------------------------------------------------------------------------------------------------------------- details


def _shown(value: Any) -> str:
    """A value in a sentence: one line, 80 characters."""
    return " ".join(repr(value).split())[:80]


def _demand(holds: object, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def _expect(data: Any, *keys: str) -> None:
    """UserError unless ``data`` is a dict of exactly these keys."""
    _demand(
        isinstance(data, dict) and data.keys() == set(keys), f"{_shown(data)} is not an object of {', '.join(keys)}"
    )


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module._modules.items() if child is not None}


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by each of its paths."""
    return dict(model.named_modules(remove_duplicate=False))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(net: nn.Module, path: str) -> nn.Module:
    """The module at a path: through registered modules only."""
    for name in path.split(".") if path else ():
        child = net._modules.get(name)
        _demand(child is not None, f"there is no module '{path:.80}'")
        net = child
    return net
