"""BinaryConnect: random signs by a binomial test, whole updates against numpy, weights and file of each kind."""

import math

import numpy as np
import pytest
import torch
from oracle import mutant, toy_task
from scipy.stats import binomtest, kstest
from torch import nn

from baselines import base
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain
from baselines.models.vgg import VGG
from methods.binarization import binaryconnect
from methods.binarization.binaryconnect import BinaryConnect
from methods.kit.coding import codings
from repro import codec


def weights_of(net):
    return {n: m.weight.detach() for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


# -- binary weights --------------------------------------------------------------------------------------------------

REAL = np.linspace(-1.0, 1.0, 9, dtype=np.float32)


def binarises(module):
    """Oracle: numpy's signs; for random ones an exact binomial test of clip((w + 1) / 2, 0, 1); one gradient."""
    torch.manual_seed(0)
    latent = torch.tensor(REAL, requires_grad=True)
    fixed, drawn = module.Binary(stochastic=False), module.Binary(stochastic=True)
    signs = [fixed(latent).tolist(), fixed.eval()(latent).tolist()]
    if signs != [np.where(REAL >= 0, 1.0, -1.0).tolist()] * 2:
        return False
    counts = (drawn(latent.detach().expand(3000, 9)) > 0).sum(0)
    chances = np.clip((REAL.astype(np.float64) + 1) / 2, 0, 1)
    if min(binomtest(int(c), 3000, p).pvalue for c, p in zip(counts, chances, strict=True)) < 1e-4:
        return False
    grad = torch.randn(9)
    drawn(latent).backward(grad)
    return torch.equal(latent.grad, grad) and torch.equal(drawn.eval()(latent), latent)


def test_signs_chances_and_gradient():
    assert binarises(binaryconnect)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quant.random_signs(latent)) if", "quant.random_signs(2 * latent)) if"),
        ("quant.random_signs(latent)) if self.training else latent", "quant.random_signs(latent))"),
        ("if self.training else latent", "if self.training else quant.signs(latent)"),
        ("if not self.stochastic:", "if True:"),
        ("return quant.through(latent, quant.random_signs(latent)) if", "return quant.sign(2 * latent, True) if"),
    ],
    ids=["steeper", "random test", "binary test", "never random", "another gradient"],
)
def test_the_oracle_catches_other_binary_weights(old, new):
    assert not binarises(mutant(binaryconnect, old, new))


# -- whole updates ---------------------------------------------------------------------------------------------------


class Numpy:
    """Linear layer with binary weights, batch normalisation, square hinge: forward, backward and update, float64."""

    def __init__(self, layer, optimizer, power):
        self.params = [layer.weight, layer.bias, torch.ones(4), torch.zeros(4)]  # and the normalisation's
        self.params = [p.detach().numpy().astype(np.float64) for p in self.params]
        self.optimizer, self.first, self.second, self.steps = optimizer, [0.0] * 4, [0.0] * 4, 0
        self.scales = [math.sqrt(1.5 / (768 + 4)) ** -power, 1, 1, 1]

    def gradients(self, x, y):
        weight, bias, gain, shift = self.params
        binary = np.where(weight >= 0, 1.0, -1.0)
        z = x @ binary.T + bias
        deviation = np.sqrt(z.var(0) + 1e-5)
        normal = (z - z.mean(0)) / deviation
        targets = 2 * np.eye(4)[y] - 1
        margin = np.maximum(0, 1 - targets * (gain * normal + shift))
        out = -2 * targets * margin / margin.size
        inner = out * gain
        dz = (inner - inner.mean(0) - normal * (inner * normal).mean(0)) / deviation
        return [dz.T @ x, dz.sum(0), (out * normal).sum(0), out.sum(0)]

    def update(self, x, y, rate):
        self.steps += 1
        for i, grad in enumerate(self.gradients(x, y)):
            if self.optimizer == "adam":
                self.first[i] = 0.9 * self.first[i] + 0.1 * grad
                self.second[i] = 0.999 * self.second[i] + 0.001 * grad**2
                mean, square = self.first[i] / (1 - 0.9**self.steps), self.second[i] / (1 - 0.999**self.steps)
                step = mean / (np.sqrt(square) + 1e-8)
            elif self.optimizer == "nesterov":
                self.first[i] = 0.9 * self.first[i] + grad
                step = grad + 0.9 * self.first[i]
            else:
                step = grad
            self.params[i] = self.params[i] - rate * self.scales[i] * step
        self.params[0] = np.clip(self.params[0], -1, 1)


def trains_as_numpy(cls, optimizer="adam", lr=0.003, power=1.0, **fields):
    """Oracle: after each of four updates the real weights are numpy's; in the end some of them are clipped.

    The bias is not compared: in front of a normalisation its gradient is rounding noise, which ADAM blows up.
    """
    torch.manual_seed(0)
    net, task, batches, seen = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), toy_task(budget="smoke"), [], []
    with torch.no_grad():
        net[1].weight.normal_(0, 0.02)
    oracle = Numpy(net[1], optimizer, power)
    oracle.params[0] = np.clip(oracle.params[0] / math.sqrt(1.5 / 772), -1, 1)  # where it starts from a trained net
    train = task.train

    def watched(model, *args, loss, after_step, **options):
        def kept(net, x, y):
            batches.append((x.flatten(1).numpy().astype(np.float64), y.numpy()))
            return loss(net, x, y)

        def after(step):
            after_step(step)
            seen.append(model[1][0].parametrizations.weight.original.detach().numpy().copy())

        return train(model, *args, loss=kept, after_step=after, **options)

    task.train = watched
    out = cls(scratch=False, optimizer=optimizer, lr=lr, **fields).compress(net, task)
    for step, (x, y) in enumerate(batches):
        oracle.update(x, y, lr * (1 + math.cos(math.pi * step / 4)) / 2)
        if not np.allclose(seen[step], oracle.params[0], atol=1e-4):
            return False
    edge = np.abs(oracle.params[0]) == 1
    norm = [p.detach().numpy() for p in out[1][1].parameters()]
    near = np.allclose(norm, oracle.params[2:], atol=1e-4)
    return len(batches) == 4 and near and edge.any() and not edge.all()


def test_adam_updates_the_real_weights():
    assert trains_as_numpy(BinaryConnect)


def test_rates_can_stay_unscaled():
    assert trains_as_numpy(BinaryConnect, power=0.0, scale_lr=False)


@pytest.mark.parametrize("optimizer", ["nesterov", "sgd"])
def test_sgd_scales_by_the_square(optimizer):
    assert trains_as_numpy(BinaryConnect, optimizer, lr=0.01, power=2.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"adam": 1.0', '"adam": 2.0'),
        (", after_step=quant.clip(net))", ", after_step=quant.clip(net, 0.5))"),
        (", after_step=quant.clip(net))", ", after_step=lambda step: None)"),
        ("quant.signs(latent))  # Eq. 1", "latent)  # Eq. 1"),
        ("betas=(self.momentum, 0.999)", "betas=(self.momentum, 0.9)"),
        ("return quant.square_hinge(model(x), y)", "return quant.square_hinge(model(x), y).sqrt()"),
        ("        quant.normalise_outputs(net)\n", "        net[1] = nn.Sequential(net[1], nn.Identity())\n"),
    ],
    ids=["square for adam", "clipped at half", "not clipped", "real forward", "beta 2", "hinge", "no normalisation"],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not trains_as_numpy(mutant(binaryconnect, old, new).BinaryConnect)


@pytest.mark.parametrize("optimizer", ["nesterov", "sgd"])
def test_numpy_catches_a_rate_that_is_not_squared(optimizer):
    changed = mutant(binaryconnect, f'"{optimizer}": 2.0', f'"{optimizer}": 1.0').BinaryConnect
    assert not trains_as_numpy(changed, optimizer, lr=0.01, power=2.0)


# -- the network -----------------------------------------------------------------------------------------------------


def measures_again(cls):
    """Oracle: the running mean and variance of the outputs are numpy's over 64 images, with the real weights."""
    torch.manual_seed(0)
    net, task = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), toy_task(budget="smoke")
    layer, norm = cls(stochastic=True, scratch=False).compress(net, task)[1]
    x = np.concatenate([x.flatten(1).numpy().astype(np.float64) for x, _ in task.batches(64)])
    outputs = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    wanted = [outputs.mean(0), outputs.var(0, ddof=1)]
    return all(np.allclose(a, b, rtol=1e-3) for a, b in zip((norm.running_mean, norm.running_var), wanted, strict=True))


def test_statistics_are_those_of_the_real_weights():
    assert measures_again(BinaryConnect)
    never = mutant(binaryconnect, "            search.calibrate(net, task.batches(self.calibration))\n", "")
    assert not measures_again(never.BinaryConnect)


def starts_uniform(cls):
    """Oracle: Kolmogorov and Smirnov find no other distribution than U(-1, 1) in any layer."""
    torch.manual_seed(0)
    net = cls(stochastic=True).compress(TinyPlain(), toy_task(budget="zero"))
    return all(kstest(w.numpy().ravel(), "uniform", args=(-1, 2)).pvalue > 1e-4 for w in weights_of(net).values())


def test_real_weights_start_uniformly():
    assert starts_uniform(BinaryConnect)
    assert not starts_uniform(
        mutant(binaryconnect, "weight.uniform_(-1, 1)", "weight.uniform_(-0.9, 0.9)").BinaryConnect
    )


def test_the_deterministic_file_holds_a_bit_for_each_weight():
    net = BinaryConnect().compress(VGG(width=0.25), (task := toy_task(baseline="vgg16_mnist5k")))
    assert task.from_scratch
    packed, weights = codec.pack(net), weights_of(net)
    state, _ = codec.unpack(packed.data)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(w.unique().tolist() == [-1.0, 1.0] for w in weights.values())
    count = sum(w.numel() for w in weights.values())
    taken = sum(packed.bits[f"{name}.weight"] for name in weights)
    assert 0 <= taken - count < (32 + 8) * len(weights)  # one scale, and a byte that is not full
    others = sum(packed.bits.values()) - taken
    assert 8 * len(packed.data) < 1.02 * count + others + 8 * 4000  # 1/32; the header is below 4,000 bytes


def test_the_stochastic_net_is_as_large_as_the_dense_one():
    net = BinaryConnect(stochastic=True).compress(TinyPlain(), toy_task(budget="smoke"))
    weights = weights_of(net)
    assert not codings(net) and all(w.abs().max() <= 1 and len(w.unique()) > 10 for w in weights.values())
    assert len(codec.pack(net).data) > 4 * sum(w.numel() for w in weights.values())


@pytest.mark.parametrize("name", ["tiny_plain_synthetic", "tiny_resnet_synthetic"])
def test_it_starts_from_new_weights_unless_told(name):
    for scratch in (True, False):
        task, net = toy_task(budget="smoke", baseline=name), base.load(name).net(4)
        made = BinaryConnect(scratch=scratch).compress(net, task)
        assert task.from_scratch == scratch and (made is net) != scratch
        assert len(weights_of(made)) == len(weights_of(net))


def test_without_calibration_the_statistics_are_those_of_training():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    made = BinaryConnect(stochastic=True, scratch=False, calibration=0).compress(net, toy_task(budget="zero"))
    assert made[1][1].running_mean.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": "adamax"}, "There is no optimizer 'adamax': choose one of adam, nesterov, sgd"),
        ({"momentum": 1.0}, "momentum=1.0, .* cannot be used: give a momentum between 0 and 1"),
        ({"calibration": -1}, "calibration=-1 cannot be used: .* a number of images from 0"),
    ],
    ids=str,
)
def test_bad_values(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        BinaryConnect(**fields).compress(TinyPlain(), toy_task())
