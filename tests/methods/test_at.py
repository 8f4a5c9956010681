"""Attention transfer: both gaps in float64 numpy, and derivatives of derivatives against finite differences."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
from oracle import mutant, worn
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.task import Task
from methods.distillation import at
from methods.distillation.at import AT


def task_for(net, budget="paper", baseline="tiny_resnet_synthetic"):
    data = synthetic(DataOptions(), train=128, test=4)
    return Task(base.load(baseline), data, net, budget=budget)


def teacher_net(widths=(8, 12, 16)):
    torch.manual_seed(1)
    return worn(ResNetCifar(8, 4, widths=widths), 0.2, 0.3, gain=2)


def handed(cls, task, **fields):
    """(the student, with weights and statistics as after a training, and the loss that compress trains it with)."""
    given = {}
    task.train = lambda net, epochs, **options: given.update(net=worn(net, 0.1, 0.3, gain=2), **options)
    cls(**fields).compress(None, task)
    return given["net"], given["loss"]


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def labels_and_teacher(student, teacher, labels, alpha, temperature=4.0):
    """(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher at T || student at T)."""
    hard = -log_softmax(student)[np.arange(len(labels)), labels].mean()
    p, q = (log_softmax(np.float64(z) / temperature) for z in (teacher, student))
    return (1 - alpha) * hard + alpha * temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()


# ------------------------------------------------------------------------------------------- activations


def stage_maps(net, x):
    """The outputs of the three stages and the logits, layer by layer, in float64."""
    with torch.no_grad():
        x = torch.relu(net.bn1(net.conv1(x)))
        maps = [x := stage(x) for stage in (net.layer1, net.layer2, net.layer3)]
        return [m.double().numpy() for m in maps], net.linear(x.mean((2, 3))).double().numpy()


def unit(maps, power):
    """vec(sum over channels of |A|^p), divided by its length."""
    q = (np.abs(maps) ** power).sum(1).reshape(len(maps), -1)
    return q / np.sqrt((q**2).sum(1, keepdims=True))


def activation_error(cls):
    """Largest relative error of the loss, over powers and with and without the teacher's probabilities."""
    errors = []
    for power, alpha in ((2.0, 0.0), (1.0, 0.9), (4.0, 0.5)):
        task = task_for(teacher_net())
        net, loss = handed(cls, task, power=power, alpha=alpha, beta=500.0)
        x, y = next(task.batches(16))
        (ours, student), (theirs, teacher) = stage_maps(net, x), stage_maps(task.teacher, x)
        gap = sum(((unit(a, power) - unit(b, power)) ** 2).mean() for a, b in zip(ours, theirs, strict=True))
        right = labels_and_teacher(student, teacher, y.numpy(), alpha) + 500 * gap
        errors.append(abs(loss(net, x, y).item() / right - 1))
    return max(errors)


def test_the_activation_loss_is_that_of_numpy():
    assert activation_error(AT) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".abs().pow(power).sum(1)", ".abs().pow(2).sum(1)"),
        (".abs().pow(power).sum(1)", ".abs().pow(power).amax(1)"),
        ("(F.normalize(ours.flatten(1)) - F.normalize(theirs.flatten(1)))", "(ours.flatten(1) - theirs.flatten(1))"),
        ("F.normalize(theirs.flatten(1))).square().mean()", "F.normalize(theirs.flatten(1))).square().sum(1).mean()"),
        ("torch.stack(gaps).sum()", "torch.stack(gaps).mean()"),
        ("self.beta * gap", "self.beta / 2 * gap"),
        ("(1 - self.alpha) * hard", "hard"),
        ("distill.kd_loss(logits, targets, self.temperature)", "distill.kd_loss(targets, logits, self.temperature)"),
    ],
)
def test_the_activation_oracle_catches_a_changed_line(old, new):
    assert activation_error(mutant(at, old, new).AT) > 1e-3


def interpolation_error(module):
    """Error of the gap of two maps of different sizes, against scipy's linear interpolation of the teacher's."""
    rng, errors = np.random.default_rng(0), []
    for ours, theirs in (((6, 6), (3, 3)), ((5, 4), (10, 8)), ((4, 6), (8, 3))):
        a, b = rng.normal(size=(2, 3, *ours)), rng.normal(size=(2, 5, *theirs))
        resized = np.stack([
            scipy.ndimage.zoom(q, np.divide(ours, theirs), order=1, mode="nearest", grid_mode=True)
            for q in (b**2).sum(1)
        ])  # fmt: skip
        right = ((unit(a, 2) - unit(np.sqrt(resized)[:, None], 2)) ** 2).mean()
        found = module.attention_gap(torch.tensor(a).float(), torch.tensor(b).float(), 2.0).item()
        errors.append(abs(found / right - 1))
    return max(errors)


def test_maps_of_another_size_are_interpolated_before_they_are_normalised():
    assert interpolation_error(at) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('mode="bilinear", align_corners=False', 'mode="bilinear", align_corners=True'),
        ('mode="bilinear", align_corners=False', 'mode="nearest"'),
    ],
)
def test_the_interpolation_oracle_catches_a_changed_line(old, new):
    assert interpolation_error(mutant(at, old, new)) > 1e-3


# ------------------------------------------------------------------------------------------- gradients


class World:
    """A task of linear nets on 6 images: everything about them can be worked out by hand."""

    def __init__(self, shape=(2, 3, 3), classes=4):
        torch.manual_seed(2)
        inputs = int(np.prod(shape))
        make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double()  # noqa: E731
        self.teacher, self.net = make().requires_grad_(False), make()
        self.x, self.y = torch.randn(6, *shape).double(), torch.tensor([0, 1, 2, 3, 0, 1])
        for net in (self.teacher, self.net):
            nn.init.normal_(net[1].weight, 0, 0.5)

    def student(self):
        return self.net

    def train(self, net, epochs, **options):
        self.loss = options["loss"]


def linear_loss(world, weight, beta):
    """CE + beta * mean((J_S - J_T)^2) of the linear student with this weight: J is W^T (p - onehot)."""
    x, onehot = world.x.flatten(1).numpy(), np.eye(4)[world.y.numpy()]
    found = []
    for w, b in ((weight, world.net[1].bias), (world.teacher[1].weight.numpy(), world.teacher[1].bias)):
        logp = log_softmax(x @ w.T + b.detach().numpy())
        found.append((-(logp * onehot).sum(1).mean(), (np.exp(logp) - onehot) @ w))
    (hard, ours), (_, theirs) = found
    return hard + beta * ((ours - theirs) ** 2).mean()


def gradient_errors(cls, beta=1000.0):
    """Relative errors of the loss and of its derivative by the student's weight, the latter by finite differences."""
    world = World()
    cls(mode="gradient", beta=beta).compress(None, world)
    world.net.float()  # the loss works in float32
    world.teacher.float()
    value = world.loss(world.net, world.x.float(), world.y)
    value.backward()
    weight, grad = world.net[1].weight.detach().double().numpy(), world.net[1].weight.grad.numpy()
    slopes = np.zeros_like(weight)
    for i in np.ndindex(*weight.shape):
        step = np.zeros_like(weight)
        step[i] = 1e-5
        slopes[i] = (linear_loss(world, weight + step, beta) - linear_loss(world, weight - step, beta)) / 2e-5
    right = linear_loss(world, weight, beta)
    return abs(value.item() / right - 1), np.abs(grad - slopes).max() / np.abs(slopes).max()


def test_the_gradient_loss_of_a_linear_net_is_that_worked_out_by_hand():
    assert max(gradient_errors(AT)) < 1e-4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('reduction="sum"', 'reduction="mean"'),
        ("(ours - theirs).square().mean()", "(ours - theirs).abs().mean()"),
        ("sensitivity(teacher, x, y)", "sensitivity(net, x, y)"),
        ("(ours - theirs).square()", "(ours.detach() - theirs).square()"),
        ("(ours - theirs).square()", "ours.square()"),
    ],
    ids=["divided by the batch", "absolute", "the student's own", "no second derivative", "no teacher"],
)
def test_the_gradient_oracle_catches_a_changed_line(old, new):
    assert max(gradient_errors(mutant(at, old, new).AT)) > 1e-3


def slope_error(module):
    """On a residual net with batch normalisation in training mode: the slope of the gap along a random direction of
    all weights, from the double backward pass, against the central difference of the gap itself, in float64."""
    student, teacher = (tiny_resnet().double() for _ in range(2))
    worn(teacher, 0.2, 0.3, gain=2).requires_grad_(False)
    worn(student, 0.1, 0.3, gain=2).train()
    for name, layer in list(student.named_modules()):
        if isinstance(layer, nn.ReLU):  # smooth, so that differences have no kinks to cross
            student.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = nn.Softplus()
    x, y = torch.randn(6, 3, 16, 16).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.manual_seed(6)
    weights = list(student.parameters())
    direction = [torch.randn_like(w) for w in weights]

    def gap(shift=0.0):
        moved = copy.deepcopy(student)
        with torch.no_grad():
            for w, d in zip(moved.parameters(), direction, strict=True):
                w += shift * d
        return moved, module.gradients(moved, teacher, x, y)[2]

    moved, value = gap()
    grads = torch.autograd.grad(value, list(moved.parameters()), allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)
    found = (gap(1e-4)[1].item() - gap(-1e-4)[1].item()) / 2e-4
    return abs(slope / found - 1)


def test_the_second_derivative_goes_through_batch_normalisation():
    assert slope_error(at) < 1e-3


def test_it_is_missed_without_the_graph_of_the_first():
    with pytest.raises(RuntimeError):
        slope_error(mutant(at, "create_graph=twice", "create_graph=False"))


def test_a_gradient_is_that_of_finite_differences():
    """Of each image's own loss, in a net whose images do not mix (eval mode)."""
    net, x, y = teacher_net().double(), torch.randn(2, 3, 16, 16).double(), torch.tensor([1, 3])
    _, found = at.sensitivity(net, x, y)
    places = torch.randperm(768)[:40]

    def losses(shift):
        moved = x.flatten(1).repeat_interleave(40, 0).clone()
        moved[torch.arange(80), places.repeat(2)] += shift
        with torch.no_grad():
            logp = log_softmax(net(moved.view(-1, 3, 16, 16)).numpy())
        return -logp[np.arange(80), y.repeat_interleave(40).numpy()].reshape(2, 40)

    slopes = (losses(1e-6) - losses(-1e-6)) / 2e-6
    assert np.abs(found.flatten(1)[:, places].numpy() - slopes).max() < 1e-4 * np.abs(slopes).max()


# ------------------------------------------------------------------------------------------- what compress trains


@pytest.mark.parametrize("mode", ["activation", "gradient"])
@pytest.mark.parametrize(
    ("baseline", "dense"), [("tiny_resnet_synthetic", tiny_resnet), ("tiny_plain_synthetic", TinyPlain)]
)
def test_it_trains_a_student_and_leaves_dense_net_and_teacher_alone(mode, baseline, dense):
    net = worn(dense(), 0.2, 0.3).eval()
    before, task = copy.deepcopy(net.state_dict()), task_for(net, "smoke", baseline)
    student = AT(mode=mode).compress(net, task)
    assert student is not net and not student.training and task.from_scratch and task.meter.train_calls == 1
    assert not any(m._forward_hooks for part in (student, task.teacher) for m in part.modules())
    for kept in (net, task.teacher):
        assert all(torch.equal(value, before[key]) for key, value in kept.state_dict().items())
        assert all(p.grad is None for p in kept.parameters())


@pytest.mark.parametrize(("mode", "weight"), [("activation", 1e3), ("gradient", 1e4)])
def test_the_gap_becomes_smaller_than_without_attention(mode, weight):
    gaps = []
    for beta in (0.0, weight):
        task = task_for(teacher_net())
        torch.manual_seed(4)
        net = AT(mode=mode, beta=beta, epochs=4).compress(None, task)
        x, y = next(task.batches(64))
        compare = at.gradients if mode == "gradient" else lambda *nets: at.activations(["layer1", "layer2"], 2.0, *nets)
        gaps.append(compare(net, task.teacher, x, y)[2].item())
    assert gaps[1] < 0.9 * gaps[0]


def test_another_teacher_of_the_family():
    task = task_for(teacher_net(), "smoke")
    task._teacher = ResNetCifar(14, 4, widths=(8, 12, 16))
    AT().compress(None, task)


def test_stages_that_differ_and_stages_without_maps():
    task = task_for(teacher_net(), "smoke")
    task._teacher = TinyPlain()
    with pytest.raises(UserError, match="teacher has the stages none and the student layer1, layer2, layer3"):
        AT().compress(None, task)
    with pytest.raises(UserError, match=r"A stage gives \(7,\)"):
        at.attention(torch.zeros(2, 7), 2.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "both"}, "no mode 'both': choose one of activation, gradient"),
        ({"beta": -1.0}, "beta=-1.0 is not a number from 0"),
        ({"power": 0.5}, "power 0.5 is below 1"),
        ({"alpha": 1.5}, r"alpha=1.5 lies outside \[0, 1\]"),
        ({"temperature": float("nan")}, "temperature nan is not positive"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=f"(?i){words}"):
        AT(**fields).compress(None, SimpleNamespace())
