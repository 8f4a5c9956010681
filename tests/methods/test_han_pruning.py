"""Han et al.'s pruning: thresholds against numpy, what is fixed while others are retrained, that nothing revives."""

import copy
import itertools

import numpy as np
import pytest
import torch
from oracle import mutant
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.weight_pruning import han_pruning
from methods.weight_pruning.han_pruning import LENET5, LENET300, HanPruning

DATA = synthetic(DataOptions(), train=64, test=4)


def task_for(budget="zero", shape=(3, 16, 16), baseline="tiny_plain_synthetic"):
    """A task on toy data; at budget zero nothing is trained."""
    task = Task(base.load(baseline), DATA, budget=budget)
    task.example = torch.zeros(1, *shape)
    return task


def layers_of(net):
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def expected(net, quality, iterations):
    """Layer -> what numpy leaves of it, when nothing is trained: k / K of the quality, the deviation of the tensor."""
    found = {}
    for name, weight in layers_of(net).items():
        left = weight.detach().numpy().copy()
        for k in range(1, iterations + 1):
            left[np.abs(left) < quality * k / iterations * left.astype(np.float64).std()] = 0
        found[name] = left
    return found


def follows_numpy(cls, seeds=range(2)):
    """Whether ``compress`` leaves exactly what numpy leaves (in a net in which this isolates no neuron)."""
    for seed, iterations in itertools.product(seeds, (1, 3)):
        torch.manual_seed(seed)
        net = TinyPlain(num_classes=40)
        for weight in layers_of(net).values():
            nn.init.normal_(weight)
        theirs = expected(net, 0.8, iterations)
        ours = layers_of(cls(quality=0.8, iterations=iterations).compress(net, task_for()))
        if not all(np.array_equal(ours[name].detach().numpy(), left) for name, left in theirs.items()):
            return False
    return True


def test_thresholds_are_quality_times_deviation():
    assert follows_numpy(HanPruning)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return target * share", "return target"),
        ("for k in range(1, self.iterations + 1):", "for k in range(self.iterations):"),
        ("masks.beyond(name, weights[name], qualities[name])", "masks.largest({'': weights[name]}, 0.5)[0][''], False"),
        ("((FC, CONV) if self.phases else (FC + CONV,))", "(FC,)"),
    ],
    ids=["whole threshold at once", "one iteration short", "half of each layer", "convolutions spared"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not follows_numpy(mutant(han_pruning, old, new).HanPruning)


def reaches(cls, densities, net, shape):
    """Whether numpy's largest weights stay, but for dead neurons, and the quality is between numpy's magnitudes."""
    task, dense = task_for(shape=shape), copy.deepcopy(net)
    pruned = layers_of(cls(densities=densities, iterations=1).compress(net, task))
    for (name, weight), old, density in zip(pruned.items(), layers_of(dense).values(), densities, strict=True):
        flat = old.detach().numpy().astype(np.float64).ravel()
        size, left = np.abs(flat), weight.detach().numpy().ravel() != 0
        gone = int(len(size) * (1 - density))
        below, above = np.sort(size)[gone - 1 : gone + 1]
        if (left & (size < above)).any() or left.mean() < 0.85 * density:
            return False
        if not below < task.details["qualities"][name] * flat.std() < above:
            return False
    return True


CASES = [(LENET300, lenet_300_100, (1, 28, 28)), (LENET5, lenet5, (1, 28, 28))]


@pytest.mark.parametrize(("densities", "build", "shape"), CASES, ids=["300-100", "LeNet-5"])
def test_published_densities(densities, build, shape):
    torch.manual_seed(0)
    net = build()
    for weight in layers_of(net).values():
        nn.init.normal_(weight)
    assert reaches(HanPruning, densities, copy.deepcopy(net), shape)
    for old, new in (
        ("int(len(sizes) * (1 - density))", "int(len(sizes) * density)"),
        ("values.abs().sort().values", "values.sort().values.abs()"),
        ("float(threshold / values.std(unbiased=False).clamp_min(1e-30))", "float(threshold)"),
    ):
        weights = copy.deepcopy(net)
        weights.get_submodule("ip1").weight.data *= 0.5  # else the deviation is 1
        assert not reaches(mutant(han_pruning, old, new).HanPruning, densities, weights, shape)


@pytest.mark.parametrize(("densities", "build", "left"), [(LENET300, lenet_300_100, 22), (LENET5, lenet5, 36)])
def test_the_densities_give_the_published_number_of_weights(densities, build, left):
    sizes = [weight.numel() for weight in layers_of(build()).values()]
    assert round(sum(d * n for d, n in zip(densities, sizes, strict=True)) / 1000) == left


def falls_little_by_little(cls):
    """Whether densities fall as density^(k / K): seen at each retraining of a perceptron."""
    net, task, seen = lenet_300_100(), task_for(shape=(1, 28, 28)), []
    for weight in layers_of(net).values():
        nn.init.normal_(weight)
    task.train = lambda model, *args, **options: seen.append(float((model.ip1.weight != 0).float().mean()))
    cls(densities=(0.125, 0.25, 1.0), iterations=3).compress(net, task)
    return seen == pytest.approx([0.5, 0.25, 0.125], rel=0.02)


def test_iterations_prune_little_by_little():
    assert falls_little_by_little(HanPruning)
    assert not falls_little_by_little(mutant(han_pruning, "target**share)", "target)").HanPruning)


# -- retraining ------------------------------------------------------------------------------------------------------


class Watched:
    """A task that compares the state before and behind every ``train`` call."""

    def __init__(self, build, cls=HanPruning, **fields):
        torch.manual_seed(0)
        baseline = "tiny_resnet_synthetic" if build is tiny_resnet else "tiny_plain_synthetic"
        self.task, self.calls, self.net = task_for("smoke", baseline=baseline), [], build()
        self.train, self.task.train = self.task.train, self.watch
        self.out = cls(**{"iterations": 2, "quality": 0.5, **fields}).compress(self.net, self.task)

    def watch(self, model, *args, **options):
        before = copy.deepcopy(model.state_dict())
        result = self.train(model, *args, **options)
        after = model.state_dict()
        self.calls.append(({k for k, v in before.items() if not torch.equal(v, after[k])}, before, dict(after)))
        return result


PARTS = {  # whether a name of the state dict belongs to the fully connected part
    TinyPlain: lambda name: name.startswith("classifier"),
    tiny_resnet: lambda name: name.startswith("linear"),
}


def phases_freeze(cls, build):
    """Whether the odd calls change the fully connected part only, and the even ones the other (statistics too)."""
    is_fc, calls = PARTS[build], Watched(build, cls).calls
    if len(calls) != 4:
        return False
    for number, (changed, *_) in enumerate(calls):
        if not changed or any(is_fc(name) != (number % 2 == 0) for name in changed):
            return False
    return True


@pytest.mark.parametrize("build", list(PARTS), ids=["plain", "residual"])
def test_the_other_part_is_fixed(build):
    assert phases_freeze(HanPruning, build)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("module.requires_grad_(False)", "module.requires_grad_(True)"),
        ("            module.eval()", "            module.train()"),
        ("if kind not in part]", "if kind in part]"),
        ("((FC, CONV) if", "((CONV, FC) if"),
    ],
    ids=["gradients flow", "statistics move", "parts swapped", "convolutions first"],
)
def test_the_oracle_catches_what_moves(old, new):
    assert not phases_freeze(mutant(han_pruning, old, new).HanPruning, TinyPlain)


def test_without_phases_everything_is_retrained_at_once():
    watched = Watched(TinyPlain, phases=False)
    assert len(watched.calls) == 2
    assert {"features.0.weight", "features.1.running_mean", "classifier.3.weight"} <= watched.calls[0][0]


def never_revives(cls):
    """Whether what is zero when a retraining begins is zero when it ends, in every one, and the rest has moved."""
    for build in PARTS:
        watched = Watched(build, cls)
        for changed, before, after in watched.calls:
            for name in (f"{layer}.weight" for layer in layers_of(watched.net)):
                if (after[name][before[name] == 0] != 0).any():
                    return False
            if not changed:
                return False
    return True


def test_zeros_never_revive():
    assert never_revives(HanPruning)
    assert not never_revives(mutant(han_pruning, ", after_step=masks.hold(model)", "").HanPruning)


def test_survivors_keep_their_values():
    """Sec. 3.3: nothing is initialised anew; at budget zero what is left is what was there."""
    net = TinyPlain()
    before = copy.deepcopy(net.state_dict())
    after = HanPruning(quality=1.0).compress(net, task_for()).state_dict()
    for name in (f"{layer}.weight" for layer in layers_of(net)):
        assert torch.equal(after[name][after[name] != 0], before[name][after[name] != 0])
        assert (after[name] == 0).any()


def test_the_network_comes_back_free():
    watched = Watched(TinyPlain)
    assert all(param.requires_grad for param in watched.out.parameters())
    assert not watched.out._forward_pre_hooks


def test_dead_neurons_lose_everything():
    net = TinyPlain()
    nn.init.normal_(net.features[1].bias)
    with torch.no_grad():
        net.features[0].weight[2] *= 1e-3  # below any threshold: no inputs are left
    pruned = HanPruning(quality=0.5, iterations=1).compress(net, task_for())
    assert not pruned.features[0].weight[2].any() and not pruned.features[4].weight[:, 2].any()
    assert pruned.features[1].weight[2] == 0 and pruned.features[1].bias[2] == 0 and pruned.features[0].bias[2] == 0
    assert pruned.features[0].out_channels == 8 and pruned.features[4].weight.any(0).flatten(1).any(1).sum() == 7
    keeping = mutant(han_pruning, "                masks.prune_unused(model, task.example)  # Sec. 3.5\n", "")
    net.features[4].weight.data.normal_()
    assert keeping.HanPruning(quality=0.5, iterations=1).compress(net, task_for()).features[4].weight[:, 2].any()


class Dropped(nn.Module):
    """Two linear layers with a dropout behind the first."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.flatten, self.first, self.relu = nn.Flatten(), nn.Linear(768, 40), nn.ReLU()
        self.drop, self.last = nn.Dropout(rate), nn.Linear(40, 4)

    def forward(self, x):
        """Logits (N, 4)."""
        return self.last(self.drop(self.relu(self.first(self.flatten(x)))))


def adjusts_dropout(cls):
    """Whether the rate is D_o * sqrt(C_ir / C_io) of the layer before it, in every iteration, from the first rate."""
    torch.manual_seed(0)
    net, task, rates = Dropped(), task_for("smoke"), []
    train = task.train

    def watch(model, *args, **options):
        left = model.first.weight.detach().numpy()
        rates.append((model.drop.p, 0.5 * np.sqrt(np.count_nonzero(left) / left.size)))
        return train(model, *args, **options)

    task.train = watch
    cls(quality=1.5, iterations=3).compress(net, task)
    return len(rates) == 3 and all(ours == pytest.approx(theirs, rel=1e-6) for ours, theirs in rates)


def test_dropout_shrinks_with_the_connections():
    assert adjusts_dropout(HanPruning)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float(left / before) ** 0.5", "float(left / before)"),
        ("dropout.p = original *", "dropout.p *="),
        ("                adjust(dropouts)\n", ""),
    ],
    ids=["no root", "compounds", "never"],
)
def test_the_oracle_catches_another_dropout(old, new):
    assert not adjusts_dropout(mutant(han_pruning, old, new).HanPruning)


# -- at the edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"quality": 4.0}, {"densities": (0.05,) * 4}, {"quality": 50.0}], ids=str)
def test_far_pruning_still_ends(fields):
    task, net = task_for("smoke"), TinyPlain()
    pruned = HanPruning(**fields).compress(net, task)
    weights = layers_of(pruned).values()
    assert sum(int(w.count_nonzero()) for w in weights) <= 0.06 * sum(w.numel() for w in weights)
    assert pruned(torch.randn(2, 3, 16, 16)).isfinite().all()
    assert fields.get("quality") != 50.0 or {*task.details["clamped"], *task.details["emptied"]} == set(layers_of(net))


def test_emptied_layers_are_reported():
    task = task_for()
    HanPruning(quality=50.0, iterations=1).compress(TinyPlain(), task)
    assert task.details["emptied"]  # one weight in each layer hardly makes a path


def test_epochs_are_divided_over_the_retrainings():
    for build, calls in ((TinyPlain, 10), (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), 5)):
        task = task_for("smoke")
        HanPruning().compress(build(), task)
        assert task.meter.train_calls == calls


def test_recipes_fit_their_nets():
    for key, net in (("vgg16_cifar10", VGG()), ("vgg16_mnist5k", VGG(width=0.25)), ("lenet5_mnist5k", lenet5())):
        assert len(HanPruning.recipes[key]["densities"]) == len(layers_of(net))


def test_bad_values():
    for fields, sentence in (
        ({"iterations": 0}, "iterations=0 prunes nothing"),
        ({"quality": -1.0}, "quality -0.2 of .* is no threshold"),
        ({"qualities": (1.0, 1.0)}, "2 values were given, but there are 4 layers with weights"),
        ({"densities": (0.5, 0.5, 0.5, 0.0)}, r"density 0.0 lies outside \(0, 1\]"),
    ):
        with pytest.raises(UserError, match=sentence):
            HanPruning(**fields).compress(TinyPlain(), task_for())
