"""The methods that exist: the files of the family folders in ``methods/``; unusable ones are listed with the reason."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import methods
from baselines.errors import UserError
from methods.base import Method

INSTALLED = Path(methods.__file__).resolve().parent
ROOT = INSTALLED
NOT_FAMILIES = ("kit", "__pycache__")


@dataclass(frozen=True)
class Entry:
    """One method file: ``cls`` where it can be used, else ``error``, a sentence that says why not."""

    name: str
    family: str
    path: Path
    cls: type[Method] | None = None
    error: str | None = None


def entries(root: Path | None = None) -> dict[str, Entry]:
    """Every method file under ``root`` (default: the installed ``methods``), by name, sorted by family and name."""
    return dict(_scan(Path(root or ROOT).resolve()))


def method_class(name: str, root: Path | None = None) -> type[Method]:
    """The class of the method called ``name``; UserError where there is none or its file cannot be used."""
    found = entries(root)
    if name not in found:
        usable = sorted(entry.name for entry in found.values() if entry.cls)
        raise UserError(f"There is no method '{name}'.{did_you_mean(name, usable)} {one_of(usable)}")
    entry = found[name]
    if entry.cls is None:
        raise UserError(f"The method '{name}' cannot be used: {entry.error}")
    return entry.cls


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The close matches of ``word``, as a question that starts with a space; empty where nothing is close."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 3, 0.5) or [choice for choice in choices if word in choice][:3]
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def one_of(choices: Iterable[str]) -> str:
    """The choices as a sentence."""
    return f"Choose one of: {', '.join(choices) or '(none)'}."


@functools.cache
def _scan(root: Path) -> dict[str, Entry]:
    """Import every method file under ``root`` once."""
    found: dict[str, Entry] = {}
    paths: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.glob("*/*.py")):
        family, name = path.parent.name, path.stem
        if name.startswith("_") or family in NOT_FAMILIES or family.startswith((".", "_")):
            continue
        paths[name].append(path)
        if len(paths[name]) > 1:
            shown = " and ".join(_shown(one, root) for one in paths[name])
            error = f"{len(paths[name])} files are called '{name}', {shown}: rename all but one of them."
            found[name] = replace(found[name], cls=None, error=error)
        else:
            found[name] = _entry(path, root)
    return found


def _entry(path: Path, root: Path) -> Entry:
    """The entry of one file; whatever is wrong with the file ends up in its ``error``."""
    blank = Entry(name=path.stem, family=path.parent.name, path=path)
    shown = _shown(path, root)
    if not (path.parent / "__init__.py").is_file():
        return replace(
            blank, error=f"the folder of {shown} has no __init__.py: add one, with the family in a docstring."
        )
    if not path.stem.isidentifier():
        return replace(blank, error=f"{shown} is not named like a Python name: use letters, digits and underscores.")
    try:
        module = _import(path, root)
    except (Exception, SystemExit) as error:
        return replace(blank, error=f"{shown} fails to import: {_cause(error, path)}.")
    return _one_method(blank, module, shown)


def _import(path: Path, root: Path) -> ModuleType:
    """Import a method file: by its package name in the installed ``methods``, by its location elsewhere."""
    tail = f"{path.parent.name}.{path.stem}"
    if root == INSTALLED:
        return importlib.import_module(f"{methods.__name__}.{tail}")
    name = f"methods_in_{'_'.join(root.parts[1:])}.{tail}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _one_method(blank: Entry, module: ModuleType, shown: str) -> Entry:
    """The entry with the one Method that ``module`` defines, or with what is wrong with it."""
    classes = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    classes = [cls for cls in dict.fromkeys(classes) if issubclass(cls, Method)]
    if not classes:
        return replace(blank, error=f"{shown} holds no Method: define one subclass of methods.base.Method in it.")
    if len(classes) > 1:
        names = ", ".join(cls.__name__ for cls in classes)
        return replace(blank, error=f"{shown} holds {len(classes)} Methods ({names}): give each a file of its own.")
    (cls,) = classes
    if cls.__abstractmethods__:
        return replace(blank, error=f"{cls.__name__} in {shown} does not define {', '.join(cls.__abstractmethods__)}.")
    if "__dataclass_fields__" not in vars(cls):
        return replace(
            blank, error=f"{cls.__name__} in {shown} is not decorated with @dataclass: put it above the class."
        )
    if not (isinstance(cls.recipes, dict) and all(isinstance(values, dict) for values in cls.recipes.values())):
        return replace(
            blank, error=f"the recipes of {cls.__name__} in {shown} are not a dict of dicts of field values."
        )
    return replace(blank, cls=cls)


def _shown(path: Path, root: Path) -> str:
    """The path as a reader knows it: from the folder that holds ``root``."""
    return path.relative_to(root.parent).as_posix()


def _cause(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of the file where it arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split()).rstrip(".")
    return f"{type(error).__name__}{': ' if text else ''}{text}" + (f" (line {line})" if line else "")
