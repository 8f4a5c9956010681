"""One run as data, and its command line: field default < recipe < ``key=value``, composed by Hydra."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any

import baselines.base
from baselines.data import DataOptions
from baselines.errors import UserError
from methods.base import Method
from repro import registry
from repro.record import MAX_COUNT

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NAME = "repro"
DEFAULTS = {"method": "dense", "baseline": "vgg16_mnist5k"}
NO_RECIPE = "none"
MAX_THREADS = 4096
DEVICE = re.compile("auto|cpu|(cuda|mps|xpu)(:[0-9]{1,2})?")
RUN_ID = re.compile("[0-9a-f]{12}")
ALLOWED = {"device.precision": ("auto", "fp32", "bf16"), "only": ("latency", "untimed")}
HELP = {
    "method": "what compresses (`python -m repro list` shows all)",
    "baseline": "what is compressed: net, data and training",
    "recipe": f"METHOD-BASELINE[-VARIANT], a published setting; '{NO_RECIPE}' keeps the fields' defaults",
    "budget": f"how much training: {', '.join(baselines.base.BUDGETS)}",
    "seed": "seed of every random choice",
    "start": "id of a record whose compressed net this run starts from",
    "cache": "folder of dense and compressed nets (else $REPRO_CACHE, else ~/.cache/repro-compression)",
    "latency": "seconds for each of four latency measurements (0: none; else 2, at budget smoke none)",
    "verbose": "print what every layer costs, before and after",
    "only": "latency: measure nothing else again (untimed: of records without it)",
    "baseline.weights": "file of dense weights to use instead of training",
    "baseline.teacher": "another teacher than the dense net",
    "data.root": "folder of the data sets (else $REPRO_DATA, else a folder in the cache)",
    "data.classes": "use the first N classes only",
    "data.per_class": "use N training images a class only",
    "data.holdout": "keep the validation images out of the dense training",
    "results.dir": "where records and tables go (else ./results)",
    "device.name": "auto, cpu, cuda, mps, cuda:1 ...",
    "device.precision": ", ".join(ALLOWED["device.precision"]),
    "device.channels_last": "memory layout of images (else what is faster)",
    "device.threads": "CPU threads",
}


@dataclass
class BaselineOptions:
    """Which baseline, and what replaces its own dense weights and teacher."""

    name: str = DEFAULTS["baseline"]
    weights: str | None = None
    teacher: str | None = None


@dataclass
class ResultsOptions:
    """Where records and tables are written."""

    dir: str | None = None


@dataclass
class DeviceOptions:
    """Where and how the arithmetic is done; None and "auto" are decided by measurement."""

    name: str = "auto"
    precision: str = "auto"
    channels_last: bool | None = None
    threads: int | None = None


@dataclass
class RunConfig:
    """Everything one run depends on; ``method`` is a live method, which its recipe has already set."""

    method: Any = None
    baseline: BaselineOptions = field(default_factory=BaselineOptions)
    data: DataOptions = field(default_factory=DataOptions)
    budget: str | None = None
    seed: int = 0
    start: str | None = None
    results: ResultsOptions = field(default_factory=ResultsOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    cache: str | None = None
    latency: float | None = None
    verbose: bool = False
    only: str | None = None


def options() -> dict[str, Any]:
    """Every ``key`` of the command line and its type; the groups (method, baseline, recipe) count as text."""
    found: dict[str, Any] = dict.fromkeys(("method", "baseline", "recipe"), str)
    for name, hint in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{inner}": kind for inner, kind in typing.get_type_hints(hint).items()}
        else:
            found.setdefault(name, hint)
    del found["baseline.name"]
    return found


def recipes() -> dict[str, tuple[str, str, dict]]:
    """Every recipe by its name METHOD-BASELINE[-VARIANT]: its method, its baseline and its field values."""
    found = {}
    for entry in registry.entries().values():
        for key, values in (entry.cls.recipes if entry.cls else {}).items():
            found[f"{entry.name}-{key.replace('/', '-')}"] = (entry.name, key.split("/")[0], values)
    return found


def default_cache() -> Path:
    """The cache folder where none is given: $REPRO_CACHE, else one in the home."""
    return Path(os.environ.get("REPRO_CACHE") or Path.home() / ".cache" / "repro-compression")


def register(methods: Collection[str] = ()) -> None:
    """Fill Hydra's ConfigStore with the baselines and with methods and their recipes.

    All methods, or ``methods`` and the default, with which Hydra begins a sweep. Hydra copies the whole store for every
    configuration it makes, so that each one takes time.
    """
    from hydra.core.config_store import ConfigStore

    wanted = (*methods, DEFAULTS["method"]) if methods else registry.entries()
    found = {name: entry for name, entry in registry.entries().items() if entry.cls and name in wanted}
    store = ConfigStore.instance()
    for group in ("method", "baseline", "recipe"):
        store.repo.pop(group, None)
    store.store(name=f"{NAME}_schema", node=RunConfig)
    store.store(name=NAME, node=_root())
    for name in baselines.base.names():
        store.store(group="baseline", name=name, node=BaselineOptions(name=name))
    for name, entry in found.items():
        with contextlib.suppress(Exception):  # `check` tells whoever chooses it that its fields do not fit Hydra
            store.store(group="method", name=name, node=entry.cls)
    store.store(group="recipe", name=NO_RECIPE, node={}, package="_global_")
    for name, (method, _, values) in recipes().items():
        if method in found:
            store.store(group="recipe", name=name, node={"method": dict(values)}, package="_global_")


def _root() -> dict[str, Any]:
    """The primary config: the defaults list, and Hydra's own folders moved into the cache."""
    usable = [entry.name for entry in registry.entries().values() if entry.cls]
    method = DEFAULTS["method"] if DEFAULTS["method"] in usable else next(iter(usable), None)
    defaults: list[Any] = [f"{NAME}_schema", "_self_", {"baseline": DEFAULTS["baseline"]}, {"method": method}]
    defaults += [{"optional recipe": "${method}-${baseline}"}, {"override hydra/job_logging": "none"}]
    folders = {"run": {"dir": "${cache}/hydra"}, "sweep": {"dir": "${cache}/hydra", "subdir": "."}}
    return {"defaults": defaults, "cache": str(default_cache()), "hydra": {**folders, "output_subdir": None}}


def check(words: Sequence[str], sweep: bool = False, without: Sequence[str] = ()) -> list[str]:
    """Judge the ``key=value`` words before Hydra composes them: UserError with one sentence on the first bad one.

    ``sweep``: several values of one key are several runs. ``without``: options that this command has not. Returns the
    methods that the words choose; none where they are not listed one by one.
    """
    chosen: dict[str, list[Any]] = {"recipe": [None], "budget": [None], **{k: [v] for k, v in DEFAULTS.items()}}
    fields = []
    for override in _parse(words):
        key = override.key_or_group
        if key.split("/")[0].split(".")[0] == "hydra":
            continue
        if override.is_delete():
            raise UserError(f"'{override.input_line}' deletes an option: give it a value instead (recipe={NO_RECIPE}).")
        values = _values(override, sweep)
        if key.startswith("method."):
            fields.append((key.removeprefix("method."), values))
            continue
        for value in values:
            _check_option(key, value, without)
        if key in chosen:
            chosen[key] = [value if value is None else str(value) for value in values]
    for method in chosen["method"]:
        _check_fields(method, fields)
    for method, baseline in itertools.product(chosen["method"], chosen["baseline"]):
        for recipe, budget in itertools.product(chosen["recipe"], chosen["budget"]):
            _check_recipe(recipe, method, baseline)
            _check_budget(budget, baseline)
    return chosen["method"]


def quoted(words: Iterable[str]) -> list[str]:
    """The words, with record ids in quotes: 12 hex digits may look like a number (12e456789012)."""
    ids = re.compile("[0-9a-f]{12}(,[0-9a-f]{12})*")
    found = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "start" and ids.fullmatch(value):
            word = f"start={','.join(repr(one) for one in value.split(','))}"
        found.append(word)
    return found


def _parse(words: Sequence[str]) -> list[Override]:
    """The words, parsed by Hydra's grammar one by one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser, found = OverridesParser.create(), []
    for word in words:
        try:
            found += parser.parse_overrides([word])
        except (
            OverrideParseException,
            ValueError,
            RecursionError,
        ) as error:  # also of a number too long or a list too deep
            if "=" not in word:
                raise UserError(f"'{word}' is not an option: write KEY=VALUE, as in method=hrank seed=1.") from error
            hint = "quote text with special characters, as in 'data.root=\"a b\"', and write lists as [1,2]"
            raise UserError(f"'{word}' cannot be read: {hint}.") from error
    return found


def _values(override: Override, sweep: bool) -> list[Any]:
    """The value of a word, or all its values where it sweeps over several."""
    from hydra.core.override_parser.types import Glob

    if not override.is_sweep_override():
        return [override.value()]
    key, word = override.key_or_group, override.input_line
    if not sweep:
        mend = "add -m to run each of them" + (", or write [a,b] for one list" if key.startswith("method.") else "")
        raise UserError(f"'{word}' gives {key} several values: {mend}.")
    if not override.is_discrete_sweep():
        return []
    if isinstance(override.value(), Glob):
        return _matching(override)
    return [_parse([f"{key}={text}"])[0].value() for text in override.sweep_string_iterator()]


def _matching(override: Override) -> list[str]:
    """The names that a word like method=glob(*_pruning) takes; UserError where it takes none."""
    groups = {
        "method": [entry.name for entry in registry.entries().values() if entry.cls],
        "baseline": baselines.base.names(),
        "recipe": [NO_RECIPE, *recipes()],
    }
    key, word = override.key_or_group, override.input_line
    if key not in groups:
        raise UserError(f"'{word}' matches names, and {key} has none: list its values ({', '.join(groups)} take glob).")
    if not (found := override.value().filter(groups[key])):
        raise UserError(f"'{word}' matches no {key}. {registry.one_of(groups[key])}")
    return found


@functools.cache
def _schema() -> Any:
    """The configuration that values are put into to see whether they fit; what it holds does not matter."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(RunConfig)


def _check_option(key: str, value: object, without: Sequence[str]) -> None:
    """One option of the run itself: it exists, its value has its type, and names are names."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {name: kind for name, kind in options().items() if name not in without}
    if key not in known:
        extra = ["method.FIELD"] if "method" not in without else []
        raise UserError(
            f"There is no option '{key}'.{registry.did_you_mean(key, known)} {registry.one_of([*known, *extra])}"
        )
    if key in ("method", "baseline", "recipe"):
        if not isinstance(value, str):
            raise UserError(f"{key}={_shown(value)} is not a name. `python -m repro list` shows the names there are.")
        if key == "baseline" and value not in baselines.base.names():
            names = baselines.base.names()
            raise UserError(
                f"There is no baseline '{value}'.{registry.did_you_mean(value, names)} {registry.one_of(names)}"
            )
        return
    try:
        OmegaConf.update(_schema(), key, value, merge=True)
    except OmegaConfBaseException as error:
        raise UserError(_wrong_type(key, value, known[key])) from error
    if key in ALLOWED and value not in ALLOWED[key]:
        raise UserError(f"{key}={_shown(value)} is not known. {registry.one_of(ALLOWED[key])}")
    if key == "seed" and _outside(value, 0, MAX_COUNT):
        raise UserError(f"seed={value} lies outside 0..{MAX_COUNT}: give a whole number within.")
    if key == "device.threads" and _outside(value, 0, MAX_THREADS):
        raise UserError(f"device.threads={value} lies outside 0..{MAX_THREADS}: give a number of CPU threads.")
    if key == "device.name" and not DEVICE.fullmatch(str(value)):
        raise UserError(f"device.name={value} is no device: give auto, cpu, cuda, mps, or one of several as in cuda:1.")
    if key == "start" and value is not None and not RUN_ID.fullmatch(str(value)):
        raise UserError(f"start={value} is no id: give the 12 digits (0-9, a-f) that name a record's file.")
    if key == "cache" and not value:
        raise UserError("cache= needs the path of a folder.")


def _outside(value: object, low: int, high: int) -> bool:
    """Whether a value is, or is the text of, a whole number outside of low..high."""
    return re.fullmatch("[-+]?[0-9]+", str(value)) is not None and not low <= int(str(value)) <= high


def _check_fields(method: str, fields: Sequence[tuple[str, list[Any]]]) -> None:
    """The method exists, and so does each of its fields that is given, with values of the field's type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cls = registry.method_class(method)
    try:
        schema = OmegaConf.structured(cls)
    except Exception as error:  # what OmegaConf raises on a type it does not know is not always its own error
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"The method '{method}' cannot be used: Hydra does not take its fields ({reason}).") from error
    for key, values in fields:
        name = key.split(".")[0]
        if name not in schema:
            raise UserError(_unknown_field(method, name, cls))
        for value in values:
            try:
                OmegaConf.update(schema, key, value, merge=True)
            except OmegaConfBaseException as error:
                raise UserError(_wrong_type(f"method.{key}", value, typing.get_type_hints(cls)[name])) from error


def _unknown_field(method: str, name: str, cls: type[Method]) -> str:
    names = [f.name for f in dataclasses.fields(cls)]
    if not names:
        return f"The method '{method}' has no field '{name}': it has no fields at all."
    return f"The method '{method}' has no field '{name}'.{registry.did_you_mean(name, names)} {registry.one_of(names)}"


def _check_recipe(recipe: str | None, method: str, baseline: str) -> None:
    """The recipe that will be taken (given, or the one named METHOD-BASELINE) exists and fits."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = recipes()
    name = recipe or f"{method}-{baseline}"
    if name == NO_RECIPE or (recipe is None and name not in known):
        return
    fitting = [n for n, (m, b, _) in known.items() if (m, b) == (method, baseline)]
    choices = registry.one_of([*(fitting or [n for n, (m, *_) in known.items() if m == method]), NO_RECIPE])
    if name not in known:
        raise UserError(f"There is no recipe '{name}'.{registry.did_you_mean(name, known)} {choices}")
    owner, ground, values = known[name]
    if (owner, ground) != (method, baseline):
        here = f"this run has method={method} baseline={baseline}"
        raise UserError(f"The recipe '{name}' is for method={owner} baseline={ground}, but {here}. {choices}")
    cls = registry.method_class(method)
    try:
        OmegaConf.merge(OmegaConf.structured(cls), values)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The recipe '{name}' of {cls.__name__} does not fit its fields: {reason}.") from error


def _check_budget(budget: str | None, baseline: str) -> None:
    """The baseline has the budget."""
    allowed = baselines.base.load(baseline).budgets
    if budget is not None and budget not in allowed:
        hint = registry.did_you_mean(budget, allowed)
        raise UserError(f"There is no budget '{budget}' for {baseline}.{hint} {registry.one_of(allowed)}")


def _wrong_type(key: str, value: object, hint: Any) -> str:
    return f"{key}={_shown(value)} has the wrong type: {key} takes {kind(hint)}."


def _shown(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kind(hint: Any) -> str:
    """A field's type in words: what the command line takes for it."""
    inner = [arg for arg in typing.get_args(hint) if arg not in (NoneType, Ellipsis)]
    origin = typing.get_origin(hint)
    if origin in (UnionType, typing.Union):
        return " or ".join([*(kind(arg) for arg in inner), "null"])
    if origin in (tuple, list):
        return f"a list [...] of {kind(inner[0])} each"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(member.name for member in hint)}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def translate(error: Exception) -> UserError | None:
    """The sentence behind an error of Hydra or OmegaConf; None where the error is neither's."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    return UserError(f"The command line cannot be used: {'; '.join(_lines(error))}.")


def _lines(error: BaseException | None) -> Iterator[str]:
    """The telling lines of an error and of what caused it."""
    dull = ("full_key", "object_type", "reference_type", "See http", "Config search path", "provider=")
    while error is not None:
        for line in str(error).splitlines():
            if line.strip() and not line.strip().startswith(dull):
                yield " ".join(line.split()).rstrip(".:")
        error = error.__cause__
