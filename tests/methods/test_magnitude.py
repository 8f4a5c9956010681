"""Magnitude pruning against numpy: which weights go under each scope, how many, and that they stay away."""

import copy

import numpy as np
import pytest
import torch
from oracle import mutant
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.tiny import TinyPlain
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.controls import magnitude
from methods.controls.magnitude import Magnitude

DATA = synthetic(DataOptions(), train=64, test=4)
LAYERS = ("features.0", "features.4", "classifier.1", "classifier.3")  # of TinyPlain; the last is the classifier


def task_for(budget="zero", dense=None):
    return Task(base.load("tiny_plain_synthetic"), DATA, dense, budget=budget)


def uneven():
    """TinyPlain with layers whose weights have different sizes."""
    torch.manual_seed(0)
    net = TinyPlain()
    for scale, name in zip((2.0, 1.0, 1.0, 1.0), LAYERS, strict=True):
        net.get_submodule(name).weight.data *= scale
    return net


def sizes(net):
    """Magnitudes by layer, float64."""
    return {name: np.abs(net.get_submodule(name).weight.detach().numpy().astype(np.float64)) for name in LAYERS}


def zeroed_by_numpy(net, scope, sparsity, names):
    """Layer -> True where numpy's sort says that a weight goes."""
    found = {}
    for name, size in sizes(net).items():
        pool = np.concatenate([s.ravel() for n, s in sizes(net).items() if n in names])
        pool = pool if scope == "global" else size.ravel()
        gone = int(len(pool) * sparsity + 1e-6) if name in names else 0
        found[name] = size < np.sort(pool)[gone] if gone else np.zeros(size.shape, bool)
    return found


def follows_numpy(cls, **fields):
    """Whether exactly the weights that numpy says are zero, the others untouched."""
    net = uneven()
    scope, sparsity = fields.get("scope", "global"), fields["sparsity"]
    names = LAYERS if fields.get("classifier") else LAYERS[:3]
    expected = zeroed_by_numpy(net, scope, sparsity, names)
    pruned = cls(**fields).compress(copy.deepcopy(net), task_for())
    return all(
        np.array_equal(
            pruned.get_submodule(name).weight.detach().numpy(),
            np.where(gone, 0, net.get_submodule(name).weight.detach().numpy()),
        )
        for name, gone in expected.items()
    )


CASES = [
    {"scope": scope, "sparsity": sparsity, "classifier": classifier}
    for scope in ("global", "layer")
    for sparsity in (0.3, 0.8)
    for classifier in (False, True)
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_the_smallest_weights_go(fields):
    assert follows_numpy(Magnitude, **fields)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if self.scope == "global":', 'if self.scope == "layer":'),
        ("if self.classifier or name not in last", ""),
        ("[share] * len(prunable)", "[share / 2] * len(prunable)"),
        ("masks.prune(weights, keep)", "masks.prune(weights, {name: ~kept for name, kept in keep.items()})"),
        ("isinstance(module, nn.Linear)][-1:]", "isinstance(module, nn.Linear)][:1]"),
    ],
    ids=["scopes swapped", "classifier pruned", "half the share", "largest go", "first linear layer spared"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    changed = mutant(magnitude, old, new).Magnitude
    assert not all(follows_numpy(changed, **fields) for fields in CASES)


def left_over(net):
    return sum(p.numel() for p in net.parameters()) / sum(int(p.count_nonzero()) for p in net.parameters())


def shrinks_as_asked(cls, scope):
    """Whether all parameters over those that are left is the compression, whatever cannot be pruned."""
    net = VGG(width=0.125)
    for param in net.parameters():  # biases and BN shifts begin at 0, which would count as removed
        nn.init.normal_(param) if param.dim() == 1 else None
    return all(
        left_over(cls(compression=c, scope=scope).compress(copy.deepcopy(net), task_for()))
        == pytest.approx(c, rel=5e-3)
        for c in (2.0, 8.0, 32.0)
    )


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_whole_net_is_compressed_as_asked(scope):
    assert shrinks_as_asked(Magnitude, scope)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("left = total / compression - (total - free) if", "left = free / compression if"),
        ("return 1 - left / free", "return 1 - left / total"),
    ],
    ids=["of the prunable weights only", "share of the whole"],
)
def test_the_oracle_catches_another_compression(old, new):
    assert not shrinks_as_asked(mutant(magnitude, old, new).Magnitude, "global")


def test_one_share_per_layer():
    net = uneven()
    shares = (0.5, 0.0, 0.9, 0.25)
    pruned = Magnitude(sparsities=shares).compress(copy.deepcopy(net), task_for())
    for (name, size), share in zip(sizes(net).items(), shares, strict=True):
        left = pruned.get_submodule(name).weight.detach().numpy() != 0
        assert int((~left).sum()) == int(size.size * share)
        assert share == 0 or size[~left].max() < size[left].min()


def takes_the_parents_sparsities(cls):
    """Whether the dense net, not the parent, is pruned to the parent's share of zeros in every layer."""
    dense, parent = uneven(), uneven()
    for layer, share in zip(LAYERS, (0.2, 0.7, 0.5, 0.1), strict=True):
        weight = parent.get_submodule(layer).weight.data
        weight.normal_().view(-1)[: int(weight.numel() * share)] = 0
    net = cls(scope="parent").compress(copy.deepcopy(parent), task_for(dense=dense))
    for layer, size in sizes(dense).items():
        mine = net.get_submodule(layer).weight.detach().numpy()
        zeros = int((parent.get_submodule(layer).weight == 0).sum())
        expected = np.where(size < np.sort(size.ravel())[zeros], 0, dense.get_submodule(layer).weight.detach().numpy())
        if not np.array_equal(mine, expected):
            return False
    return all(param.requires_grad for param in net.parameters())


def test_proportions_of_another_run():
    assert takes_the_parents_sparsities(Magnitude)
    assert not takes_the_parents_sparsities(mutant(magnitude, "return dense, zeros", "return parent, zeros").Magnitude)


def zeros_are_held(cls):
    """Whether training brings no weight back."""
    net = cls(sparsity=0.8).compress(uneven(), task_for("smoke"))
    expected = zeroed_by_numpy(uneven(), "global", 0.8, LAYERS[:3])
    return all(bool((net.get_submodule(n).weight.detach().numpy() == 0)[gone].all()) for n, gone in expected.items())


def test_zeros_stay_while_it_trains():
    assert zeros_are_held(Magnitude)
    assert not zeros_are_held(mutant(magnitude, ", after_step=masks.hold(model)", "").Magnitude)


def test_it_fine_tunes_once():
    task = task_for("smoke")
    Magnitude().compress(uneven(), task)
    assert (task.meter.train_calls, task.curve[0][2]) == (1, pytest.approx(0.01))


def test_a_layer_that_would_be_empty_keeps_its_largest_weight():
    task, net = task_for(), uneven()
    net.features[4].weight.data *= 1e-6
    pruned = Magnitude(sparsity=0.95).compress(net, task)
    assert task.details == {"clamped": ["features.4"]}
    assert int(pruned.features[4].weight.count_nonzero()) == 1
    assert pruned(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_precedence():
    nets = [
        Magnitude(**fields).compress(uneven(), task_for())
        for fields in (
            {},
            {"compression": 4.0, "sparsity": 0.1, "sparsities": (0.1,) * 4},
            {"sparsity": 0.5, "sparsities": (0.1,) * 4},
            {"sparsity": 0.5},
        )
    ]
    first, second, third, fourth = (nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    assert torch.equal(first, second) and torch.equal(third, fourth) and not torch.equal(first, third)


@pytest.mark.parametrize("baseline", sorted({key.split("/")[0] for key in Magnitude.recipes}))
def test_every_recipe_can_be_pruned_to(baseline):
    net = base.load(baseline).net({"resnet50_imagenette": 1000, "resnet56_cifar100": 100}.get(baseline, 10))
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = sum(p.numel() for p in net.parameters())
    for key, fields in Magnitude.recipes.items():
        name, _, variant = key.partition("/")
        if name == baseline and variant == "han":
            assert len(fields["sparsities"]) == len(weights)
        elif name == baseline and variant.endswith("x"):
            spared = total - sum(w.numel() for w in weights[: None if fields.get("classifier") else -1])
            assert variant == f"{fields['compression']:g}x" and spared < total / fields["compression"]


def test_hans_proportions_leave_what_his_tables_print():
    for key, net, left in (
        ("lenet300_mnist5k/han", lenet_300_100, 22),
        ("lenet5_mnist5k/han", lenet5, 36),
    ):
        pruned = Magnitude(**Magnitude.recipes[key]).compress(net(), task_for())
        nonzero = sum(int(m.weight.count_nonzero()) for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        assert round(nonzero / 1000) == left


def test_bad_values():
    net, task = TinyPlain(), task_for(dense=TinyPlain())
    for fields, sentence in (
        ({"scope": "net"}, "no scope 'net'"),
        ({"compression": 0.5}, "compression of 0.5 is out of reach"),
        ({"compression": 1000.0}, "compression of 1000 is out of reach.*classifier=true"),
        ({"sparsity": 1.0}, r"sparsity 1.0 lies outside \[0, 1\)"),
        ({"sparsities": (0.5, 0.5)}, "2 sparsities were given, but there are 4 layers"),
        ({"scope": "parent"}, "give one with start=RUN"),
        ({"scope": "parent", "sparsity": 0.5}, "set no number beside it"),
    ):
        with pytest.raises(UserError, match=sentence):
            Magnitude(**fields).compress(copy.deepcopy(net), task)
    with pytest.raises(UserError, match="set classifier=true"):
        Magnitude().compress(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), task)
    with pytest.raises(UserError, match="other layers than the dense net"):
        Magnitude(scope="parent").compress(TinyPlain(channels=(4, 6)), task)
