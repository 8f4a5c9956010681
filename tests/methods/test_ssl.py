"""SSL: the group norms and the subgradient step against numpy, what goes with a zero group, what stays zero."""

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
from baselines.models.resnet_cifar import BasicBlock, ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.task import Task
from methods.structured_sparsity import ssl
from methods.structured_sparsity.ssl import SSL
from repro import architecture

DATA = synthetic(DataOptions(), train=64, test=4)
ZEROS_ONLY = {"macs_reduction": None}
KINDS = ("filter", "channel", "shape", "depth")
ONE_OF_EACH = {"lambda_filter": 0.3, "lambda_channel": 0.2, "lambda_shape": 0.1, "lambda_depth": 0.05}
INNER = ["layer1.0", "layer2.0", "layer3.0"]


def task_for(budget="zero", shape=(3, 16, 16), name="tiny_plain_synthetic"):
    """A task on toy data; at budget zero nothing is trained."""
    task = Task(base.load(name), DATA, budget=budget)
    task.example = torch.zeros(1, *shape)
    return task


def lively(net):
    """The net with normalisation of random scale, shift and statistics, in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def groups_of(weight, kind):
    """The groups of a weight (filters, channels, height, width) in numpy, as a list of index tuples."""
    filters, channels, height, width = weight.shape
    every = slice(None)
    return {
        "filter": [(n, every, every, every) for n in range(filters)],
        "channel": [(every, c, every, every) for c in range(channels)],
        "shape": [(every, c, m, k) for c in range(channels) for m in range(height) for k in range(width)],
        "depth": [(every, every, every, every)],
    }[kind]


# -- the penalty -----------------------------------------------------------------------------------------------------


def norms_as_written(module):
    """Whether the norm of every group is the root of the sum of its squares, for every kind of group."""
    weight = torch.randn(4, 3, 2, 5)
    values, dims = weight.double().numpy(), (module.FILTER, module.CHANNEL, module.SHAPE, module.LAYER)
    for kind, over in zip(KINDS, dims, strict=True):
        theirs = [np.sqrt((values[group] ** 2).sum()) for group in groups_of(values, kind)]
        ours = module.norms(weight, over)
        if ours.numel() != len(theirs) or not np.allclose(ours.flatten().numpy(), theirs, rtol=1e-5):
            return False
    return True


def test_norms_of_every_kind_of_group():
    assert norms_as_written(ssl)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "FILTER, CHANNEL, SHAPE, LAYER = (1, 2, 3), (0, 2, 3)",
            "CHANNEL, FILTER, SHAPE, LAYER = (1, 2, 3), (0, 2, 3)",
        ),
        ("(0,), (0, 1, 2, 3)", "(0, 1), (0, 1, 2, 3)"),
        ("torch.linalg.vector_norm(weight.detach(), dim", "torch.linalg.vector_norm(weight.detach(), 1, dim"),
        ("dim=dims, keepdim=True)", "dim=dims, keepdim=True).square()"),
    ],
    ids=["filters for channels", "fibres over channels too", "L1", "squared"],
)
def test_the_oracle_catches_other_norms(old, new):
    assert not norms_as_written(mutant(ssl, old, new))


class Stopped(Exception):
    """The training with the penalty has been seen."""


def one_step(module, net, fields, x, y):
    """The net after one step of the training with the penalty on a batch, with the optimiser that the method gives."""
    task = task_for(name="tiny_resnet_synthetic")

    def train(model, epochs, *, of, optimizer, after_backward, after_step):
        sgd = optimizer(list(model.parameters()))
        nn.functional.cross_entropy(model.train()(x), y).backward()
        after_backward(0)
        sgd.step()
        after_step(0)
        raise Stopped

    task.train = train
    with pytest.raises(Stopped):
        module.SSL(**fields).compress(net, task)
    return {name: param.detach() for name, param in net.named_parameters()}


def strengths(name, weight):
    """The kinds of groups that a parameter of the residual net is penalised in: no depth outside its blocks."""
    kinds = KINDS if name.startswith(tuple(INNER)) else KINDS[:3]
    return {kind: ONE_OF_EACH[f"lambda_{kind}"] for kind in kinds if weight.ndim == 4}


def step_as_written(module):
    """Whether a step is w - lr * (gradient + decay * w + sum of strength * w / ||w^(g)||), then zero below 1e-4."""
    net = lively(tiny_resnet())
    net.layer1[0].conv1.weight.data[2] = 0.0  # a zero filter: its subgradient is 0
    net.layer2[0].conv1.weight.data[:, 1] = 0.0
    net.layer3[0].conv2.weight.data[1] *= 1e-30  # its norm is 0 in float32: nothing may blow up
    twin, x, y = copy.deepcopy(net), torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    ours = one_step(module, net, {**ONE_OF_EACH, "lr": 0.01, "weight_decay": 0.02}, x, y)
    nn.functional.cross_entropy(twin.train()(x), y).backward()
    for name, param in twin.named_parameters():
        weight, gradient = (t.detach().numpy().astype(np.float64) for t in (param, param.grad))
        step = gradient + 0.02 * weight
        for kind, strength in strengths(name, weight).items():
            for group in groups_of(weight, kind):
                size = np.sqrt((weight[group] ** 2).sum())
                if size > 1e-20:
                    step[group] += strength * weight[group] / size
        after = weight - 0.01 * step
        near = np.abs(np.abs(after) - 1e-4) < 1e-6  # float32 may fall on either side of the threshold
        after[np.abs(after) < 1e-4] = 0
        if not np.allclose(ours[name].numpy()[~near], after[~near], rtol=1e-4, atol=2e-6):
            return False
    return True


def test_the_step_is_the_subgradient_and_the_threshold():
    assert step_as_written(ssl)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.inf))", "1.0) * 2)"),
        ("strength / size.masked_fill(size == 0, torch.inf)", "strength * size.masked_fill(size == 0, torch.inf)"),
        ("size.masked_fill(size == 0, torch.inf)", "size.clamp_min(1e-30)"),
        ("CHANNEL: self.lambda_channel", "CHANNEL: self.lambda_filter"),
        ("self.lambda_depth) for conv in within", "self.lambda_depth) for conv in convolutions(model)"),
        ("param.data.abs() < threshold", "param.data < threshold"),
        ("param.data.abs() < threshold", "param.data.abs() < 100 * threshold"),
        ("weight_decay=self.weight_decay", "weight_decay=0.0"),
    ],
    ids=["doubled", "times the norm", "tiny norms blow up", "one strength for two", "depth of the stem and all",
         "negative weights go", "a higher threshold", "no weight decay"],
)  # fmt: skip
def test_the_oracle_catches_another_step(old, new):
    assert not step_as_written(mutant(ssl, old, new))


def test_the_penalty_is_the_gradient_of_the_sum_of_norms():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.double))
    weight.grad = torch.zeros_like(weight)
    ssl.penalise([(weight, dims, s) for dims, s in ((ssl.FILTER, 0.3), (ssl.CHANNEL, 0.2), (ssl.SHAPE, 0.1))])(0)
    fibres = weight.flatten(1).square().sum(0).sqrt().sum()
    whole = 0.3 * sum(w.norm() for w in weight) + 0.2 * sum(weight[:, c].norm() for c in range(3)) + 0.1 * fibres
    assert torch.allclose(weight.grad, torch.autograd.grad(whole, weight)[0], rtol=1e-10)


def test_training_with_a_strong_penalty_empties_groups():
    net = TinyPlain()
    task = task_for("smoke")
    fields = {"lambda_filter": 50.0, "lambda_channel": 0.0, "threshold": 0.05, "finetune_epochs": 0.0}
    SSL(**fields, **ZEROS_ONLY).compress(net, task)
    assert sum(task.details["kept"].values()) < 20


# -- what goes with a zero group -------------------------------------------------------------------------------------


def plain_with_zeros():
    """TinyPlain: filter 1 and 4 of the first convolution zero, channel 2 of the second, filter 0 of the second."""
    net = lively(TinyPlain())
    for layer in (net.features[0], net.features[4]):
        layer.weight.data *= (torch.rand(layer.out_channels, 1, 1, 1) + 0.1) * (
            torch.rand(layer.in_channels, 1, 1) + 0.1
        )
    net.features[0].weight.data[[1, 4]] = 0
    net.features[4].weight.data[:, 2] = 0
    net.features[4].weight.data[0] = 0
    net.classifier[1].weight.data[:, 5 * 16 : 6 * 16] = 0  # nothing reads channel 5 of the second
    return net


def muted(net, first, second):
    """The net whose dropped filters emit 0 after normalisation."""
    for i, gone in ((0, first), (4, second)):
        for param in (*net.features[i].parameters(), *net.features[i + 1].parameters()):
            param.data[gone] = 0
    return net


def zero_groups_go(cls):
    """Whether exactly the channels that are written or read by zeros alone go, without another change."""
    net, x = plain_with_zeros(), torch.randn(4, 3, 16, 16)
    expected = muted(copy.deepcopy(net), [1, 2, 4], [0, 5])(x)
    out = cls(**ZEROS_ONLY).compress(net, task_for())
    widths = (out.features[0].out_channels, out.features[4].out_channels, out.features[4].in_channels)
    return widths == (5, 10, 5) and torch.allclose(out(x), expected, atol=1e-5)


def test_a_removed_net_is_the_muted_net():
    assert zero_groups_go(SSL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" * (reading > 0)", ""),
        (" * (writing > 0)", ""),
        ("(width, inputs)).flatten(2)", "(inputs, width)).transpose(1, 2).flatten(2)"),
        ("keep[name] & (score.cpu() > 0)", "keep[name]"),
        ("keep[name] & (score.cpu() > 0)", "keep[name] & (score.cpu() > score.cpu().min())"),
    ],
    ids=["channels stay", "filters stay", "flatten order", "zeros stay", "the smallest of a full layer goes"],
)
def test_the_oracle_catches_other_removals(old, new):
    full = lively(TinyPlain())  # a net without zeros loses nothing
    cls = mutant(ssl, old, new).SSL
    whole = cls(**ZEROS_ONLY).compress(full, task_for())
    assert not zero_groups_go(cls) or whole.features[0].out_channels < 8


def test_a_stream_loses_the_channels_that_nothing_writes_or_reads():
    net = lively(torchvision.models.resnet50(num_classes=5))
    stream = [net.layer1[0].downsample[0], *(block.conv3 for block in net.layer1)]
    for conv in stream:
        conv.weight.data[[3, 7]] = 0
    stream[0].weight.data[9] = 0  # one of four alone: stays
    for conv in (net.layer1[1].conv1, net.layer1[2].conv1, net.layer2[0].conv1, net.layer2[0].downsample[0]):
        conv.weight.data[:, 100] = 0
    net.layer2[1].conv1.weight.data[:10] = 0
    task, x = task_for(shape=(3, 64, 64)), torch.randn(1, 3, 64, 64)
    masked = copy.deepcopy(net)
    for conv, bn in ((c, b) for block in masked.layer1 for c, b in ((block.conv3, block.bn3),)):
        for param in (conv.weight, bn.weight, bn.bias):
            param.data[[3, 7, 100]] = 0
    for param in masked.layer1[0].downsample.parameters():
        param.data[[3, 7, 100]] = 0
    for param in (masked.layer2[1].conv1.weight, masked.layer2[1].bn1.weight, masked.layer2[1].bn1.bias):
        param.data[:10] = 0
    out = SSL(**ZEROS_ONLY).compress(net, task)
    assert out.layer1[0].conv3.out_channels == out.layer2[0].conv1.in_channels == 256 - 3
    assert out.layer2[1].conv1.out_channels == 128 - 10 and task.details["kept"]["layer1.1.conv3"] == 253
    assert out.layer3[0].conv3.out_channels == 1024 and task.details["passed"] == []
    expected = masked(x)
    assert torch.allclose(out(x), expected, atol=1e-5 * max(1.0, float(expected.detach().abs().max())))


def test_streams_of_cifar_resnets_keep_their_width():
    net = lively(tiny_resnet())
    net.conv1.weight.data[1] = 0
    net.layer1[0].conv2.weight.data[1] = 0
    net.layer1[0].conv1.weight.data[:3] = 0
    out = SSL(**ZEROS_ONLY).compress(net, task_for())
    assert (out.conv1.out_channels, out.layer1[0].conv1.out_channels, out.layer1[0].conv2.out_channels) == (8, 5, 8)


# -- depth -----------------------------------------------------------------------------------------------------------


def deep():
    """ResNet-14: every stage has a block that changes nothing in shape."""
    return lively(ResNetCifar(14, 4, widths=(8, 12, 16)))


def passes_over(cls):
    """Whether blocks with one zero layer become identities, with an activation, and are described as JSON."""
    net, x, task = deep(), torch.randn(2, 3, 16, 16), task_for()
    net.layer1[1].conv2.weight.data.zero_()
    net.layer3[1].conv1.weight.data.zero_()
    masked = copy.deepcopy(net)
    for block in (masked.layer1[1], masked.layer3[1]):
        block.bn2.weight.data.zero_()
        block.bn2.bias.data.zero_()
    out = cls(**ZEROS_ONLY).compress(net, task)
    if task.details["passed"] != ["layer1.1", "layer3.1"] or not torch.allclose(out(x), masked(x), atol=1e-5):
        return False
    gone = [isinstance(block, BasicBlock) for stage in (out.layer1, out.layer2, out.layer3) for block in stage]
    root = architecture.choose_root(out, base.load("resnet56_cifar10"), 4)
    twin = architecture.build(architecture.describe(out, root))
    twin.load_state_dict(out.state_dict())
    return gone == [True, False, True, True, True, False] and torch.equal(twin.eval()(x), out(x))


def test_a_zero_layer_takes_its_block_away():
    assert passes_over(SSL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if all(conv.weight.any()", "if any(conv.weight.any()"),
        ("param.zero_()", "pass"),
        ("model.set_submodule(name, nn.ReLU())", "model.set_submodule(name, nn.Tanh())"),
    ],
    ids=["only when all layers are zero", "the shift stays", "another activation"],
)
def test_the_oracle_catches_other_depths(old, new):
    assert not passes_over(mutant(ssl, old, new).SSL)


def test_a_block_that_changes_the_shape_stays_silent():
    net, x, task = deep(), torch.randn(2, 3, 16, 16), task_for()
    net.layer2[0].conv1.weight.data.zero_()
    masked = copy.deepcopy(net)
    for param in masked.layer2[0].bn2.parameters():
        param.data.zero_()
    out = SSL(**ZEROS_ONLY).compress(net, task)
    assert task.details["passed"] == [] and task.details["clamped"] == ["layer2.0.conv1"]
    assert out.layer2[0].conv1.out_channels == 1 and torch.allclose(out(x), masked(x), atol=1e-5)


def test_an_activation_before_the_branch_is_no_reason_to_go():
    class PreActivation(BasicBlock):
        def forward(self, x):
            return self.shortcut(x) + self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))

    net = nn.Sequential(PreActivation(4, 4, 1))
    net[0].conv2.weight.data.zero_()
    assert ssl.pass_over(net) == [] and isinstance(net[0], PreActivation)


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def zeros_stay(cls):
    """Whether zero fibres and zero filters on a stream are zero after fine-tuning, in which the others move."""
    net, task = lively(tiny_resnet()), task_for("smoke", name="tiny_resnet_synthetic")
    net.layer1[0].conv2.weight.data[[1, 3, 5]] = 0
    net.layer2[0].conv2.weight.data[:, 2, 0, 1] = 0
    before = copy.deepcopy(net.state_dict())
    out = cls(epochs=0.0, finetune_epochs=1.0, **ZEROS_ONLY).compress(net, task)
    filters, fibres = out.layer1[0].conv2.weight, out.layer2[0].conv2.weight
    moved = [
        w for name, w in before.items() if name.endswith("conv2.weight") and not torch.equal(w, out.state_dict()[name])
    ]
    return (
        not filters[[1, 3, 5]].any()
        and not fibres[:, 2, 0, 1].any()
        and bool(filters[0].any())
        and len(moved) == 3
        and int((fibres[:, 2] == 0).sum()) == 12
    )


def test_what_is_zero_stays_zero():
    assert zeros_stay(SSL)
    for old, new in (
        (", after_step=hold(model))", ")"),
        ("(norms(c.weight, FILTER) == 0) | (norms(c.weight, SHAPE) == 0)", "norms(c.weight, FILTER) == 0"),
        ("(norms(c.weight, FILTER) == 0) | (norms(c.weight, SHAPE) == 0)", "norms(c.weight, SHAPE) == 0"),
        ("(norms(c.weight, FILTER) == 0) | (norms(c.weight, SHAPE) == 0)", "norms(c.weight, CHANNEL) == 0"),
    ):
        assert not zeros_stay(mutant(ssl, old, new).SSL)


def test_epochs_and_learning_rates():
    task, asked = task_for(), []

    def train(model, epochs, of, lr=None, optimizer=None, **options):
        groups = optimizer([nn.Parameter(torch.ones(1))]).param_groups if optimizer else [{}]
        asked.append((epochs, of, lr, groups[0].get("lr"), groups[0].get("momentum"), sorted(options)))

    task.train = train
    SSL(epochs=3.0, finetune_epochs=2.0, lr=0.2, finetune_lr=0.1).compress(TinyPlain(), task)
    assert asked == [
        (3.0, 5.0, None, 0.2, 0.9, ["after_backward", "after_step"]),
        (2.0, 5.0, 0.1, None, None, ["after_step"]),
    ]


def test_the_learning_rate_follows_the_schedule_and_resumes(tmp_path):
    nets = []
    for journal in (None, tmp_path, tmp_path):
        task = Task(base.load("tiny_plain_synthetic"), DATA, budget="short", journal=journal)
        torch.manual_seed(0)
        nets.append(SSL(**ZEROS_ONLY, lambda_filter=1.0, lr=0.02).compress(TinyPlain(), task))
        rates = [rate for _, _, rate in task.curve]
        assert rates[0] == 0.02 and rates[1] <= rates[0]
    for net in nets[1:]:
        assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), net.parameters(), strict=True))


# -- the operating point ---------------------------------------------------------------------------------------------


def takes_the_smallest(cls):
    """Whether what goes has the smallest sums of norms, in units of its layer's root mean square, and no more goes."""
    return all(takes_them(cls, seed) for seed in range(5))


def takes_them(cls, seed):
    torch.manual_seed(seed)
    net = plain_with_zeros()
    net.features[0].weight.data *= 3
    first, second, linear = (m.weight.detach().double() for m in (net.features[0], net.features[4], net.classifier[1]))
    sizes = [
        first.flatten(1).norm(dim=1) + torch.stack([second[:, c].norm() for c in range(8)]),
        second.flatten(1).norm(dim=1) + torch.stack([linear[:, 16 * c : 16 * c + 16].norm() for c in range(12)]),
    ]
    sizes[0][[1, 2, 4]] = sizes[1][[0, 5]] = 0
    means = [net.features[i].running_mean.clone() for i in (1, 5)]  # they tell who is left
    whole = size_of(net, (3, 16, 16))[1]
    out = cls(macs_reduction=0.7).compress(net, task_for())
    left = [torch.isin(mean, out.features[i].running_mean) for mean, i in zip(means, (1, 5), strict=True)]
    relative = torch.cat([size / size.square().mean().sqrt() for size in sizes])
    kept = torch.cat(left)
    share = size_of(out, (3, 16, 16))[1] / whole
    return (
        0.2 < share <= 0.3 and bool(relative[~kept].max() < relative[kept].min()) and bool((relative[kept] > 0).all())
    )


def test_beyond_the_zeros_the_smallest_groups_go():
    assert takes_the_smallest(SSL)
    for old, new in (
        ("surgery.select_global(scores, ratio)", "surgery.select_global(scores, ratio, normalise=False)"),
        ("surgery.select_global(scores, ratio)", "surgery.select(scores, ratio)"),
        ("(writing + reading)", "writing"),
        ("(writing + reading)", "reading"),
    ):
        assert not takes_the_smallest(mutant(ssl, old, new).SSL)


def test_zeros_go_even_where_the_budget_is_met_without_them():
    net, task = plain_with_zeros(), task_for()
    SSL(macs_reduction=0.0).compress(net, task)
    assert task.details["kept"] == {"features.0": 5, "features.4": 10}


def test_far_pruning_ends_or_says_why_not():
    net, task = TinyPlain(), task_for("smoke")
    net.features[0].weight.data[:2] *= 10
    out = SSL(macs_reduction=0.93).compress(net, task)
    assert task.details["clamped"] == ["features.4"] and out(torch.randn(2, 3, 16, 16)).isfinite().all()
    with pytest.raises(UserError, match=r"0\.95 is out of reach: with one filter per pruned layer it is 0\.93"):
        SSL(macs_reduction=0.95).compress(TinyPlain(), task_for())


def test_resnet56_at_95_percent():
    net, task = ResNetCifar(56), task_for(shape=(3, 32, 32))
    whole = size_of(net, (3, 32, 32))[1]
    out = SSL(macs_reduction=0.95).compress(net, task)
    assert size_of(out, (3, 32, 32))[1] <= 0.05 * whole
    assert (
        task.details["clamped"] and min(task.details["kept"].values()) == 1 and out.layer3[0].conv2.out_channels == 64
    )


def test_resnet50_loses_channels_of_its_streams():
    net, task = torchvision.models.resnet50(num_classes=5), task_for(shape=(3, 64, 64))
    whole = size_of(net, (3, 64, 64))[1]
    out = SSL(macs_reduction=0.5).compress(net, task)
    assert 0.45 * whole < size_of(out, (3, 64, 64))[1] <= 0.5 * whole
    widths = {block.conv3.out_channels for block in out.layer3}
    assert len(widths) == 1 and widths.pop() < 1024


def test_a_layer_of_zeros_keeps_one_filter():
    net, task = TinyPlain(), task_for()
    net.features[0].weight.data.zero_()
    out = SSL(**ZEROS_ONLY).compress(net, task)
    assert task.details["clamped"] == ["features.0"] and out.features[0].out_channels == 1


def test_bad_values():
    for fields, sentence in (
        ({"lambda_filter": -1.0}, "lambda_filter=-1.0"),
        ({"lambda_shape": float("nan")}, "lambda_shape=nan"),
        ({"threshold": float("inf")}, "threshold=inf"),
        ({"macs_reduction": 1.5}, r"MACs reduction 1.5 lies outside \[0, 1\)"),
        ({"lambda_depth": 0.1}, "no residual block"),
    ):
        with pytest.raises(UserError, match=sentence):
            SSL(**fields).compress(TinyPlain(), task_for())
    with pytest.raises(UserError, match="no convolution"):
        SSL().compress(lenet_300_100(), task_for(shape=(1, 28, 28)))
