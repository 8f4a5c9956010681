"""The student alone: labels only, from scratch, as long and as fast as the distilled students."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant

from baselines import base
from baselines.base import Recipe
from baselines.data import DataOptions, synthetic
from baselines.models.tiny import tiny_resnet
from baselines.task import Task
from methods.controls import student
from methods.controls.student import Student
from methods.distillation.at import AT
from methods.distillation.fitnets import FitNets
from methods.distillation.kd import KD

BOARDS = ("vgg16_mnist5k", "vgg16_cifar10", "resnet56_cifar10", "resnet56_cifar100", "resnet50_imagenette")


def task_for(net, budget="paper"):
    return Task(base.load("tiny_resnet_synthetic"), synthetic(DataOptions(), train=128, test=4), net, budget=budget)


def by_hand(task, start, epochs, lr):
    """SGD with Nesterov momentum on the cross-entropy, written out; the same batches in the same order."""
    net, recipe = copy.deepcopy(start).train(), base.load("tiny_resnet_synthetic").finetune
    steps, seen = epochs * len(task.train_set) // recipe.batch_size, []
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    task.train(copy.deepcopy(start), epochs, loss=lambda m, x, y: seen.append((x, y)) or F.cross_entropy(m(x), y))
    assert len(seen) == steps
    for done, (x, y) in enumerate(seen):
        rate = lr * 0.5 * (1 + np.cos(np.pi * done / steps))
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        with torch.no_grad():
            for p, g, v in zip(net.parameters(), grads, velocity, strict=True):
                g = g + recipe.weight_decay * p
                v.mul_(recipe.momentum).add_(g)
                p -= rate * (g + recipe.momentum * v)
    return net.eval()


def is_the_plain_student(cls):
    """Whether compress gives the student that the written-out training on the labels gives."""
    task, another = task_for(tiny_resnet()), task_for(tiny_resnet())
    torch.manual_seed(5)
    right = by_hand(task, task.student(), 2, 0.05)
    torch.manual_seed(5)
    got = cls(epochs=2, lr=0.05).compress(None, another)
    x, _ = next(task.batches(64))
    with torch.no_grad():
        return torch.allclose(got(x), right(x), atol=1e-4)


def test_it_is_the_student_on_labels_alone():
    assert is_the_plain_student(Student)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr=self.lr)", ")"),
        ("task.student(), self.epochs", "task.student(), self.epochs / 2"),
    ],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not is_the_plain_student(mutant(student, old, new).Student)


def test_it_starts_from_scratch_and_leaves_the_dense_net_alone():
    dense = tiny_resnet().eval()
    before, task = copy.deepcopy(dense.state_dict()), task_for(dense, "smoke")
    got = Student().compress(dense, task)
    assert got is not dense and got.conv1.out_channels == 4 and not got.training
    assert task.from_scratch and task.meter.train_calls == 1
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def total(method):
    """Epochs of all stages of a distillation method together."""
    return method.epochs + (method.hint_epochs if isinstance(method, FitNets) and method.beta is None else 0)


@pytest.mark.parametrize("board", BOARDS)
def test_all_four_train_for_as_many_epochs_from_the_same_rate(board):
    for cls in (KD, FitNets, AT):
        for key, fields in cls.recipes.items():
            if key.split("/")[0] == board:
                method, control = cls(**fields), Student(**Student.recipes[board])
                assert (total(method), method.lr) == (control.epochs, control.lr), key
    assert {board} <= set(KD.recipes) & set(FitNets.recipes) & set(AT.recipes)


def test_every_baseline_trains_without_label_smoothing():
    """Its loss is the task's own, the distilled students' hard term is the plain cross-entropy: the same thing so."""
    assert (
        {base.load(name).finetune.label_smoothing for name in Student.recipes} == {Recipe(1, 1).label_smoothing} == {0}
    )
