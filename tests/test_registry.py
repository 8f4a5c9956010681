"""The registry on folders made for the purpose: one good file, and every way in which a file can be bad."""

import pytest

from baselines.errors import UserError
from methods.base import Method
from repro import registry

METHOD = '''"""A method."""
from dataclasses import dataclass
from methods.base import Method

@dataclass
class {name}(Method):
    """Does nothing."""
    rate: float = 0.5

    def compress(self, model, task):
        return model
'''


@pytest.fixture
def root(tmp_path):
    """A methods folder with the good file ``pruning/good.py``."""
    folder = tmp_path / "methods"
    write(folder, "pruning/good.py", METHOD.format(name="Good"))
    return folder


def write(root, place, text):
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(text)


def error(root, name):
    """The reason of a broken entry, a sentence; the good file is untouched by it."""
    found = registry.entries(root)
    assert found["good"].cls is not None and found["good"].error is None
    entry = found[name]
    assert entry.cls is None
    with pytest.raises(UserError) as caught:
        registry.method_class(name, root)
    assert str(caught.value) == f"The method '{name}' cannot be used: {entry.error}"
    assert entry.error.endswith(".") and "\n" not in entry.error and "Traceback" not in entry.error
    return entry.error


def test_a_file_is_its_registration(root):
    entry = registry.entries(root)["good"]
    assert (entry.name, entry.family, entry.path) == ("good", "pruning", (root / "pruning/good.py").resolve())
    assert registry.method_class("good", root) is entry.cls
    assert issubclass(entry.cls, Method) and entry.cls(rate=0.25).rate == 0.25


def test_kit_private_files_and_files_outside_a_family_are_no_methods(root):
    for place in ("kit/surgery.py", "pruning/_draft.py", ".hidden/other.py"):
        write(root, place, METHOD.format(name="Other"))
    (root / "base.py").write_text(METHOD.format(name="Base"))
    assert list(registry.entries(root)) == ["good"]


def test_the_installed_methods_come_by_their_package_name():
    usable = [entry for entry in registry.entries().values() if entry.cls]
    assert usable
    for entry in usable:
        assert entry.cls.__module__ == f"methods.{entry.family}.{entry.name}"


def test_an_unknown_method_names_close_matches_and_the_choices(root):
    write(root, "quantization/ternary.py", METHOD.format(name="Ternary"))
    with pytest.raises(UserError) as caught:
        registry.method_class("goood", root)
    assert str(caught.value) == "There is no method 'goood'. Did you mean 'good'? Choose one of: good, ternary."


def test_a_broken_method_is_no_choice(root):
    write(root, "pruning/goof.py", "import nowhere_to_be_found\n")
    with pytest.raises(UserError, match=r"Choose one of: good\.$"):
        registry.method_class("goo", root)


@pytest.mark.parametrize(
    "text, cause",
    [
        ("\nimport nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found' (line 2)."),
        ("def f(:\n", "SyntaxError: invalid syntax (line 1)."),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero (line 2)."),
        ("raise SystemExit('bye')\n", "SystemExit: bye (line 1)."),
        ("raise ValueError('first\\nsecond')\n", "ValueError: first second (line 1)."),
    ],
)
def test_a_file_that_fails_to_import(root, text, cause):
    write(root, "pruning/bad.py", text)
    assert error(root, "bad") == f"methods/pruning/bad.py fails to import: {cause}"


def test_a_file_without_a_method(root):
    write(root, "pruning/bad.py", "from methods.base import Method\n\nclass Bad:\n    pass\n")
    assert (
        error(root, "bad")
        == "methods/pruning/bad.py holds no Method: define one subclass of methods.base.Method in it."
    )


def test_a_file_with_two_methods(root):
    write(root, "pruning/bad.py", METHOD.format(name="One") + METHOD.format(name="Two"))
    assert error(root, "bad") == "methods/pruning/bad.py holds 2 Methods (One, Two): give each a file of its own."


def test_two_files_with_one_stem(root):
    write(root, "pruning/same.py", METHOD.format(name="Same"))
    write(root, "quantization/same.py", METHOD.format(name="Same"))
    both = "methods/pruning/same.py and methods/quantization/same.py"
    assert error(root, "same") == f"2 files are called 'same', {both}: rename all but one of them."


def test_a_third_file_with_the_stem_is_named_too(root):
    for family in ("a", "b", "c"):
        write(root, f"{family}/same.py", METHOD.format(name="Same"))
    assert all(f"methods/{family}/same.py" in error(root, "same") for family in "abc")


def test_a_family_without_init(root):
    write(root, "new/bad.py", METHOD.format(name="Bad"))
    (root / "new/__init__.py").unlink()
    assert error(root, "bad").startswith("the folder of methods/new/bad.py has no __init__.py")


def test_a_method_that_is_no_dataclass(root):
    write(root, "pruning/bad.py", METHOD.format(name="Bad").replace("@dataclass", ""))
    assert (
        error(root, "bad") == "Bad in methods/pruning/bad.py is not decorated with @dataclass: put it above the class."
    )


def test_a_method_without_compress(root):
    write(root, "pruning/bad.py", METHOD.format(name="Bad").replace("def compress", "def squeeze"))
    assert error(root, "bad") == "Bad in methods/pruning/bad.py does not define compress."


def test_a_file_name_that_is_no_name(root):
    write(root, "pruning/bad-name.py", METHOD.format(name="Bad"))
    assert error(root, "bad-name").startswith("methods/pruning/bad-name.py is not named like a Python name")


def test_recipes_that_are_no_recipes(root):
    write(root, "pruning/bad.py", METHOD.format(name="Bad").replace("rate: float = 0.5", "recipes = {'vgg': 3}"))
    assert error(root, "bad").startswith("the recipes of Bad in methods/pruning/bad.py are not a dict")
