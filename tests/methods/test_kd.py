"""Knowledge distillation: the objective in float64 numpy, and what compress trains."""

import copy

import numpy as np
import pytest
import torch
from oracle import mutant

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import tiny_resnet
from baselines.task import Task
from methods.distillation import kd
from methods.distillation.kd import KD


def task_for(net, budget="smoke"):
    data = synthetic(DataOptions(), train=128, test=4)
    return Task(base.load("tiny_resnet_synthetic"), data, net, budget=budget)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def expected(student, teacher, labels, temperature, alpha):
    """(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher at T || student at T), in float64."""
    hard = -log_softmax(student)[np.arange(len(labels)), labels].mean()
    p, q = log_softmax(np.float64(teacher) / temperature), log_softmax(np.float64(student) / temperature)
    return (1 - alpha) * hard + alpha * temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()


def worst(cls):
    """Largest relative error of the loss that ``compress`` trains with, over nets in both modes and settings."""
    dense, errors = tiny_resnet(), []
    for temperature, alpha in ((4.0, 0.9), (1.0, 0.5), (20.0, 0.0), (2.0, 1.0)):
        task, given = task_for(dense), {}
        task.train = lambda net, epochs, given=given, **options: given.update(net=net, **options)
        cls(temperature=temperature, alpha=alpha).compress(dense, task)
        net, (x, y) = given["net"].eval(), next(task.batches(32))
        torch.nn.init.normal_(net.linear.weight, 0, 2)
        with torch.no_grad():
            student, teacher = net(x).numpy(), dense.eval()(x).numpy()
        dense.train()  # the teacher stays in eval mode whatever the dense net does
        right = expected(student, teacher, y.numpy(), temperature, alpha)
        errors.append(abs(given["loss"](net, x, y).item() - right) / right)
    return max(errors)


def test_objective_is_that_of_numpy():
    assert worst(KD) < 1e-6


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(1 - self.alpha) * hard", "hard"),
        ("kd_loss(logits, targets, self.temperature)", "kd_loss(logits, targets, 1.0)"),
        ("kd_loss(logits, targets, self.temperature)", "kd_loss(targets, logits, self.temperature)"),
        ("kd_loss(logits, targets, self.temperature)", "kd_loss(logits, targets, self.temperature) / 16"),
        ("targets = teacher(x)", "targets = student(x)"),
    ],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert worst(mutant(kd, old, new).KD) > 1e-3


def test_it_trains_a_student_and_leaves_the_dense_net_alone():
    dense = tiny_resnet().eval()
    before, task = copy.deepcopy(dense.state_dict()), task_for(dense)
    student = KD().compress(dense, task)
    assert student is not dense and student.conv1.out_channels == 4 and not student.training
    assert all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in task.teacher.state_dict().items())
    assert task.meter.train_calls == 1 and task.from_scratch


def test_the_teacher_is_learned_from():
    """With alpha = 1 the labels do not count: the student moves towards the teacher's outputs."""
    torch.manual_seed(1)
    dense = tiny_resnet().eval()
    torch.nn.init.normal_(dense.linear.weight, 0, 2)
    task = task_for(dense, budget="paper")
    x, _ = next(task.batches(100))

    def distance(net):
        with torch.no_grad():
            return float((torch.softmax(net(x), 1) - torch.softmax(dense(x), 1)).abs().sum(1).mean())

    untrained = task.student().eval()
    student = KD(alpha=1.0, epochs=6, lr=0.1).compress(dense, task)
    assert distance(student) < 0.8 * distance(untrained)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.0}, "temperature 0.0 is not positive"),
        ({"temperature": float("nan")}, "temperature nan is not positive"),
        ({"alpha": 1.1}, r"alpha=1.1 lies outside \[0, 1\]"),
        ({"alpha": -0.1}, r"alpha=-0.1 lies outside \[0, 1\]"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        KD(**fields).compress(tiny_resnet(), task_for(tiny_resnet()))


def follows_the_given_teacher(cls):
    """Whether the loss is that of the teacher given to the task (``baseline.teacher=``), not of the dense net."""
    torch.manual_seed(2)
    dense, other = tiny_resnet().eval(), ResNetCifar(14, 4, widths=(8, 12, 16)).eval()
    torch.nn.init.normal_(other.linear.weight, 0, 2)
    data, given = synthetic(DataOptions(), train=128, test=4), {}
    task = Task(base.load("tiny_resnet_synthetic"), data, dense, budget="smoke", teacher=other)
    task.train = lambda net, epochs, **options: given.update(net=net.eval(), **options)
    cls().compress(dense, task)
    x, y = next(task.batches(32))
    with torch.no_grad():
        right = expected(given["net"](x).numpy(), other(x).numpy(), y.numpy(), 4.0, 0.9)
        return abs(given["loss"](given["net"], x, y).item() / right - 1) < 1e-5


def test_another_teacher_teaches():
    assert follows_the_given_teacher(KD)
    assert not follows_the_given_teacher(mutant(kd, "teacher, student = task.teacher", "teacher, student = model").KD)
