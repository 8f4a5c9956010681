"""The ConvNets of the binarization papers have their published size, counted twice, and their order of layers."""

import pytest
import torch
from oracle import mutant, size_of
from torch import nn

from baselines import base
from baselines.cost import cost
from baselines.models import convnets

EXACT = {  # params, weights of convolutions and linear layers, MACs
    "bnn_convnet_cifar10": (14_029_706, 14_022_016, 616_966_144),
    "vggsmall_cifar10": (4_660_106, 4_656_512, 607_600_640),
}


def weights(net):
    return [m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", EXACT)
def test_params_and_macs_are_the_published_integers(name):
    net = base.load(name).net(10)
    got = cost(net, torch.zeros(1, 3, 32, 32))
    assert (got.params, sum(weights(net)), got.macs) == EXACT[name]
    assert size_of(net, (3, 32, 32)) == (got.params, got.macs)


def test_the_binary_weights_of_bnn_are_all_but_those_of_the_first_and_the_last_layer():
    assert sum(weights(base.load("bnn_convnet_cifar10").net(10))[1:-1]) == 14_008_320


def by_hand(hidden, side=32):
    """(params, MACs) of the quarter-width net, from arithmetic alone."""
    params, macs, into = 0, 0, 3
    for out, place in ((32, side), (32, side), (64, side // 2), (64, side // 2), (128, side // 4), (128, side // 4)):
        params, macs, into = params + out * into * 9 + 2 * out, macs + out * into * 9 * place**2, out
    into *= (side // 8) ** 2
    for out in hidden:
        params, macs, into = params + out * into + 2 * out, macs + out * into, out
    return params + 10 * into + 10, macs + 10 * into


@pytest.mark.parametrize("name, hidden", [("bnn_convnet_mnist5k", (256, 256)), ("vggsmall_mnist5k", ())])
def test_a_quarter_of_the_width(name, hidden):
    assert size_of(base.load(name).net(10), (3, 32, 32)) == by_hand(hidden)


def test_a_changed_line_is_caught():
    wrong = mutant(convnets, "layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=False))",
                   "layers.append(nn.Conv2d(channels, out, 3, padding=1))")  # fmt: skip
    assert size_of(wrong.vgg_small(10, 0.25), (3, 32, 32))[0] != by_hand(())[0]


def test_the_maximum_is_taken_before_batch_normalisation():
    kinds = [type(m).__name__ for m in convnets.ConvNet((8, 8, "M"), hidden=(6,)).features]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]


@pytest.mark.parametrize("name", [*EXACT, "bnn_convnet_mnist5k", "vggsmall_mnist5k"])
def test_every_stage_ends_with_a_halved_map(name):
    b = base.load(name)
    net, sides = b.student(10).eval(), []
    for stage in b.stages:
        net.get_submodule(stage).register_forward_hook(
            lambda module, _, out: sides.append((type(module), out.shape[2]))
        )
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert sides == [(nn.ReLU, 16), (nn.ReLU, 8), (nn.ReLU, 4)]
