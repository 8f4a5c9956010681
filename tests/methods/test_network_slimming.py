"""Network slimming: the penalty's step against autograd, the threshold against numpy, and what is really removed."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from oracle import mutant, size_of
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.lenet import lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.filter_pruning import network_slimming
from methods.filter_pruning.network_slimming import NetworkSlimming

DATA = synthetic(DataOptions(), train=64, test=4)
TRAINED = {"scratch": False}
CIFAR = (3, 32, 32)


def task_for(budget="zero", shape=(3, 16, 16)):
    """A task on toy data; at budget zero nothing is trained."""
    task = Task(base.load("tiny_plain_synthetic"), DATA, budget=budget)
    task.example = torch.zeros(1, *shape)
    return task


def scaled(net, seed=0):
    """The net with BN scales of both signs and different sizes from layer to layer, and shifts."""
    generator = torch.Generator().manual_seed(seed)
    for number, module in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        spread = 1 + 0.5 * (number % 3)
        module.weight.data = spread * torch.randn(len(module.weight), generator=generator)
        module.bias.data = torch.randn(len(module.bias), generator=generator)
    return net


# -- the penalty -----------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The first training has been seen."""


def step_of(cls, net, penalty):
    """Gradients of every parameter as the training with the penalty has them before its optimiser's step."""
    torch.manual_seed(5)
    task, x, y = task_for(), torch.randn(8, 3, 16, 16), torch.arange(8) % 4

    def train(model, *args, **options):
        nn.functional.cross_entropy(model.train()(x), y).backward()
        options["after_backward"](0)
        raise Stopped

    task.train = train
    with pytest.raises(Stopped):
        cls(penalty=penalty, **TRAINED).compress(net, task)
    return {name: param.grad for name, param in net.named_parameters()}, x, y


def is_the_subgradient(cls, build, penalised):
    """Whether the step is autograd's of cross-entropy + penalty * sum |scale| over the BNs that are named."""
    torch.manual_seed(0)
    net = scaled(build())
    net.get_submodule(penalised[0]).weight.data[1] = 0.0
    twin = copy.deepcopy(net)
    ours, x, y = step_of(cls, net, 0.3)
    plain = nn.functional.cross_entropy(twin.train()(x), y)
    whole = plain + 0.3 * sum(twin.get_submodule(name).weight.abs().sum() for name in penalised)
    theirs = dict(zip(ours, torch.autograd.grad(whole, list(twin.parameters()), retain_graph=True), strict=True))
    # at 0, where |scale| has a kink, the choice is 0: the gradient of the cross-entropy alone
    first = f"{penalised[0]}.weight"
    at_zero = torch.autograd.grad(plain, dict(twin.named_parameters())[first])[0][1]
    return torch.equal(ours[first][1], at_zero) and all(
        torch.allclose(grad, theirs[name], rtol=1e-5, atol=1e-6) for name, grad in ours.items()
    )


INNER = ["layer1.0.bn1", "layer2.0.bn1", "layer3.0.bn1"]
CASES = [(TinyPlain, ["features.1", "features.5"]), (tiny_resnet, INNER)]


@pytest.mark.parametrize(("build", "penalised"), CASES, ids=["plain", "residual"])
def test_the_step_is_that_of_an_l1_penalty(build, penalised):
    assert is_the_subgradient(NetworkSlimming, build, penalised)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale.detach().sign(), alpha", "scale.detach(), alpha"),
        ("alpha=penalty)", "alpha=-penalty)"),
        ("scale.detach().sign(), alpha", "(scale.detach() >= 0).float() * 2 - 1, alpha"),
        ("if layer.bn and not layer.coupled}", "if layer.bn}"),
        ("for scale in scales:", "for scale in scales[1:]:"),
        ("scale.grad.add_(scale.detach().sign(), alpha=penalty)", "scale.grad = penalty * scale.detach().sign()"),
    ],
    ids=["L2", "pushes away from 0", "1 at 0", "the stream as well", "one BN short", "the cross-entropy forgotten"],
)
def test_the_oracle_catches_another_penalty(old, new):
    changed = mutant(network_slimming, old, new).NetworkSlimming
    assert not all(is_the_subgradient(changed, *case) for case in CASES)


def shrinks_the_scales(cls):
    """Whether a strong penalty in a real training makes the scales smaller than none does."""
    sums = []
    for penalty in (0.0, 1.0):
        torch.manual_seed(0)
        net = cls(penalty=penalty, ratio=0.0, **TRAINED).compress(scaled(TinyPlain()), task_for("smoke"))
        sums.append(net.features[1].weight.detach().abs().sum())
    return bool(sums[1] < 0.9 * sums[0])


def test_training_shrinks_the_scales():
    assert shrinks_the_scales(NetworkSlimming)
    assert not shrinks_the_scales(mutant(network_slimming, ", after_backward=shrink)", ")").NetworkSlimming)


# -- the threshold ---------------------------------------------------------------------------------------------------


def expected_plain(net, ratio):
    """What is left of TinyPlain by one sort of all its scales: the first convolution, the second, the linear layer."""
    sizes = [np.abs(net.features[i].weight.detach().numpy()) for i in (1, 5)]
    every = np.sort(np.concatenate(sizes))
    threshold = every[int(len(every) * ratio)]
    first, second = (size >= threshold for size in sizes)
    linear = net.classifier[1].weight.detach().numpy().reshape(24, 12, 16)
    return [
        net.features[0].weight.detach().numpy()[first],
        net.features[1].bias.detach().numpy()[first],
        net.features[4].weight.detach().numpy()[second][:, first],
        net.features[5].weight.detach().numpy()[second],
        linear[:, second].reshape(24, -1),
    ]


def follows_numpy(cls, ratio, seeds=range(4)):
    """Whether exactly the channels above numpy's threshold are left, with all that belongs to them."""
    for seed in seeds:
        net = scaled(TinyPlain(), seed)
        expected = expected_plain(net, ratio)
        out = cls(ratio=ratio, **TRAINED).compress(net, task_for())
        found = [out.features[0].weight, out.features[1].bias, out.features[4].weight, out.features[5].weight]
        for ours, theirs in zip([*found, out.classifier[1].weight], expected, strict=True):
            if ours.shape != theirs.shape or not np.array_equal(ours.detach().numpy(), theirs):
                return False
    return True


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_one_threshold_for_all_scales(ratio):
    assert follows_numpy(NetworkSlimming, ratio)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale.detach().abs() for", "scale.detach() for"),
        ("ratio, normalise=False)", "ratio)"),
        ("surgery.select_global(sizes, ratio, normalise=False)", "surgery.select(sizes, ratio)"),
        (
            "surgery.remove(model, task.example, keep)",
            "surgery.remove(model, task.example, {n: ~k for n, k in keep.items()})",
        ),
    ],
    ids=["signed", "layers made comparable", "layer by layer", "the large ones go"],
)
def test_the_oracle_catches_another_threshold(old, new):
    assert not follows_numpy(mutant(network_slimming, old, new).NetworkSlimming, 0.5)


def test_channels_that_emit_nothing_can_go_without_a_trace():
    net = scaled(TinyPlain())
    every = torch.cat([net.features[i].weight.detach().abs() for i in (1, 5)])
    for i in (1, 5):
        small = net.features[i].weight.detach().abs() < every.sort().values[8]
        net.features[i].weight.data[small] = 0
        net.features[i].bias.data[small] = 0
    x = torch.randn(4, 3, 16, 16)
    before = net.eval()(x)
    out = NetworkSlimming(ratio=0.4, **TRAINED).compress(net, task_for())  # int(0.4 * 20) = 8
    assert out.features[0].out_channels + out.features[4].out_channels == 12
    assert torch.allclose(out.eval()(x), before, atol=1e-5)


def test_neurons_with_batch_normalisation_are_channels_if_asked():
    net = scaled(VGG(width=0.125))
    net.classifier[1].weight.data *= 1e-6
    whole = NetworkSlimming(ratio=0.1, **TRAINED).compress(copy.deepcopy(net), task_for(shape=CIFAR))
    assert whole.classifier[0].out_features == 64
    task = task_for(shape=CIFAR)
    out = NetworkSlimming(ratio=0.1, neurons=True, **TRAINED).compress(net, task)
    assert task.details["kept"]["classifier.0"] == out.classifier[0].out_features == 64 - 59  # 10 % of 592 channels
    assert out.features[0].out_channels == 8


def test_residual_nets_lose_channels_inside_their_blocks():
    dense = scaled(tiny_resnet())
    pruned = NetworkSlimming(ratio=0.5, **TRAINED).compress(copy.deepcopy(dense), task_for())
    inner = [getattr(pruned, f"layer{s}")[0].conv1.out_channels for s in (1, 2, 3)]
    assert sum(inner) == 36 - 18
    assert [getattr(pruned, f"layer{s}")[0].conv2.out_channels for s in (1, 2, 3)] == [8, 12, 16]
    assert torch.equal(pruned.conv1.weight, dense.conv1.weight)


def test_bottlenecks_lose_channels_inside():
    net = scaled(torchvision.models.resnet50(num_classes=5))
    task = task_for(shape=(3, 64, 64))
    out = NetworkSlimming(ratio=0.5, **TRAINED).compress(net, task)
    assert len(task.details["kept"]) == 33 and out.layer1[0].conv3.out_channels == 256
    assert sum(task.details["kept"].values()) == (64 + 7552) // 2  # the stem, which nothing is added to, and 32 layers
    assert out(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


# -- passes, limits, starts ------------------------------------------------------------------------------------------


def test_no_layer_is_emptied():
    task, net = task_for(), scaled(TinyPlain())
    net.features[1].weight.data *= 1e-3
    out = NetworkSlimming(ratio=0.6, **TRAINED).compress(net, task)
    assert (out.features[0].out_channels, out.features[4].out_channels) == (1, 8)
    assert task.details == {"clamped": ["features.0"], "kept": {"features.0": 1, "features.4": 8}}


@pytest.mark.parametrize("fields", [{"ratio": 0.95}, {"macs_reduction": 0.9}], ids=str)
@pytest.mark.parametrize("build", [TinyPlain, tiny_resnet], ids=["plain", "residual"])
def test_far_pruning_still_ends(build, fields):
    try:
        out = NetworkSlimming(**fields, **TRAINED).compress(scaled(build()), task_for("smoke"))
    except UserError as error:
        assert "out of reach" in str(error) and "macs_reduction" in fields and build is tiny_resnet
    else:
        assert out(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_at_95_percent_of_the_macs_the_run_ends_with_clamped_layers():
    dense, task = scaled(ResNetCifar(20)), task_for(shape=CIFAR)
    whole = size_of(dense, (3, 32, 32))[1]
    net = NetworkSlimming(macs_reduction=0.95, **TRAINED).compress(dense, task)
    assert size_of(net, (3, 32, 32))[1] <= 0.05 * whole and net(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert task.details["clamped"] and all(task.details["kept"][name] == 1 for name in task.details["clamped"])


def limits_each_layer(cls):
    """Whether no layer loses more than half, the best of each stay, and the others follow the common threshold."""
    task, net = task_for(), scaled(TinyPlain())
    net.features[1].weight.data *= 1e-3
    sizes = net.features[1].weight.detach().abs()
    out = cls(ratio=0.5, limit=0.5, **TRAINED).compress(net, task)
    best = torch.sort(sizes, descending=True).values[:4].sort().values
    return (
        (out.features[0].out_channels, out.features[4].out_channels) == (4, 10)  # 10 go, 8 of them from the first
        and torch.equal(out.features[1].weight.detach().abs().sort().values, best)
        and task.details["clamped"] == ["features.0"]
    )


def test_a_pass_takes_at_most_its_limit_of_a_layer():
    assert limits_each_layer(NetworkSlimming)
    for old, new in (
        ("argsort(descending=True, stable=True)", "argsort(stable=True)"),
        ("len(size) - int(len(size) * self.limit)", "int(len(size) * self.limit) - 1"),
    ):
        assert not limits_each_layer(mutant(network_slimming, old, new).NetworkSlimming)


def test_every_pass_prunes_what_the_last_one_left():
    task = task_for("smoke")
    out = NetworkSlimming(ratio=0.5, limit=0.5, passes=2, **TRAINED).compress(scaled(TinyPlain()), task)
    assert task.meter.train_calls == 4
    assert 2 <= out.features[0].out_channels <= 4 and 3 <= out.features[4].out_channels <= 6
    assert task.details["kept"] == {
        "features.0": out.features[0].out_channels,
        "features.4": out.features[4].out_channels,
    }


def starts_anew(cls):
    """Whether the net that is trained has new weights and scales of one half."""
    task, seen = task_for(), []
    task.train = lambda model, *args, **options: seen.append(copy.deepcopy(model.state_dict()))
    given = scaled(TinyPlain())
    cls(ratio=0.0).compress(given, task)
    scales = torch.cat([seen[0][f"features.{i}.weight"] for i in (1, 5)])
    return bool((scales == 0.5).all()) and not torch.equal(seen[0]["features.0.weight"], given.features[0].weight)


def test_from_scratch_scales_begin_at_one_half():
    assert starts_anew(NetworkSlimming)
    for old, new in (("nn.init.constant_(module.weight, value)", "pass"), ("if self.scratch:", "if not self.scratch:")):
        assert not starts_anew(mutant(network_slimming, old, new).NetworkSlimming)


def test_epochs_and_learning_rate_are_those_of_the_recipe():
    task, asked = task_for(), []
    task.train = lambda model, epochs, of, lr, **options: asked.append((epochs, of, lr, sorted(options)))
    NetworkSlimming(passes=2, sparse_epochs=3.0, epochs=2.0, lr=0.2).compress(TinyPlain(), task)
    assert asked == [(3.0, 10.0, 0.2, ["after_backward"]), (2.0, 10.0, 0.2, [])] * 2


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_macs_budget(share):
    net = scaled(VGG(width=0.125))
    whole = size_of(net, CIFAR)[1]
    fields = NetworkSlimming.recipes[f"vgg16_cifar10/macs{share * 100:.0f}"]
    left = size_of(NetworkSlimming(**fields).compress(net, task_for(shape=CIFAR)), CIFAR)[1]
    assert 0.9 * (1 - share) * whole < left <= (1 - share) * whole


def test_recipes_keep_the_published_product_of_penalty_and_learning_rate():
    for key, fields in NetworkSlimming.recipes.items():
        method = NetworkSlimming(**fields)
        product = 1e-5 if key.startswith("vgg16") else 1e-6
        assert key.startswith("vgg16_mnist5k") or method.penalty * method.lr == pytest.approx(product)


def test_bad_values():
    task = task_for(shape=(1, 28, 28))
    with pytest.raises(UserError, match="has batch normalisation"):
        NetworkSlimming(neurons=True, **TRAINED).compress(lenet_300_100(), task)
    for fields, sentence in (
        ({"passes": 0}, "passes=0 prunes nothing"),
        ({"ratio": 1.0}, r"ratio 1.0 of features.0 lies outside \[0, 1\)"),
        ({"macs_reduction": 1.5}, r"MACs reduction 1.5 lies outside \[0, 1\)"),
        ({"limit": 1.5}, "limit=1.5"),
        ({"penalty": -1.0}, "penalty=-1.0"),
    ):
        with pytest.raises(UserError, match=sentence):
            NetworkSlimming(**fields, **TRAINED).compress(TinyPlain(), task_for())
