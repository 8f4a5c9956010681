"""XNOR-Net: scales by brute force, gradients, K and blocks against numpy, the order of layers written out, the file."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant, toy_task
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from baselines.errors import UserError
from baselines.models.convnets import ConvNet, vgg_small
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.binarization import xnor_net
from methods.binarization.xnor_net import XNORNet
from methods.kit.coding import codings, input_bits
from repro import codec

LAYERS, NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d)


def layers_of(net):
    return [m for m in net.modules() if isinstance(m, LAYERS)]


def trained(build, module=xnor_net, budget="smoke", **fields):
    """What the method makes of an untrained net on toy data, its normalisations drawn."""
    torch.manual_seed(0)
    task = toy_task(budget=budget)
    task.fresh = build
    net = module.XNORNet(**fields).compress(None, task)
    for m in net.modules():
        if isinstance(m, NORMS):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return net


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


# -- alpha and its gradient ------------------------------------------------------------------------------------------


def is_the_nearest(module):
    """Oracle: of all 2^10 sign patterns, each with its best scale, none is nearer to a filter of 10 weights."""
    torch.manual_seed(0)
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=10)))
    for shape in ((6, 10), (6, 5, 2, 1)):
        latent = torch.randn(shape)
        found = array(module.Scaled()(latent)).reshape(6, 10)
        for w, ours in zip(array(latent).reshape(6, 10), found, strict=True):
            scales = np.maximum(patterns @ w / 10, 0)
            distances = ((w - scales[:, None] * patterns) ** 2).sum(1)
            best = distances.argmin()
            if not np.allclose(ours, scales[best] * patterns[best], atol=1e-6):
                return False
    return True


def test_alpha_and_signs_are_the_nearest():
    assert is_the_nearest(xnor_net)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("latent.abs().mean(tuple", "latent.abs().amax(tuple"),
        ("latent.abs().mean(tuple", "latent.pow(2).mean(tuple"),
        ("tuple(range(1, latent.dim()))", "tuple(range(latent.dim()))"),
        ("alpha * quant.signs(latent))", "quant.signs(latent))"),
        ("alpha * quant.signs(latent))", "alpha * quant.signs(latent - latent.mean()))"),
    ],
    ids=["largest", "squares", "one scale for all", "no scale", "centred"],
)
def test_the_oracle_catches_another_scale(old, new):
    assert not is_the_nearest(mutant(xnor_net, old, new))


def has_the_written_gradient(module, released=False):
    """Oracle: dC/dW = dC/dW~ (1/n + alpha 1[|W| <= 1]), in the released code times n (1 - 1/c); in float64."""
    torch.manual_seed(0)
    latent = (torch.randn(4, 3, 2, 2) * 1.2).requires_grad_()
    grad = torch.randn_like(latent)
    module.Scaled(released)(latent).backward(grad)
    w, n, c = array(latent), 12, 3
    alpha = np.abs(w).reshape(4, n).sum(1).reshape(4, 1, 1, 1) / n
    wanted = array(grad) * (1 / n + alpha * (np.abs(w) <= 1)) * (n * (1 - 1 / c) if released else 1)
    assert 0.2 < (np.abs(w) <= 1).mean() < 0.8
    return np.allclose(array(latent.grad), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("released", [False, True])
def test_the_gradient_is_the_written_one(released):
    assert has_the_written_gradient(xnor_net, released)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slope = 1 / n + alpha", "slope = alpha"),
        ("alpha * (latent.abs() <= 1)", "alpha"),
        ("alpha * (latent.abs() <= 1)", "(latent.abs() <= 1)"),
        ("latent * slope.detach()", "latent * slope"),
        ("quant.through(latent * slope.detach(), alpha * quant.signs(latent))", "alpha * quant.sign(latent)"),
    ],
    ids=["no 1/n", "never cut", "no alpha", "the slope moves", "the exact gradient of alpha"],
)
def test_the_oracle_catches_another_gradient(old, new):
    assert not has_the_written_gradient(mutant(xnor_net, old, new))


def test_the_oracle_catches_another_released_factor():
    assert not has_the_written_gradient(mutant(xnor_net, "(1 - 1 / latent.shape[1])", "(1 - 1 / n)"), released=True)


# -- K and the binary convolution ------------------------------------------------------------------------------------

CONVS = {
    "3x3": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    "wide": nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(0, 3), bias=False),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False),
    "1x1": nn.Conv2d(3, 4, 1, bias=False),
}


def windows(x, conv):
    """(N, C, H, W) -> (N, C, output rows, output columns, kernel rows, kernel columns), padded with zeros."""
    (down, along), (rows, cols) = conv.padding, conv.kernel_size
    x = np.pad(x, ((0, 0), (0, 0), (down, down), (along, along)))
    step, gap = conv.stride, conv.dilation
    height = (x.shape[2] - gap[0] * (rows - 1) - 1) // step[0] + 1
    width = (x.shape[3] - gap[1] * (cols - 1) - 1) // step[1] + 1
    out = np.zeros((*x.shape[:2], height, width, rows, cols))
    for i, j, r, s in itertools.product(range(height), range(width), range(rows), range(cols)):
        out[:, :, i, j, r, s] = x[:, :, i * step[0] + r * gap[0], j * step[1] + s * gap[1]]
    return out


def block_by_numpy(x, block, scaled):
    """BN with the batch's statistics, signs, convolution, and the mean magnitude under the filter; in float64."""
    axes, shape = ((0,), (1, -1)) if x.ndim == 2 else ((0, 2, 3), (1, -1, 1, 1))
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-4)
    x = x * array(block.norm.weight).reshape(shape) + array(block.norm.bias).reshape(shape)
    signs, weight = np.where(x >= 0, 1.0, -1.0), array(block.layer.weight)
    if x.ndim == 2:
        return signs @ weight.T * (np.abs(x).mean(1, keepdims=True) if scaled else 1)
    out = np.einsum("ncijrs,ocrs->noij", windows(signs, block.layer), weight)
    return out * (windows(np.abs(x), block.layer).mean((1, 4, 5))[:, None] if scaled else 1)


def is_eq_11(module, layer, scaled=True):
    torch.manual_seed(0)
    inputs = layer.weight.shape[1]
    conv = isinstance(layer, nn.Conv2d)
    norm = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(inputs, eps=1e-4)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.3)
    x = torch.randn((5, inputs, 9, 8) if conv else (5, inputs))
    block = module.BinaryBlock(norm, layer, scaled)
    with torch.no_grad():
        layer.weight.copy_(module.Scaled()(layer.weight))
        out = block(x)
    return out.shape[1] == 4 and np.allclose(array(out), block_by_numpy(array(x), block, scaled), atol=1e-4)


@pytest.mark.parametrize("name", [*CONVS, "linear"])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_block_is_eq_11(name, scaled):
    assert is_eq_11(xnor_net, copy.deepcopy(CONVS.get(name) or nn.Linear(7, 4, bias=False)), scaled)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("strided", "x.abs().mean(1, keepdim=True)", "x.mean(1, keepdim=True).abs()"),
        ("3x3", "1 / layer.weight[0, 0].numel())", "1 / layer.weight[0].numel())"),
        ("3x3", "input_scale(x.detach(), self.layer) if", "input_scale(self.sign(x), self.layer) if"),
        ("dilated", "layer.padding, layer.dilation)", "layer.padding)"),
        ("linear", "        return magnitude\n", "        return magnitude.mean(0, keepdim=True)\n"),
        ("3x3", "out = self.layer(self.sign(x))", "out = self.layer(x)"),
        ("3x3", "        x = self.norm(x)\n", ""),
    ],
    ids=["signed", "box", "K of signs", "close", "K of the batch", "real inputs", "no BN"],
)
def test_the_oracle_catches_another_block(name, old, new):
    changed = mutant(xnor_net, old, new)
    try:
        same = is_eq_11(changed, copy.deepcopy(CONVS.get(name) or nn.Linear(7, 4, bias=False)))
    except RuntimeError:  # shapes that do not fit
        same = False
    assert not same


def passes_what_is_written(module):
    """Oracle: the gradient of a linear block's input is the hard tanh's, K a constant: float64 by hand."""
    torch.manual_seed(0)
    layer, x, grad = nn.Linear(7, 4, bias=False), torch.randn(5, 7, requires_grad=True), torch.randn(5, 4)
    module.BinaryBlock(nn.Identity(), layer, True)(x).backward(grad)
    inputs = array(x)
    size = np.abs(inputs).mean(1, keepdims=True)
    wanted = (array(grad) * size) @ array(layer.weight) * (np.abs(inputs) <= 1)
    return np.allclose(array(x.grad), wanted, atol=1e-6)


def test_the_gradient_of_a_blocks_input():
    assert passes_what_is_written(xnor_net)
    assert not passes_what_is_written(
        mutant(xnor_net, "input_scale(x.detach(), self.layer)", "input_scale(x, self.layer)")
    )


def counts_xnors(module):
    """Oracle: a binary layer gives alpha K (2 popcount(xnor) - n), on packed bits."""
    net, seen = trained(lambda: ConvNet((6, 8, "M"), 4, hidden=(9, 7), side=16), module), []
    block = next(m for m in net.modules() if isinstance(m, module.BinaryBlock) and isinstance(m.layer, nn.Linear))
    block.norm.register_forward_hook(lambda m, args, out: seen.append(out.numpy().astype(np.float64)))
    block.register_forward_hook(lambda m, args, out: seen.append(out.numpy()))
    with torch.no_grad():
        net(torch.randn(3, 3, 16, 16))
    x, out = seen
    weight = array(block.layer.weight)
    n = weight.shape[1]
    for i, j in itertools.product(range(3), range(len(weight))):
        xnor = ~(np.packbits(x[i] >= 0) ^ np.packbits(weight[j] > 0))
        count = 2 * int(np.unpackbits(xnor)[:n].sum()) - n
        if not np.isclose(out[i, j], np.abs(weight[j]).mean() * np.abs(x[i]).mean() * count, atol=1e-5):
            return False
    return True


def test_sums_are_scaled_counts_of_xnors():
    assert counts_xnors(xnor_net)
    assert not counts_xnors(mutant(xnor_net, 'quant.bake(net, Coding("binary"))', "quant.restore(net)"))


# -- the order of layers, written out --------------------------------------------------------------------------------


class Parts:
    """The layers and the normalisations of a net, taken in order of definition."""

    def __init__(self, net, scaled=True):
        self.layers, self.norms = iter(layers_of(net)), iter([m for m in net.modules() if isinstance(m, NORMS)])
        self.scaled = scaled

    def layer(self, x):
        layer = next(self.layers)
        if isinstance(layer, nn.Linear):
            return F.linear(x, layer.weight, layer.bias)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    def norm(self, x):
        bn = next(self.norms)
        return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)

    def block(self, x):
        """BN, sign, layer, K; no bias."""
        x = self.norm(x)
        layer = next(self.layers)
        assert layer.bias is None
        signs, size = torch.where(x >= 0, 1.0, -1.0), x.abs().mean(1, keepdim=True)
        if isinstance(layer, nn.Linear):
            return F.linear(signs, layer.weight) * size
        out = F.conv2d(signs, layer.weight, None, layer.stride, layer.padding)
        return out * F.avg_pool2d(size, layer.kernel_size, layer.stride, layer.padding)

    def done(self):
        return next(self.layers, None) is None and next(self.norms, None) is None


def plain_by_hand(parts, x, relu=False):
    """TinyPlain: the first and the last layer real, a pool behind each convolution."""
    x = F.max_pool2d(F.relu(parts.norm(parts.layer(x))), 2)
    x = parts.block(x)
    x = F.max_pool2d(F.relu(x) if relu else x, 2)
    return parts.layer(F.relu(parts.block(x.flatten(1))))


def convnet_by_hand(parts, x):
    """Max-pools before BN in the dense net; BN and ReLU stay behind the last binary layer."""
    x = F.relu(parts.norm(parts.layer(x)))
    x = F.max_pool2d(parts.block(x), 2)
    x = F.max_pool2d(parts.block(x), 2).flatten(1)
    return parts.layer(F.relu(parts.norm(parts.block(x))))


def cifar_by_hand(parts, x):
    """ResNet-8: the stream carries real sums, with nothing behind the additions but the last."""
    x = F.relu(parts.norm(parts.layer(x)))
    for stride in (1, 2, 2):
        out = parts.block(parts.block(x))
        x = x[:, :, ::stride, ::stride]
        missing = out.shape[1] - x.shape[1]
        last = out.shape[1] == 16
        x = (parts.norm(out) if last else out) + F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
    return parts.layer(F.relu(x).mean((2, 3)))


def bottlenecks_by_hand(parts, x):
    """Projections are binary; in the last block the ReLU stays behind each convolution, and BN behind the third."""
    x = F.max_pool2d(F.relu(parts.norm(parts.layer(x))), 3, 2, 1)
    for _ in range(4):
        out = parts.block(parts.block(parts.block(x)))
        x = out + parts.block(x)
    out = F.relu(parts.block(F.relu(parts.block(x))))
    return parts.layer(F.relu(parts.norm(parts.block(out)) + x).mean((2, 3)))


NETS = {
    "plain": (TinyPlain, plain_by_hand, {}),
    "plain with ReLU": (TinyPlain, lambda parts, x: plain_by_hand(parts, x, relu=True), {"relu": True}),
    "convnet": (lambda: ConvNet((6, 6, "M", 8, "M"), 4, hidden=(9,), side=16), convnet_by_hand, {}),
    "residual": (tiny_resnet, cifar_by_hand, {}),
    "bottlenecks": (
        lambda: ResNet(Bottleneck, [1, 1, 1, 2], num_classes=4, width_per_group=16),
        bottlenecks_by_hand,
        {},
    ),
}


def runs_as_written(module, name):
    """Oracle: in training mode (where statistics show the order) the returned net gives what is written out."""
    build, by_hand, fields = NETS[name]
    net = trained(build, module, budget="zero", **fields)
    parts, x = Parts(net), torch.randn(8, 3, 16, 16)
    try:
        with torch.no_grad():
            wanted = by_hand(parts, x)
            return parts.done() and torch.allclose(net.train()(x), wanted, atol=1e-4)
    except (RuntimeError, StopIteration, AssertionError):  # other layers or biases than are written out
        return False


@pytest.mark.parametrize("name", NETS)
def test_the_order_of_layers(name):
    assert runs_as_written(xnor_net, name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("plain", "removed = AFTER[:1] if self.relu else AFTER", "removed = AFTER[:1]"),
        ("plain with ReLU", "AFTER[:1] if self.relu else AFTER", "AFTER"),
        ("plain", "            layer.bias = None\n", ""),
        ("convnet", "behind(net, list(layers)[:-1])", "behind(net, layers)"),
        ("convnet", "skip_first=True, skip_last=True", "skip_last=True"),
        ("convnet", "skip_first=True, skip_last=True", "skip_first=True"),
        ("residual", "if isinstance(module, removed):", "if False:"),
    ],
    ids=["ReLU stays", "ReLU goes", "bias stays", "bare classifier", "binary first", "binary last", "BN twice"],
)
def test_the_oracle_catches_another_order(name, old, new):
    assert not runs_as_written(mutant(xnor_net, old, new), name)


def test_bwn_keeps_the_dense_nets_order():
    """The same module kinds, names and real inputs; only weights are binary."""
    net, dense = trained(tiny_resnet, mode="bwn"), tiny_resnet()
    kinds = [[(n, type(m)) for n, m in one.named_modules()] for one in (net, dense)]
    assert kinds[0] == kinds[1] and all(input_bits(layer) == 32 for layer in layers_of(net))
    assert net.state_dict().keys() == dense.state_dict().keys()


# -- training and what is returned -----------------------------------------------------------------------------------


def watched(**fields):
    """(what every train call got, the real weights after each step) of a run on toy data."""
    torch.manual_seed(0)
    task, asked, seen = toy_task(budget="smoke"), [], []
    task.fresh = TinyPlain
    train = task.train

    def watch(model, epochs, **options):
        held = [m.parametrizations.weight.original for m in layers_of(model) if hasattr(m, "parametrizations")]
        own = options.get("after_step") or (lambda step: None)
        seen.append([array(w).copy() for w in held])

        def after(step):
            own(step)
            seen.append([array(w).copy() for w in held])

        asked.append((epochs, options["optimizer"]([nn.Parameter(torch.zeros(1))])))
        return train(model, epochs, **{**options, "after_step": after})

    task.train = watch
    XNORNet(**fields).compress(None, task)
    return asked, seen


def test_adam_for_xnor_and_momentum_for_bwn():
    ((epochs, adam),), _ = watched(epochs=7, lr=0.01)
    assert (epochs, type(adam).__name__, adam.defaults["lr"], adam.defaults["weight_decay"]) == (7, "Adam", 0.01, 0)
    ((_, sgd),), _ = watched(mode="bwn", lr=0.1, weight_decay=5e-4)
    assert type(sgd).__name__ == "SGD" and (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.9, 5e-4)


def test_the_released_code_centres_and_clips_real_weights():
    for released in (True, False):
        _, seen = watched(released=released, lr=0.5)
        assert len(seen) == 5
        within = all(np.abs(w).max() <= 1 for weights in seen for w in weights)
        centred = all(np.abs(w.mean(1)).max() < 1e-6 for w in seen[0])
        assert within == released and centred == released
        if released:  # clipped after it is centred
            assert any((np.abs(w) == 1).any() for w in seen[-1])


@pytest.mark.parametrize(("mode", "bits"), [("xnor", 1), ("bwn", 32)])
@pytest.mark.parametrize("build", [TinyPlain, tiny_resnet], ids=["plain", "residual"])
def test_two_values_in_every_filter_of_the_layers_between(build, mode, bits):
    net = trained(build, mode=mode)
    first, *between, last = layers_of(net)
    for layer in between:
        for kernel in layer.weight:
            low, high = kernel.unique().tolist()
            assert high == -low > 0
    assert all(layer.weight.unique().numel() > 50 for layer in (first, last))
    assert [input_bits(layer) for layer in (first, *between, last)] == [32, *[bits] * len(between), 32]
    names = {n for n, m in net.named_modules() if m in between}
    assert codings(net).keys() == {f"{n}.weight" for n in names}


def test_a_bit_for_each_binary_weight_in_the_file():
    net = trained(lambda: vgg_small(10, 0.25), budget="zero")
    plain = copy.deepcopy(net)
    binary = [layer for layer in layers_of(plain) if layer.weight[0].unique().numel() == 2]
    count, filters = sum(layer.weight.numel() for layer in binary), sum(len(layer.weight) for layer in binary)
    for layer in binary:
        del layer._coding
        layer.weight.data *= torch.rand_like(layer.weight) + 1
    small, dense = (len(codec.pack(n).data) for n in (net, plain))
    others = dense - 4 * count
    assert (small - others - 4 * filters) / (4 * count) == pytest.approx(1 / 32, rel=0.02)


def test_it_starts_from_new_weights():
    task = toy_task(budget="smoke")
    XNORNet().compress(None, task)
    assert task.from_scratch and task.meter.train_calls == 1


def test_wrong_settings():
    with pytest.raises(UserError, match="no mode 'xnornet': choose xnor"):
        trained(TinyPlain, mode="xnornet")
    with pytest.raises(UserError, match="No layer is left"):
        trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.ReLU(), nn.Linear(9, 4)))
