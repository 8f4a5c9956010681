"""The configuration of a run: field default < recipe < command line, and one sentence for every bad word."""

import pickle
from dataclasses import asdict

import pytest
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from baselines import base
from baselines.errors import UserError
from repro import config, registry

DEMO = '''"""A method for tests."""
from dataclasses import dataclass
from enum import Enum
from methods.base import Method

class Order(Enum):
    up = 1
    down = 2

@dataclass
class Demo(Method):
    """Does nothing."""
    rate: float = 0.5
    rates: tuple[float, ...] = (0.1, 0.2)
    epochs: int = 40
    limit: float | None = None
    greedy: bool = True
    order: Order = Order.up
    recipes = {
        "vgg16_mnist5k": {"rate": 0.3, "epochs": 7},
        "vgg16_mnist5k/gentle": {"rate": 0.1},
        "lenet5_mnist5k": {"rates": (0.9,)},
        "lenet300_mnist5k": {"speed": 3},
    }

    def compress(self, model, task):
        return model
'''
DENSE = '''"""The dense net."""
from dataclasses import dataclass
from methods.base import Method

@dataclass
class Dense(Method):
    """Does nothing."""

    def compress(self, model, task):
        return model
'''
ODD = DENSE.replace("Dense", "Odd").replace("    def", "    mode: dict[list, int] = None\n\n    def")


@pytest.fixture(autouse=True)
def methods(tmp_path, monkeypatch):
    """A methods folder with dense, demo, one that does not import and one whose field does not fit Hydra."""
    family = tmp_path / "methods" / "tests"
    family.mkdir(parents=True)
    (family / "__init__.py").touch()
    for name, text in {"dense": DENSE, "demo": DEMO, "bad": "import nowhere_to_be_found\n", "odd": ODD}.items():
        (family / f"{name}.py").write_text(text)
    monkeypatch.setattr(registry, "ROOT", tmp_path / "methods")
    config.register()


def made(*words):
    """The RunConfig that the words give."""
    config.check(words)
    with initialize(config_path=None, version_base="1.3"):
        return OmegaConf.to_object(compose(config.NAME, overrides=list(words)))


def refused(*words, sweep=False, without=()):
    """The sentence with which the words are refused."""
    with pytest.raises(UserError) as caught:
        config.check(words, sweep, without)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_without_words_the_default_baseline_stays_dense():
    cfg = made()
    assert type(cfg) is config.RunConfig and type(cfg.method).__name__ == "Dense"
    assert cfg.baseline == config.BaselineOptions("vgg16_mnist5k") and (cfg.seed, cfg.budget) == (0, None)


def test_the_method_is_alive_and_its_lists_are_tuples():
    method = made("method=demo", "recipe=none", "method.rates=[0.3,1]", "method.order=down").method
    assert type(method) is registry.method_class("demo")
    assert method.rates == (0.3, 1.0) and method.order.name == "down"


@pytest.mark.parametrize(
    "words, rate, epochs",
    [
        ("recipe=none", 0.5, 40),  # the fields' defaults
        ("", 0.3, 7),  # the recipe named METHOD-BASELINE is taken by itself and wins over them
        ("recipe=demo-vgg16_mnist5k-gentle", 0.1, 40),  # a variant, instead of that recipe and not on top of it
        ("method.rate=0.9", 0.9, 7),  # the command line wins over the recipe
        ("recipe=demo-vgg16_mnist5k-gentle method.rate=0.9 method.epochs=1", 0.9, 1),
        ("recipe=none method.rate=0.9", 0.9, 40),
        ("baseline=vgg16_cifar10", 0.5, 40),  # a baseline without a recipe
    ],
)
def test_precedence(words, rate, epochs):
    before = made("method=demo", *words.split()).method
    after = made(*reversed(words.split()), "method=demo").method  # the order of the words does not matter
    assert (before.rate, before.epochs) == (after.rate, after.epochs) == (rate, epochs)


def test_the_recipe_follows_the_baseline():
    method = made("method=demo", "baseline=lenet5_mnist5k").method
    assert (method.rate, method.rates) == (0.5, (0.9,))


def test_options_of_the_run_arrive():
    words = "baseline.weights=a.safetensors data.root=/x data.per_class=50 results.dir=r device.precision=bf16 seed=3"
    cfg = made(*words.split(), "budget=short", "cache=/c", "device.channels_last=true", "start=abcdefabcdef")
    assert (cfg.baseline.weights, cfg.data.root, cfg.data.per_class) == ("a.safetensors", "/x", 50)
    assert (cfg.results.dir, cfg.device.precision, cfg.device.channels_last) == ("r", "bf16", True)
    assert (cfg.seed, cfg.budget, cfg.cache, cfg.start) == (3, "short", "/c", "abcdefabcdef")


@pytest.mark.parametrize("start", ["012345678901", "12e456789012", "123456789012", "abcdefabcdef"])
def test_an_id_stays_the_text_it_is(start):
    assert made(*config.quoted([f"start={start}"])).start == start


def test_a_configuration_can_be_sent_to_another_process():
    cfg = made("seed=3")
    cfg.method = None  # the temporary method cannot be imported there: the installed ones can, see below
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def names_in_store(group):
    return {name.removesuffix(".yaml") for name in ConfigStore.instance().repo[group]}


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["seed=1"], {"dense"}),
        (["method=demo"], {"demo", "dense"}),
        (["method=demo,dense"], {"demo", "dense"}),
        (["method=glob(*m*)"], {"demo", "dense"}),
        (["method=glob(d*, exclude=*o)"], {"dense"}),
    ],
)
def test_the_store_holds_the_chosen_methods_the_default_and_their_recipes(words, chosen):
    config.register(config.check(words, sweep=True))
    recipes = {name for name, (method, *_) in config.recipes().items() if method in chosen}
    assert names_in_store("method") == chosen and bool(recipes) == ("demo" in chosen)
    assert names_in_store("recipe") == {config.NO_RECIPE, *recipes}


def test_a_configuration_does_not_depend_on_what_else_the_store_holds():
    words = ["method=demo", "seed=3"]
    among_all = made(*words)
    config.register(["demo"])
    assert made(*words) == among_all


def test_installed_methods_get_their_recipe_and_travel(monkeypatch):
    monkeypatch.setattr(registry, "ROOT", registry.INSTALLED)
    config.register()
    recipes = {method: (name, baseline, values) for name, (method, baseline, values) in config.recipes().items()}
    changed = []
    for method, (name, baseline, values) in list(recipes.items())[:3]:
        live = made(f"method={method}", f"baseline={baseline}", f"recipe={name}").method
        expected = registry.method_class(method)(**values)
        assert asdict(pickle.loads(pickle.dumps(live))) == asdict(expected)
        changed.append(asdict(live) != asdict(type(live)()))
    assert any(changed)  # a recipe may spell out the defaults, but not every one does


def test_every_option_has_its_help():
    assert set(config.HELP) == set(config.options())


def test_a_glob_is_for_names_and_matches_some():
    assert config.check(["method=demo", "recipe=glob(*gentle)", "baseline=vgg16_mnist5k"], sweep=True) == ["demo"]
    assert refused("method=glob(x*)", sweep=True) == (
        "'method=glob(x*)' matches no method. Choose one of: demo, dense, odd."
    )
    assert refused("recipe=glob(*gentle)", sweep=True).startswith("The recipe 'demo-vgg16_mnist5k-gentle'")
    assert refused("seed=glob(*)", sweep=True).startswith("'seed=glob(*)' matches names, and seed has none:")
    assert refused("method=glob(*)").startswith("'method=glob(*)' gives method several values: add -m")


def test_unknown_names():
    assert refused("method=demmo") == (
        "There is no method 'demmo'. Did you mean 'demo'? Choose one of: demo, dense, odd."
    )
    close = "There is no baseline 'vgg16_mnist'. Did you mean 'vgg16_mnist5k'"
    sentence = refused("baseline=vgg16_mnist")
    assert sentence.startswith(close) and sentence.endswith(f"Choose one of: {', '.join(base.names())}.")
    assert refused("budget=shrt") == (
        "There is no budget 'shrt' for vgg16_mnist5k. Did you mean 'short'? Choose one of: smoke, zero, short."
    )
    assert "'paper' for vgg16_mnist5k" in refused("budget=paper")
    assert refused("budget=3").startswith("There is no budget '3'")
    assert refused("method=[a]").startswith("method=[a] is not a name.")


def test_unknown_options_and_fields():
    every = ", ".join([*config.options(), "method.FIELD"])
    assert refused("sed=1") == f"There is no option 'sed'. Did you mean 'seed'? Choose one of: {every}."
    assert "Did you mean 'data.root'" in refused("data.rot=x")
    assert refused("+new=1").startswith("There is no option 'new'.")
    assert refused("method=demo", "method.rat=1") == (
        "The method 'demo' has no field 'rat'. Did you mean 'rate' or 'rates'? "
        "Choose one of: rate, rates, epochs, limit, greedy, order."
    )
    assert refused("method.rate=1") == "The method 'dense' has no field 'rate': it has no fields at all."
    assert refused("method=demo", without=("method",)).startswith("There is no option 'method'.")


def test_a_sweep_is_judged_for_every_method():
    assert refused("method=demo,dense", "method.rate=1", sweep=True).startswith("The method 'dense' has no field")
    assert refused("method=demo,nope", sweep=True).startswith("There is no method 'nope'.")
    assert refused("method=demo", "method.rate=0.1,x", sweep=True).startswith("method.rate=x has the wrong type")
    assert refused("seed=0,x", sweep=True) == "seed=x has the wrong type: seed takes a whole number."
    config.check(["method=demo", "method.rate=0.1,0.2", "seed=range(3)"], sweep=True)


@pytest.mark.parametrize(
    "word, takes",
    [
        ("seed=abc", "a whole number"),
        ("seed=1.5", "a whole number"),
        ("seed=null", "a whole number"),
        ("verbose=maybe", "true or false"),
        ("data.classes=many", "a whole number or null"),
        ("data.root=[1]", "text or null"),
        ("method.rate=fast", "a number"),
        ("method.epochs=[1]", "a whole number"),
        ("method.rates=0.5", "a list [...] of a number each"),
        ("method.rates=[a]", "a list [...] of a number each"),
        ("method.limit=x", "a number or null"),
        ("method.order=left", "one of up, down"),
    ],
)
def test_wrong_types(word, takes):
    key = word.split("=")[0]
    assert refused("method=demo", word) == f"{word} has the wrong type: {key} takes {takes}."


def test_values_out_of_range():
    assert refused("seed=-1") == "seed=-1 lies outside 0..1000000000000000000: give a whole number within."
    assert refused("device.precision=fp8") == "device.precision=fp8 is not known. Choose one of: auto, fp32, bf16."
    assert refused("cache=null") == "cache= needs the path of a folder."


def test_recipes_that_do_not_fit():
    own = "Choose one of: demo-vgg16_mnist5k, demo-vgg16_mnist5k-gentle, none."
    assert refused("method=demo", "recipe=demo-vgg16_mnist5k-gentl") == (
        "There is no recipe 'demo-vgg16_mnist5k-gentl'. Did you mean 'demo-vgg16_mnist5k-gentle' or "
        f"'demo-vgg16_mnist5k' or 'demo-lenet5_mnist5k'? {own}"
    )
    assert refused("method=demo", "recipe=demo-lenet5_mnist5k") == (
        "The recipe 'demo-lenet5_mnist5k' is for method=demo baseline=lenet5_mnist5k, but this run has method=demo "
        f"baseline=vgg16_mnist5k. {own}"
    )
    assert refused("recipe=demo-vgg16_mnist5k") == (
        "The recipe 'demo-vgg16_mnist5k' is for method=demo baseline=vgg16_mnist5k, but this run has method=dense "
        "baseline=vgg16_mnist5k. Choose one of: none."
    )


def test_a_recipe_with_a_field_that_is_not_there():
    expected = "The recipe 'demo-lenet300_mnist5k' of Demo does not fit its fields: Key 'speed' not in 'Demo'."
    assert refused("method=demo", "baseline=lenet300_mnist5k") == expected
    config.check(["method=demo", "baseline=lenet300_mnist5k", "recipe=none"])


def test_words_that_cannot_be_read():
    assert refused("seed") == "'seed' is not an option: write KEY=VALUE, as in method=hrank seed=1."
    assert refused("data.root=[").startswith("'data.root=[' cannot be read: quote text")
    assert refused("~recipe").startswith("'~recipe' deletes an option")
    assert refused("seed=0,1") == "'seed=0,1' gives seed several values: add -m to run each of them."
    assert refused("method=demo", "method.rates=0.1,0.2") == (
        "'method.rates=0.1,0.2' gives method.rates several values: add -m to run each of them, "
        "or write [a,b] for one list."
    )


def test_a_broken_method_fails_alone():
    assert refused("method=bad").startswith("The method 'bad' cannot be used: methods/tests/bad.py fails to import:")
    sentence = refused("method=odd")
    assert sentence.startswith("The method 'odd' cannot be used: Hydra does not take its fields (")
    assert made("method=demo").method.rate == 0.3


def test_a_broken_default_does_not_break_the_others(tmp_path, monkeypatch):
    family = tmp_path / "other" / "tests"
    family.mkdir(parents=True)
    (family / "__init__.py").touch()
    (family / "demo.py").write_text(DEMO)
    (family / "dense.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.setattr(registry, "ROOT", tmp_path / "other")
    config.register()
    assert made("method=demo").method.rate == 0.3
    assert refused("seed=1").startswith("The method 'dense' cannot be used:")
