"""BNN: whole updates against numpy, the order of layers written out by hand, sums as counts of XNORs, weights, file."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant, toy_task
from scipy.stats import binomtest, kstest
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from baselines import base
from baselines.errors import UserError
from baselines.models.convnets import ConvNet, vgg_small
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.binarization import bnn
from methods.binarization.bnn import BNN
from methods.kit.coding import codings, input_bits
from repro import codec

LAYERS, NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d)


def layers_of(net):
    return [m for m in net.modules() if isinstance(m, LAYERS)]


def trained(build, cls=BNN, budget="smoke", **fields):
    """What the method makes of an untrained net on toy data."""
    torch.manual_seed(0)
    task = toy_task(budget=budget)
    task.fresh = build
    return cls(**fields).compress(None, task)


# -- whole updates ---------------------------------------------------------------------------------------------------


def normalised(x):
    """(x with mean 0 and variance 1 by column, its deviation) with the epsilon of the authors' code."""
    deviation = np.sqrt(x.var(0) + 1e-4)
    return (x - x.mean(0)) / deviation, deviation


def through_norm(grad, normal, deviation):
    return (grad - grad.mean(0) - normal * (grad * normal).mean(0)) / deviation


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


class Numpy:
    """Algorithm 1 for two layers without bias, forward, backward and update with Adam, in float64."""

    def __init__(self, first, second):
        hidden, classes = len(first), len(second)
        self.params = [first, np.ones(hidden), np.zeros(hidden), second, np.ones(classes), np.zeros(classes)]
        self.scales = [math.sqrt(1.5 / sum(p.shape)) if p.ndim == 2 else 1.0 for p in self.params]
        self.mean, self.square, self.steps = [0.0] * 6, [0.0] * 6, 0

    def gradients(self, x, y):
        first, gain1, shift1, second, gain2, shift2 = self.params
        normal1, deviation1 = normalised(x @ signs(first).T)
        a = gain1 * normal1 + shift1
        normal2, deviation2 = normalised(signs(a) @ signs(second).T)
        targets = 2 * np.eye(4)[y] - 1
        margin = np.maximum(0, 1 - targets * (gain2 * normal2 + shift2))
        out = -2 * targets * margin / margin.size
        s2 = through_norm(out * gain2, normal2, deviation2)
        hidden = (s2 @ signs(second)) * (np.abs(a) <= 1)
        s1 = through_norm(hidden * gain1, normal1, deviation1)
        return [
            *(s1.T @ x, (hidden * normal1).sum(0), hidden.sum(0)),
            *(s2.T @ signs(a), (out * normal2).sum(0), out.sum(0)),
        ]

    def update(self, x, y, rate):
        self.steps += 1
        for i, grad in enumerate(self.gradients(x, y)):
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * grad
            self.square[i] = 0.999 * self.square[i] + 0.001 * grad**2
            mean, square = self.mean[i] / (1 - 0.9**self.steps), self.square[i] / (1 - 0.999**self.steps)
            self.params[i] = self.params[i] - rate / self.scales[i] * mean / (np.sqrt(square) + 1e-8)
            if self.params[i].ndim == 2:
                self.params[i] = np.clip(self.params[i], -1, 1)


def perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(768, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4, bias=False)
    )


def latents_of(net):
    return [m.parametrizations.weight.original.detach().numpy().astype(np.float64).copy() for m in layers_of(net)]


def trains_as_numpy(cls, lr=0.003):
    """Oracle: after each of four updates the real weights are numpy's, some clipped; in the end BN is too."""
    torch.manual_seed(0)
    task, batches, starts, seen = toy_task(budget="smoke"), [], [], []
    task.fresh = perceptron
    train = task.train

    def watched(model, *args, loss, after_step=lambda step: None, **options):
        def kept(net, x, y):
            batches.append((x.flatten(1).numpy().astype(np.float64), y.numpy()))
            return loss(net, x, y)

        def after(step):
            after_step(step)
            seen.append(latents_of(model))

        starts.extend(latents_of(model))
        return train(model, *args, loss=kept, after_step=after, **options)

    task.train = watched
    out = cls(lr=lr).compress(None, task)
    oracle = Numpy(*starts)
    if kstest(starts[0].ravel(), "uniform", (-1, 2)).pvalue < 1e-3:
        return False
    for step, (x, y) in enumerate(batches):
        oracle.update(x, y, lr * (1 + math.cos(math.pi * step / 4)) / 2)
        wanted = oracle.params[0], oracle.params[3]
        if not all(np.allclose(ours, theirs, atol=1e-4) for ours, theirs in zip(seen[step], wanted, strict=True)):
            return False
    norms = [p.detach().numpy() for m in out.modules() if isinstance(m, NORMS) for p in (m.weight, m.bias)]
    theirs = [oracle.params[i] for i in (1, 2, 4, 5)]
    equal = all(np.allclose(a, b, atol=1e-4) for a, b in zip(norms, theirs, strict=True))
    assert len(batches) == 4 and (np.abs(wanted[0]) == 1).any()  # else nothing is tested
    return equal and all(
        np.array_equal(m.weight.detach().numpy(), signs(p)) for m, p in zip(layers_of(out), wanted, strict=True)
    )


def test_updates_are_numpys():
    assert trains_as_numpy(BNN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.optim.Adam(quant.groups(net, params, self.lr))", "torch.optim.Adam(params, self.lr)"),
        ("            after_step=quant.clip(net, self.bound),\n", ""),
        ("quant.square_hinge(net(x), y)", "nn.functional.cross_entropy(net(x), y)"),
        ("nn.Hardtanh()", "nn.Tanh()"),
        ("    quant.normalise_outputs(net)\n", ""),
        ("nn.Sequential(quant.SignActivation(stochastic), layer)", "nn.Sequential(nn.Identity(), layer)"),
        ("in list(quant.layers(net).items())[1:]:", "in quant.layers(net).items():"),
        ("nn.init.uniform_(layer.weight, -self.bound, self.bound)", "pass"),
    ],
    ids=["one rate", "no clip", "cross-entropy", "tanh", "bare outputs", "real inputs", "binary image", "start"],
)
def test_the_oracle_catches_another_training(old, new):
    assert not trains_as_numpy(mutant(bnn, old, new).BNN)


# -- the order of layers, written out --------------------------------------------------------------------------------


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def norm(x, bn):
    return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True, eps=1e-4)


class Parts:
    """The layers and the normalisations of a net, taken in order of definition."""

    def __init__(self, net):
        self.layers, self.norms = iter(layers_of(net)), iter([m for m in net.modules() if isinstance(m, NORMS)])

    def layer(self, x, **options):
        layer = next(self.layers)
        if isinstance(layer, nn.Linear):
            return F.linear(x, layer.weight, layer.bias)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    def norm(self, x):
        return norm(x, next(self.norms))


def plain_by_hand(net, x, pooled, hidden):
    parts = Parts(net)
    for i, pool in enumerate(pooled):
        x = parts.layer(sign(x) if i else x)
        x = parts.norm(F.max_pool2d(x, 2) if pool else x)
    x = x.flatten(1)
    for _ in range(hidden + 1):
        x = parts.norm(parts.layer(sign(x)))
    return x


def cifar_by_hand(net, x):
    """ResNet-8: the stream carries real values of the hard tanh; every convolution reads signs."""
    parts = Parts(net)
    x = F.hardtanh(parts.norm(parts.layer(x)))
    for stride in (1, 2, 2):
        inner = F.hardtanh(parts.norm(parts.layer(sign(x))))
        out = parts.norm(parts.layer(sign(inner)))
        x = x[:, :, ::stride, ::stride]
        missing = out.shape[1] - x.shape[1]
        x = F.hardtanh(out + F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2)))
    return parts.norm(parts.layer(sign(x.mean((2, 3)))))


def bottlenecks_by_hand(net, x):
    parts = Parts(net)
    x = F.hardtanh(parts.norm(F.max_pool2d(parts.layer(x), 3, 2, 1)))
    for _ in range(4):
        out = F.hardtanh(parts.norm(parts.layer(sign(x))))
        out = F.hardtanh(parts.norm(parts.layer(sign(out))))
        out = parts.norm(parts.layer(sign(out)))
        x = F.hardtanh(out + parts.norm(parts.layer(sign(x))))
    return parts.norm(parts.layer(sign(x.mean((2, 3)))))


NETS = {
    "plain": (TinyPlain, lambda net, x: plain_by_hand(net, x, (True, True), 1)),
    "convnet": (
        lambda: ConvNet((6, 6, "M", 8, "M"), 4, hidden=(9,), side=16),
        lambda net, x: plain_by_hand(net, x, (False, True, True), 1),
    ),
    "residual": (tiny_resnet, cifar_by_hand),
    "bottlenecks": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, width_per_group=16), bottlenecks_by_hand),
}


def runs_as_written(module, name):
    """Oracle: in training mode (where statistics show the order) the rewritten net gives what is written out."""
    build, by_hand = NETS[name]
    torch.manual_seed(0)
    net, x = build(), torch.randn(8, 3, 16, 16)
    for m in net.modules():
        if isinstance(m, NORMS):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    module.arrange(net, False)
    with torch.no_grad():
        return torch.allclose(net.train()(x), by_hand(net, x), atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_the_order_of_layers(name):
    assert runs_as_written(bnn, name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("plain", "    pool_first(net)\n", ""),
        ("plain", "    normalise_hidden(net)\n", ""),
        ("bottlenecks", "nn.Sequential(pool, norm)", "nn.Sequential(norm, pool)"),
        ("residual", "nn.Hardtanh()", "quant.SignActivation()"),
        ("residual", "nn.Hardtanh()", "nn.Identity()"),
        ("convnet", "in list(quant.layers(net).items())[1:]:", "in list(quant.layers(net).items())[2:]:"),
    ],
    ids=["pool of signs", "no BN", "BN first", "binary stream", "open stream", "second layer real"],
)
def test_the_oracle_catches_another_order(name, old, new):
    try:
        same = runs_as_written(mutant(bnn, old, new), name)
    except (StopIteration, RuntimeError):  # a normalisation is missing
        same = False
    assert not same


def draws_by_the_hard_sigmoid(module):
    """Oracle: in training +1 comes with probability clip((a + 1) / 2, 0, 1), by binomial tests; in eval the sign."""
    torch.manual_seed(0)
    net, seen = perceptron(), []
    module.arrange(net, True)
    layers_of(net)[1].register_forward_hook(lambda m, args, out: seen.append(args[0] > 0))
    x = torch.randn(8, 3, 16, 16)
    a = norm(F.linear(x.flatten(1), layers_of(net)[0].weight), net[2]).detach()
    with torch.no_grad():
        for _ in range(1000):
            net(x)
    counts, chances = torch.stack(seen).sum(0).flatten(), ((a.double() + 1) / 2).clamp(0, 1).flatten()
    pairs = zip(counts.tolist(), chances.tolist(), strict=True)
    if min(binomtest(count, 1000, chance).pvalue for count, chance in pairs) < 1e-5:
        return False
    seen.clear()
    with torch.no_grad():
        net.eval()(x)
    inner = net[2](F.linear(x.flatten(1), layers_of(net)[0].weight))
    return torch.equal(seen[0], inner >= 0)


def test_stochastic_activations():
    assert draws_by_the_hard_sigmoid(bnn)
    fixed = mutant(bnn, "quant.SignActivation(stochastic)", "quant.SignActivation()")
    assert not draws_by_the_hard_sigmoid(fixed)


def test_stochastic_training_gives_another_net():
    one, two = (trained(perceptron, stochastic=flag, lr=0.1) for flag in (False, True))
    assert any(not torch.equal(a.weight, b.weight) for a, b in zip(layers_of(one), layers_of(two), strict=True))


# -- what is returned ------------------------------------------------------------------------------------------------


def xnor_count(a, b):
    """2 popcount(xnor(a, b)) - n of the signs of two vectors, on packed bits."""
    xnor = ~(np.packbits(a > 0) ^ np.packbits(b > 0))
    return 2 * int(np.unpackbits(xnor)[: len(a)].sum()) - len(a)


def counts_xnors(cls):
    """Oracle: a sum of products is 2 popcount(xnor) - n: a linear layer, and a convolution off the border."""
    net, seen = trained(TinyPlain, cls), {}
    conv, linear = layers_of(net)[1:3]
    for layer in (conv, linear):
        layer.register_forward_hook(lambda m, args, out: seen.update({m: (args[0].numpy(), out.detach().numpy())}))
    with torch.no_grad():
        net(torch.randn(3, 3, 16, 16))
    x, out = seen[linear]
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    pairs = [(i, j) for i in range(3) for j in range(24)]
    if not all(xnor_count(x[i], weight[j]) == round(float(out[i, j] - bias[j]), 3) for i, j in pairs):
        return False
    x, out = seen[conv]
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    places = [(i, j, h, w) for i in range(3) for j in range(12) for h in (1, 4) for w in (2, 6)]
    return all(
        xnor_count(x[i, :, h - 1 : h + 2, w - 1 : w + 2].ravel(), weight[j].ravel())
        == round(float(out[i, j, h, w] - bias[j]), 3)
        for i, j, h, w in places
    )


def test_sums_are_counts_of_xnors():
    assert counts_xnors(BNN)
    real = mutant(bnn, 'quant.bake(net, Coding("binary", per_channel=False))', "quant.restore(net)")
    assert not counts_xnors(real.BNN)
    inputs = mutant(bnn, "quant.SignActivation(stochastic), layer", "nn.Identity(), layer")
    assert not counts_xnors(inputs.BNN)


@pytest.mark.parametrize("build", [TinyPlain, tiny_resnet], ids=["plain", "residual"])
def test_every_weight_is_a_sign_and_all_inputs_but_the_first_are(build):
    net = trained(build)
    layers = layers_of(net)
    assert all(layer.weight.unique().tolist() == [-1, 1] for layer in layers)
    assert [input_bits(layer) for layer in layers] == [32] + [1] * (len(layers) - 1)
    assert {coding.kind for coding in codings(net).values()} == {"binary"} and len(codings(net)) == len(layers)


def test_a_bit_for_each_weight_in_the_file():
    net = trained(lambda: vgg_small(10, 0.25), budget="zero")
    weights = sum(layer.weight.numel() for layer in layers_of(net))
    plain = copy.deepcopy(net)
    for layer in layers_of(plain):
        del layer._coding
        layer.weight.data *= torch.rand_like(layer.weight) + 1
    binary, dense = (len(codec.pack(n).data) for n in (net, plain))
    others = dense - 4 * weights
    assert (binary - others) / (4 * weights) == pytest.approx(1 / 32, rel=0.02)


def test_it_starts_from_new_weights():
    task = toy_task(budget="smoke")
    BNN().compress(None, task)
    assert task.from_scratch and task.meter.train_calls == 1


def test_the_papers_net_has_its_published_size():
    with torch.device("meta"):
        net = base.load("bnn_convnet_cifar10").net(10)
        bnn.arrange(net, False)
    sizes = [layer.weight.numel() for layer in layers_of(net)]
    assert sum(sizes[1:-1]) == 14_008_320 and sizes[0] == 3456 and sizes[-1] == 10_240
    assert sum(p.numel() for p in net.parameters()) == 14_029_726  # with BN behind the outputs


@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_a_bound_that_leaves_nothing(bound):
    with pytest.raises(UserError, match="leaves no weight but zero"):
        trained(TinyPlain, bound=bound)


def test_real_weights_keep_to_their_bound():
    task, seen = toy_task(budget="smoke"), []
    task.fresh = perceptron
    train = task.train

    def watched(model, *args, **options):
        seen.extend(latents_of(model))
        result = train(model, *args, **options)
        seen.extend(latents_of(model))
        return result

    task.train = watched
    BNN(bound=0.3, lr=0.1).compress(None, task)
    assert len(seen) == 4 and all(0.2 < np.abs(w).max() <= np.float32(0.3) for w in seen)
