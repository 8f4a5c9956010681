"""The distillation loss against float64 numpy, and the outputs of layers against the layers one by one."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import mutant
from torch import nn

from baselines.errors import UserError
from methods.kit import distill

SOURCE = Path(distill.__file__).read_text()
TEMPERATURES = (1.0, 4.0, 20.0)


def softened(logits, temperature):
    """Class probabilities at a temperature, in float64."""
    z = np.asarray(logits, np.float64) / temperature
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def expected(student, teacher, temperature):
    """T^2 * sum_i p_i log(p_i / q_i), mean over the batch."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()


def logits(seed, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, (6, 10)).astype(np.float32)


def error(kd_loss, dtype=torch.float32):
    """Largest relative error over the temperatures, in multiples of T (rounding grows with T^2, the loss does not)."""
    student, teacher = logits(0), logits(1)
    pairs = [
        (float(kd_loss(torch.tensor(student, dtype=dtype), torch.tensor(teacher, dtype=dtype), t)), t)
        for t in TEMPERATURES
    ]
    return max(abs(ours / expected(student, teacher, t) - 1) / t for ours, t in pairs)


def test_loss_is_that_of_numpy():
    assert error(distill.kd_loss) < 1e-6
    assert error(distill.kd_loss, torch.float64) < 1e-12


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return temperature**2 * ", "return "),
        ("F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
        ('reduction="batchmean"', 'reduction="mean"'),
        ("teacher_logits.detach().to(wide) / temperature", "teacher_logits.detach().to(wide)"),
    ],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert SOURCE.count(old) == 1
    module = ModuleType("distill_mutant")
    sys.modules[module.__name__] = module
    exec(compile(SOURCE.replace(old, new), "mutant", "exec"), module.__dict__)
    assert error(module.kd_loss) > 0.01


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_t_times_the_difference_of_probabilities(temperature):
    student, teacher = torch.tensor(logits(2), requires_grad=True), torch.tensor(logits(3), requires_grad=True)
    distill.kd_loss(student, teacher, temperature).backward()
    q, p = softened(student.detach().numpy(), temperature), softened(teacher.detach().numpy(), temperature)
    assert np.abs(student.grad.numpy() - temperature * (q - p) / len(q)).max() < 1e-6
    assert teacher.grad is None


def test_gradient_keeps_its_size_at_high_temperature():
    """In the limit it is that of matching zero-mean logits, (z - v) / classes per image, at any temperature."""
    student, teacher = torch.tensor(logits(4)), torch.tensor(logits(5))
    student, teacher = (z - z.mean(1, keepdim=True) for z in (student, teacher))
    limit = (student - teacher).numpy() / 10 / 6
    for temperature in (1e3, 1e4):
        z = student.double().requires_grad_(True)
        distill.kd_loss(z, teacher.double(), temperature).backward()
        assert np.abs(z.grad.numpy() - limit).max() < 0.01 * np.abs(limit).max()


def test_equal_logits_cost_nothing():
    z = torch.tensor(logits(6))
    assert distill.kd_loss(z, z, 4.0).abs() < 1e-5


def test_half_precision_logits_are_widened():
    student, teacher = torch.tensor(logits(7)).bfloat16(), torch.tensor(logits(8)).bfloat16()
    ours = distill.kd_loss(student, teacher, 4.0)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(expected(student.float().numpy(), teacher.float().numpy(), 4.0), rel=1e-6)


class Counted(nn.Module):
    """A layer that counts its runs."""

    def __init__(self):
        super().__init__()
        self.norm, self.runs = nn.BatchNorm2d(3), 0

    def forward(self, x):
        self.runs += 1
        return self.norm(x) + 1


def chain():
    """Four layers in a row, in training mode; the first one runs a second time at the end."""
    layers = nn.ModuleList(Counted() for _ in range(4))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.unused = layers, nn.ReLU()

        def forward(self, x):
            for layer in layers:
                x = layer(x)
            return layers[0](x).mean((2, 3))

    return Net().train()


def reads_and_stops(outputs):
    """Whether the outputs are those of the layers one by one, in the order asked for, and nothing behind them ran."""
    torch.manual_seed(3)
    x, net = torch.randn(5, 3, 4, 4), chain()
    (second, first), logits = outputs(net, ["layers.1", "layers.0"], x, whole=False)
    behind = [(layer.runs, int(layer.norm.num_batches_tracked)) for layer in net.layers]
    by_hand = chain()
    one = by_hand.layers[0](x)
    right = torch.equal(first, one) and torch.equal(second, by_hand.layers[1](one)) and logits is None
    second.square().sum().backward()
    untouched = all(p.grad is None for layer in net.layers[2:] for p in layer.parameters())
    hooks = any(m._forward_hooks for m in net.modules())
    return right and behind == [(1, 1), (1, 1), (0, 0), (0, 0)] and untouched and not hooks


def test_outputs_are_those_of_the_layers_and_nothing_behind_them_runs():
    assert reads_and_stops(distill.outputs)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if not whole and len(found) == len(modules):", "if not whole and len(found) > len(modules):"),
        ("if not whole and len(found) == len(modules):", "if not whole:"),
        ("return [found[name] for name in names], logits", "return list(found.values()), logits"),
        ("            handle.remove()", "            pass"),
    ],
    ids=["runs to the end", "stops too early", "another order", "hooks stay"],
)
def test_that_oracle_catches_a_changed_line(old, new):
    try:
        accepted = reads_and_stops(mutant(distill, old, new).outputs)
    except UserError:
        accepted = False
    assert not accepted


def test_a_whole_pass_gives_the_logits_too_and_the_first_of_two_outputs():
    torch.manual_seed(4)
    x = torch.randn(5, 3, 4, 4)
    (first, last), logits = distill.outputs(chain(), ["layers.0", "layers.3"], x)
    assert torch.equal(first, chain().layers[0](x)) and torch.equal(logits, chain()(x))
    assert not torch.equal(first, last) and last.requires_grad


def test_unknown_layers_and_layers_that_do_not_run():
    net = chain()
    with pytest.raises(UserError, match=r"no layer 'layers\.9'"):
        distill.outputs(net, ["layers.0", "layers.9"], torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match="'unused' does not run"):
        distill.outputs(net, ["layers.0", "unused"], torch.zeros(2, 3, 4, 4))
    assert not any(m._forward_hooks for m in net.modules())


def test_an_error_inside_the_net_leaves_no_hook():
    net = chain()
    with pytest.raises(RuntimeError):
        distill.outputs(net, ["layers.0"], torch.zeros(2, 5, 4, 4))
    assert not any(m._forward_hooks for m in net.modules())
