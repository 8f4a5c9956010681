"""A network described as JSON and built from it again; whatever else such a JSON holds ends in one sentence."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from baselines import base
from baselines.errors import UserError
from methods.kit import coding, surgery
from repro import architecture
from repro.architecture import build, choose_root, describe

PLAIN, RESNET, VGG = "tiny_plain_synthetic", "tiny_resnet_synthetic", "vgg16_mnist5k"


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """The modules of this file count as a method's."""
    monkeypatch.setattr(architecture, "PACKAGES", (*architecture.PACKAGES, __name__))


def net_of(name, classes=4):
    return base.load(name).net(classes).eval()


def again(model, baseline=PLAIN, classes=4, side=16):
    """The model from its description, filled with its weights; outputs and parameters are the same."""
    root = choose_root(model, base.load(baseline), classes)
    description = describe(model, root)
    built = build(json.loads(json.dumps(description)))
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, side, side)
    assert torch.equal(model.eval()(x), built.eval()(x))
    assert [tuple(p.shape) for p in model.parameters()] == [tuple(p.shape) for p in built.parameters()]
    return description


def paths(description):
    return [change["path"] for change in description["changes"]]


class Block(nn.Module):
    """Builds what is in it from its arguments."""

    def __init__(self, channels, hidden, shortcut=True):
        super().__init__()
        self.channels, self.hidden, self.shortcut = channels, hidden, shortcut
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.expand(self.squeeze(x))
        y = y if self.norm is None else self.norm(y)
        return x + y if self.shortcut else y


class NoShortcut(nn.Module):
    """Adds nothing."""

    def forward(self, x):
        return 0


class Around(nn.Module):
    """A module with a factor."""

    def __init__(self, inner: nn.Module, factor: float = 2.0):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


class Affine(nn.Module):
    """A shift that it has or has not, as a flag says that has no default."""

    def __init__(self, channels: int, scale: bool, bias=True):
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.ones(channels, 1, 1)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if bias else None

    def forward(self, x):
        x = x if self.scale is None else x * self.scale
        return x if self.bias is None else x + self.bias


class Levels(nn.Conv2d):
    """Rounds its weights; what it does not know goes to its base class."""

    def __init__(self, *args, levels=4, **kwargs):
        super().__init__(*args, **kwargs)
        self.levels = levels

    def forward(self, x):
        return self._conv_forward(x, (self.weight * self.levels).round() / self.levels, self.bias)


class Forgetful(nn.Module):
    """Does not keep its argument."""

    def __init__(self, size=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight[0]


class Fixed(nn.Module):
    """Holds a constant that no state dict has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(1), persistent=False)

    def forward(self, x):
        return x * self.factor


class Endless(nn.Module):
    """Makes as many small tensors as it is told to."""

    def __init__(self, count=1):
        super().__init__()
        self.count = count
        self.parts = nn.ParameterList([torch.zeros(1) for _ in range(count)])


# ------------------------------------------------------------------------------------------- what is described


@pytest.mark.parametrize("name", [PLAIN, RESNET, VGG, "lenet5_mnist5k"])
def test_a_net_of_a_baseline_is_its_root_alone(name):
    found = base.load(name)
    for kind, make in {"net": found.net, "student": found.student}.items():
        root = choose_root(make(10), found, 10)
        assert root == {"baseline": name, "net": kind, "classes": 10}
        assert describe(make(10), root) == {"root": root, "changes": [], "tied": {}, "input_bits": {}}


def test_a_sibling_is_a_root():
    found = base.load("lenet5_mnist5k")
    model = found.siblings["lenet300"](10)
    assert choose_root(model, found, 10)["net"] == "student", "the first of two that fit"
    assert isinstance(build(_of({"baseline": found.name, "net": "sibling:lenet300", "classes": 10})), nn.Sequential)


@pytest.mark.parametrize("name, side", [(PLAIN, 16), (RESNET, 16), (VGG, 32)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_pruned_nets(name, side, ratio):
    model, example = net_of(name), torch.zeros(1, 3, side, side)
    found = surgery.layers(model, example)
    keep, _ = surgery.select({n: torch.rand(layer.width) for n, layer in found.items()}, ratio)
    params = sum(p.numel() for p in model.parameters())
    description = again(surgery.remove(model, example, keep), name, side=side)
    built = build(description)
    assert sum(p.numel() for p in built.parameters()) < params
    for path in (change["path"] for change in description["changes"]):
        assert isinstance(built.get_submodule(path), nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d)


def test_a_change_names_class_and_arguments():
    model = net_of(PLAIN)
    model.features[2] = nn.Hardtanh(-0.5, 3)
    (change,) = again(model)["changes"]
    args = {"min_val": -0.5, "max_val": 3, "inplace": False}
    assert change == {"path": "features.2", "class": "torch.nn.Hardtanh", "args": args}


def test_two_factors_in_place_of_a_convolution():
    model = net_of(RESNET)
    down, across = nn.Conv2d(8, 2, (3, 1), (2, 1), (1, 0), bias=False), nn.Conv2d(2, 12, (1, 3), (1, 2), (0, 1))
    model.layer2[0].conv1 = nn.Sequential(down, across)
    description = again(model, RESNET)
    assert paths(description) == ["layer2.0.conv1"]
    assert [name for name, _ in description["changes"][0]["children"]] == ["0", "1"]


def test_a_block_with_other_modules_inside():
    model = net_of(RESNET)
    model.layer1[0] = Block(8, 6)
    model.layer1[0].squeeze = nn.Conv2d(8, 3, 1)  # other than the constructor makes
    model.layer1[0].expand = nn.Conv2d(3, 8, 1, bias=False)
    model.layer1[0].norm = None
    assert paths(again(model, RESNET)) == [f"layer1.0{part}" for part in ("", ".squeeze", ".expand", ".norm")]


def test_modules_that_are_gone_or_nothing():
    model = net_of(RESNET)
    model.layer3[0].shortcut = NoShortcut()
    model.bn1 = nn.Identity()
    del model.layer1[0]
    description = again(model, RESNET)
    assert paths(description) == ["bn1", "layer1", "layer3.0.shortcut"]
    assert description["changes"][1] == {"path": "layer1", "children": []}


def test_a_sequential_that_lost_and_got_modules_in_the_middle():
    model = net_of(PLAIN)
    conv, _, relu, *rest = model.features
    model.features = nn.Sequential(conv, relu, nn.BatchNorm2d(8), *rest)
    again(model)
    model = net_of(PLAIN)
    children = dict(model.features.named_children())
    model.features = nn.Sequential()
    for name in ("0", "2", "new", "3", "4", "6", "7"):
        model.features.add_module(name, children.get(name, nn.BatchNorm2d(8)))
    description = again(model)
    assert description["changes"][-1] == {"path": "features", "children": ["0", "2", "new", "3", "4", "6", "7"]}


def test_wrappers_around_what_no_constructor_gives():
    model = net_of(RESNET)
    model.layer2[0] = Around(Around(model.layer2[0]), 0.25)
    model.layer2[0].inner.inner.conv1 = nn.Conv2d(8, 5, 3, 2, 1, bias=False)
    model.layer2[0].inner.inner.bn1 = nn.BatchNorm2d(5)
    model.layer2[0].inner.inner.conv2 = nn.Conv2d(5, 12, 3, 1, 1, bias=False)
    model = Around(model)
    description = again(model, RESNET)
    assert paths(description)[:2] == ["", "inner.layer2.0"] and len(paths(description)) == 5
    assert description["root"]["net"] == "net" and len(json.dumps(description)) < 2000


def test_two_equal_modules_in_place_of_one_are_two():
    model = net_of(RESNET)
    model.layer1[0].conv2 = nn.Sequential(*(nn.Conv2d(8, 8, 3, 1, 1, bias=False) for _ in range(2)))
    again(model, RESNET)


def test_one_parameter_at_two_places_stays_one():
    model = net_of(RESNET)
    model.layer1[0].conv2 = model.layer1[0].conv1
    model.layer1[0].bn1 = nn.BatchNorm2d(8)
    model.layer1[0].bn1.bias = model.layer1[0].bn2.bias
    description = again(model, RESNET)
    block = "layer1.0"
    assert description["tied"] == {
        f"{block}.conv2.weight": f"{block}.conv1.weight",
        f"{block}.bn2.bias": f"{block}.bn1.bias",
    }
    relu = nn.ReLU()
    model = net_of(PLAIN)
    model.features[2] = model.features[6] = relu
    assert again(model)["tied"] == {}, "a module without parameters may stand at two places"


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_flags_that_are_parameters(scale, bias):
    model = net_of(PLAIN)
    model.features[1] = Affine(8, scale, bias)
    model.features[4] = nn.Conv2d(8, np.int64(12), 3, padding="same", bias=bias, padding_mode="reflect")
    first, second = again(model)["changes"]
    assert first["args"] == {"channels": 8, "scale": scale, "bias": bias}
    assert second["args"]["bias"] is bias and second["args"]["padding"] == "same"


def test_arguments_that_go_to_the_base_class():
    model = net_of(PLAIN)
    model.features[0] = Levels(3, 8, 3, padding=1, bias=False, levels=3)
    (change,) = again(model)["changes"]
    assert change["class"] == f"{__name__}.Levels"
    assert change["args"]["levels"] == 3 and change["args"]["out_channels"] == 8 and change["args"]["bias"] is False


def test_a_net_of_its_own_class_is_its_own_root():
    model = nn.Sequential(Block(3, 2), nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    block = {"class": f"{__name__}.Block", "args": {"channels": 3, "hidden": 2, "shortcut": True}}
    assert again(model)["root"]["children"][0] == ["0", block]


@pytest.mark.parametrize(
    "factory, key, name",
    [
        ("torchvision.models.get_model", "name", "squeezenet1_1"),
        ("timm.create_model", "model_name", "mobilenetv3_small_050"),
    ],
)
def test_a_net_of_another_library(factory, key, name):
    import timm
    import torchvision

    make = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[factory.split(".")[0]]
    model = make(name, num_classes=4)
    model.built_by = (factory, {key: name, "num_classes": 4})
    description = again(model, side=64)
    assert description["root"] == {"built_by": factory, "args": {key: name, "num_classes": 4}}
    assert description["changes"] == [] and again(build(description), side=64) == description
    classifier = "classifier.1" if key == "name" else "classifier"
    model.set_submodule(classifier, nn.Identity())
    assert paths(again(model, side=64)) == [classifier]


def test_activation_bits_come_along():
    model = net_of(PLAIN)
    coding.attach_input(model.classifier[1], 8)
    description = again(model)
    assert description["input_bits"] == {"classifier.1": 8}
    assert [coding.input_bits(m) for m in build(description).classifier] == [32, 8, 32, 32]


def test_the_random_numbers_of_others_stay_as_they_are():
    model, before = net_of(PLAIN), torch.get_rng_state()
    again_root = choose_root(model, base.load(PLAIN), 4)
    build(describe(model, again_root))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------- what is refused


def put(module, place="features.1"):
    def change(model):
        model.set_submodule(place, module)

    return change


def attribute(model):
    model.features[2].slope = 0.25


def forward(model):
    model.features[2].forward = lambda x: x


def constant(model):
    model.features[2] = Fixed()
    model.features[2].factor += 1


def half(model):
    model.features[0].half()


def cut(model):
    model.features[0].weight = nn.Parameter(model.features[0].weight[:, :2])


def inner(model):
    class Inner(nn.Module):
        pass

    model.features[1] = Inner()


def orthogonal(model):
    parametrizations.orthogonal(model.classifier[3])


def foreign_factory(model):
    model.features[1] = nn.BatchNorm2d(8)
    model.features[1].built_by = ("os.system", {"command": "false"})


REFUSED = {
    "attribute": (attribute, "'features.2' .ReLU. has 0.25 as 'slope', but its constructor's arguments give nothing"),
    "forward": (forward, "has <class 'function'> as 'forward'"),
    "hook": (lambda model: model.register_forward_hook(lambda *_: None), "has a hook"),
    "constant": (constant, "has another 'factor' than its constructor makes"),
    "half": (half, "has 'weight' as .*float16.*, but its constructor's arguments give .*float32"),
    "cut": (cut, r"has 'weight' as \(\(8, 2, 3, 3\).* give \(\(8, 3, 3, 3\)"),
    "local class": (inner, "Inner is not found at the top of its module"),
    "parametrization": (orthogonal, "ParametrizedLinear is not found at the top"),
    "argument that is not kept": (put(Forgetful(1)), "Forgetful has no attribute 'size'"),
    "tensor as an argument": (put(Around(nn.Identity(), torch.ones(1))), "the argument 'factor' of .* is tensor"),
    "infinite argument": (put(Around(nn.Identity(), float("inf"))), "the argument 'factor' of .* is inf"),
    "modules in a list": (put(Around([nn.Identity()])), "the argument 'inner' of .* is "),
    "foreign class": (put(torch.ao.nn.quantized.FloatFunctional()), "is none of torch.nn, torchvision.models"),
    "foreign factory": (foreign_factory, "the factory 'os.system' is none of timm.create_model"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_net_that_would_come_back_otherwise_is_refused(change, words):
    model = net_of(PLAIN)
    change(model)
    with pytest.raises(UserError, match=rf"^The network cannot be described.*{words}"):
        describe(model, choose_root(model, base.load(PLAIN), 4))


def _of(root, *changes, **rest):
    return {"root": root, "changes": list(changes), "tied": {}, "input_bits": {}, **rest}


ROOT = {"baseline": PLAIN, "net": "net", "classes": 4}


def linear(into=2, out=2, **more):
    return {"class": "torch.nn.Linear", "args": {"in_features": into, "out_features": out, **more}}


LINEAR = linear()
WRAPPED = {"replaced": True}
HOSTILE_CLASSES = [
    "os.system", "builtins.eval", "builtins.object", "subprocess.Popen", "torch.load", "torch.hub.load", "posix.system",
    "torch.nn.functional.linear", "torch.nn.init.normal_", "torch.nn.Parameter", "torch.nn.Module.__init__",
    "torch.nn.modules.conv.Conv2d", "torch.nn.modules.module._global_forward_hooks", "torch.jit.ScriptModule",
    "torch.nn.parallel.DataParallel", "torch.serialization.load", "timm.create_model", "torchvision.models.resnet50",
    "torchvision.datasets.MNIST", "methods.base.Method", "methods.kit.surgery.torch.nn.Conv2d", "methods.no.such.Net",
    "methods.kit.surgery.ShortcutA", "methods.kit.surgery.remove", "methods.kit.surgery._inspect", "methods",
    "methods.", "baselines.task.Task", "baselines.models.resnet_cifar.F", "baselines.models.vgg.VGG.forward",
    "torch.nn.", "torch.nn", "torch.nn..Conv2d", ".torch.nn.Conv2d", "torch.nn.Conv2d\n", "torch.nn.Cönv2d", " ", "",
    "torch.nn.Conv2d()", "torch.nn.__builtins__", "__main__.Net", "repro.config.RunConfig", "repro.run.run",
    1, True, None, [], {}, ["torch.nn.Conv2d"], {"class": "torch.nn.Conv2d"}, 1e300, "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_CLASSES, ids=lambda name: repr(name)[:40])
def test_only_module_classes_of_the_packages_are_called(name, monkeypatch):
    for spec in (
        {"class": name, "args": {}},
        {"class": name, "args": {"command": "false"}},
        {"class": name, "children": []},
    ):
        for description in (_of(spec), _of(ROOT, {"path": "features.0", **spec})):
            with pytest.raises(UserError, match=r"^The network cannot be built from its description.*\.$"):
                build(description)


MODEL = "torchvision.models.get_model"
HOSTILE_FACTORIES = [
    ("os.system", {"command": "false"}),
    ("timm.create_model", {"model_name": "hf-hub:someone/something"}),
    ("timm.create_model", {"model_name": "resnet10t", "checkpoint_path": "evil.pth"}),
    ("timm.create_model", {"model_name": "resnet10t", "pretrained": True}),
    ("timm.create_model", {"model_name": "resnet10t", "pretrained_cfg": {"url": "evil"}}),
    ("timm.create_model", {"model_name": ["resnet10t"]}),
    ("timm.create_model", {}),
    ("timm.models.load_checkpoint", {"checkpoint_path": "evil"}),
    (MODEL, {"name": "squeezenet1_1", "weights": "DEFAULT"}),
    (MODEL, {"name": "squeezenet1_1", "weights": True}),
    (MODEL, {"name": "fasterrcnn_resnet50_fpn"}),
    (MODEL, {"name": "squeezenet1_1", "num_classes": 10**9}),
    (MODEL, {"name": "squeezenet1_1", "no_such": 1}),
    (MODEL, "name"),
    (["timm.create_model"], {"model_name": "resnet10t"}),
]


@pytest.mark.parametrize("factory, args", HOSTILE_FACTORIES)
def test_factories_get_a_listed_name_and_numbers(factory, args, monkeypatch):
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a file was loaded"))
    with pytest.raises(UserError):
        build(_of({"built_by": factory, "args": args}))


def deep(levels):
    spec = LINEAR
    for _ in range(levels):
        spec = {"class": "torch.nn.Sequential", "children": [["0", spec]]}
    return spec


def cyclic():
    spec = {"class": "torch.nn.Sequential", "children": []}
    spec["children"].append(["0", spec])
    return spec


BLOCK = {"class": "baselines.models.resnet_cifar.ResNetCifar", "args": {"depth": 60_002}}
CONV = {"class": "torch.nn.Conv2d", "args": {"in_channels": 10**6, "out_channels": 10**6, "kernel_size": 1}}
NONSENSE = {
    "nothing": ({}, "is not an object of root, changes"),
    "a list": ([], "is not an object"),
    "more keys": (_of(ROOT, code="x"), "is not an object"),
    "changes that are none": (_of(ROOT, changes=3), "TypeError"),
    "a change that is none": (_of(ROOT, 7), "7 is no change"),
    "no path": (_of(ROOT, LINEAR), "is no change"),
    "no such place": (_of(ROOT, {"path": "features.99.x", **LINEAR}), "there is no module 'features.99'"),
    "a path into a class": (_of(ROOT, {"path": "__class__.x", **LINEAR}), "there is no module '__class__'"),
    "a method's name": (_of(ROOT, {"path": "forward", **LINEAR}), "'forward' is no name"),
    "a private table": (_of(ROOT, {"path": "_modules", **LINEAR}), "'_modules' is no name"),
    "an empty name": (_of(ROOT, {"path": "features.", **LINEAR}), "is no name"),
    "no network": (_of(ROOT, {"path": "", "class": None}), "there is no network"),
    "nothing to leave out": (_of(ROOT, {"path": "weight", "class": None}), "there is no module 'weight'"),
    "unknown child": (_of(ROOT, {"path": "", "children": ["other"]}), "KeyError"),
    "a child twice": (_of(ROOT, {"path": "", "children": ["features", "features"]}), "are named twice"),
    "class and root": (_of({**ROOT, **LINEAR}), "is not an object of baseline, net, classes"),
    "nothing to wrap": (_of({"replaced": True}), "no module stands there"),
    "wrapped twice": (
        _of(ROOT, {"path": "", "class": "torch.nn.Sequential", "children": [["0", WRAPPED], ["1", WRAPPED]]}),
        "no module stands there",
    ),
    "children of a linear layer": (_of({"class": "torch.nn.Linear", "children": []}), "does not take children"),
    "an argument too many": (_of(linear(no=1)), "TypeError"),
    "an argument of the wrong type": (_of(linear("a")), "TypeError"),
    "a negative size": (_of(linear(-3)), "RuntimeError"),
    "in what is gone": (_of(ROOT, {"path": "features", **LINEAR}, {"path": "features.0.x", **LINEAR}), "is no module"),
    "unknown baseline": (_of({**ROOT, "baseline": "os"}), "There is no baseline 'os'"),
    "a path as a baseline": (_of({**ROOT, "baseline": "../tests/x"}), "There is no baseline"),
    "a list as a baseline": (_of({**ROOT, "baseline": [PLAIN]}), "does not name a net"),
    "unknown net": (_of({**ROOT, "net": "data"}), "has no net 'data'"),
    "unknown sibling": (_of({**ROOT, "net": "sibling:x"}), "has no net 'sibling:x'"),
    "a name behind a net": (_of({**ROOT, "net": "net:x"}), "has no net 'net:x'"),
    "no classes": (_of({**ROOT, "classes": 0}), "0 is no number of classes"),
    "classes as text": (_of({**ROOT, "classes": "4"}), "is no number of classes"),
    "a million classes": (_of({**ROOT, "classes": 10**6 + 1}), "is no number of classes"),
    "a large layer": (_of(linear(10**6 + 1)), "is above 1,000,000"),
    "large layers": (_of(ROOT, {"path": "features.0", **CONV}), "it would make over 2,000,000,000 numbers"),
    "many layers": (_of(BLOCK), "or 10,000 tensors"),
    "many tensors": (_of({"class": f"{__name__}.Endless", "args": {"count": 10**5}}), "or 10,000 tensors"),
    "a deep one": (_of(deep(20_000)), "RecursionError"),
    "a cyclic one": (_of(cyclic()), "RecursionError"),
    "tied to nothing": (_of(ROOT, tied={"features.0.weight": "x"}), "AttributeError"),
    "tied to another shape": (_of(ROOT, tied={"features.0.weight": "features.0.bias"}), "cannot be one parameter"),
    "tied to each other": (_of(ROOT, tied=[["a", "b"], ["b", "a"]]), "AttributeError"),
    "bits of nothing": (_of(ROOT, input_bits={"x": 8}), "there is no module 'x'"),
    "99 bits": (_of(ROOT, input_bits={"features.0": 99}), "99 bits"),
    "bits as text": (_of(ROOT, input_bits={"features.0": "8"}), "TypeError"),
}  # fmt: skip


@pytest.mark.parametrize(("description", "words"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_in_a_sentence(description, words):
    with pytest.raises(UserError, match=f"^The network cannot be built from its description.*{words}") as told:
        build(description)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def wide_description():
    """Something of everything that a description can hold."""
    model = net_of(PLAIN)
    model.features[0] = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 8, 3, padding=1))
    model.features[1] = Around(nn.Sequential(Around(model.features[1]), Block(8, 3)), 0.5)
    model.features[1].inner[1].norm = None
    model.features[5] = nn.Identity()
    model.classifier[2] = nn.BatchNorm1d(24)
    model.classifier[2].bias = model.classifier[1].bias
    coding.attach_input(model.classifier[3], 4)
    del model.features[6]
    return again(Around(model))


JUNK = (
    None, True, -1, 0, 1, 3, 5.5, 10**9, 1e308, "", "x", "net", "os.system", "torch.nn.ReLU", "torch.nn.Sequential", [],
    {}, [1, 2], {"module": LINEAR}, WRAPPED, LINEAR, ROOT, "features.0", "layer1.0", "layer1.0.conv1.weight",
)  # fmt: skip


def mutate(data, rng):
    """A copy of JSON-able data that is different at one place: another value, one less, one more, or two exchanged."""
    data = copy.deepcopy(data)
    spots = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(data)
    node, key = rng.choice(spots)
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other, place = rng.choice(spots)
        node[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(node[key])
    elif kind == 2 and isinstance(node, list):
        node.insert(key, copy.deepcopy(rng.choice((*JUNK, node[key]))))
    elif kind == 3 and isinstance(node, dict):
        node[rng.choice(("class", "args", "children", "path", "built_by", "replaced", "x", ""))] = rng.choice(JUNK)
    else:
        node[key] = copy.deepcopy(rng.choice(JUNK))
    return data


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_mutations_are_built_or_refused():
    description, rng, built = wide_description(), random.Random(0), 0
    for _ in range(2000):
        changed = mutate(description, rng)
        try:
            assert isinstance(build(changed), nn.Module)
            built += 1
        except UserError as error:
            assert str(error).startswith("The network cannot be built from its description")
    assert 100 < built < 1500, "neither is every mutation refused nor is every one accepted"
