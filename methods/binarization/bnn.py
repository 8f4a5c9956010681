"""Binarized Neural Networks: Training Deep Neural Networks with Weights and Activations Constrained to +1 or -1.

I. Hubara, M. Courbariaux, D. Soudry, R. El-Yaniv, Y. Bengio. NIPS 2016, https://arxiv.org/abs/1602.02830.

Idea: forward and backward pass use the signs of weights and activations, real-valued weights collect the gradients; a
product of two layers' values is then an XNOR, and a sum of them a count of ones.

Algorithm 1, layer by layer: s = a_b W_b, BN, sign. All weights of convolutions and linear layers are signs, those of
the first and the last layer too; the first layer reads the image as it is, and the last one's output goes through BN
only, into the square hinge loss. The sign's gradient is that of the hard tanh. Real weights start from U(-1, 1), are
clipped to [-1, 1] after every step, and learn at the rate over their layer's Glorot coefficient. Biases and BN are
real. ``stochastic``: hidden activations are +1 with probability clip((a + 1) / 2, 0, 1) in training, as in the authors'
Torch7 code; in eval mode they are the signs.

The untrained baseline is rewritten to that order in place: convolution, max-pool, BN, hard tanh where its ReLU was, and
the sign in front of the next layer (the authors' Torch7 modules; for a chain of layers it is Algorithm 1). A max-pool
behind a ReLU moves before the BN, as in the authors' code: the maximum of signs is +1 nearly everywhere. A layer
without BN gets one. *Residual nets*: the stream carries the hard tanh's real values in [-1, 1], and every layer
that reads it takes their signs, the projections and the classifier (behind the average-pool) among them; shortcuts
without parameters add real values. So is the stream in the authors' later PyTorch code, whose block puts BN behind the
addition; ours keeps the dense net's before it. Convolutions pad with zeros, as the authors' do.

Deviations
- The schedule is the baseline's (cosine) from the paper's learning rate; the paper's decays exponentially, from 0.001
  to 0.0000003 on CIFAR-10. So are the batch size (theirs is 50) and the augmentation (they have none), and images are
  normalised by the channels' means and deviations, where the authors scale them to [-1, 1].
- The accuracy is that of the last epoch, and every training image is trained on; the paper holds 5,000 of CIFAR-10 out
  and takes the epoch that is best on them.
- The image counts as 32 bits in the bit-operations; the paper has the first layer read it as 8 planes of one bit.
- ``stochastic`` trains as the rest does; the paper's Torch7 runs also have shift-based BN and AdaMax, batches of 200,
  a rate that is halved every 50 epochs, and whitened images.
- VGG-16, VGG-small, LeNets and residual nets are not in the paper and take the settings of its CIFAR-10 net. On MNIST,
  whose training is short, the rate is higher: chosen on images held out of training.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Method, Paper, Reported
from methods.kit import coding, quant
from methods.kit.coding import Coding

if TYPE_CHECKING:
    from baselines.task import Task

BatchNorm = nn.modules.batchnorm._BatchNorm
EPS = 1e-4  # of batch normalisation, in the authors' code
NETS = ("bnn_convnet", "vggsmall", "vgg16")
MNIST = {"lr": 0.01}
STOCHASTIC = {"stochastic": True}
README = "read in the README of the authors' code and in notes that copy the table"


@dataclass
class BNN(Method):
    """Trains binary weights and activations from new weights.

    ``stochastic``: random hidden activations in training. ``bound``: real weights start and stay in [-bound, bound];
    one beyond 1 would get no gradient there, as that of the sign ends at 1.
    """

    stochastic: bool = False
    bound: float = 1.0
    epochs: float = 500.0
    lr: float = 0.001

    paper: ClassVar[Paper] = Paper(
        title=(
            "Binarized Neural Networks: Training Deep Neural Networks with Weights and Activations Constrained to +1 "
            "or -1"
        ),
        authors="I. Hubara, M. Courbariaux, D. Soudry, R. El-Yaniv, Y. Bengio",
        venue="NIPS 2016",
        url="https://arxiv.org/abs/1602.02830",
        code="https://github.com/MatthieuCourbariaux/BinaryNet",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **{f"{net}_cifar10": {} for net in NETS},
        **{f"{net}_mnist5k": MNIST for net in NETS},
        **{f"{net}_cifar10/stochastic": STOCHASTIC for net in NETS},
        **{f"{net}_mnist5k/stochastic": {**MNIST, **STOCHASTIC} for net in NETS},
        **{f"{net}_{digits}": MNIST for net in ("lenet300", "lenet5") for digits in ("mnist", "mnist5k")},
        "resnet56_cifar10": {},
        "resnet56_cifar100": {},
        "resnet50_imagenette": {},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="bnn_convnet_cifar10", recipe="bnn_convnet_cifar10", label="ConvNet, Theano", source="Table 1",
            top1=88.60, verified=README,
        ),
        Reported(
            baseline="bnn_convnet_cifar10", recipe="bnn_convnet_cifar10/stochastic", label="ConvNet, Torch7",
            source="Table 1", top1=89.85, verified="read in notes that copy the table",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Algorithm 1 for every batch of the training; then the weights are their signs."""
        if self.bound <= 0:
            raise UserError(f"bound={self.bound:g} leaves no weight but zero: give a positive number; the paper has 1.")
        net = task.fresh()
        arrange(net, self.stochastic)
        layers = quant.layers(net)
        for layer in layers.values():
            nn.init.uniform_(layer.weight, -self.bound, self.bound)
        for layer in list(layers.values())[1:]:
            coding.attach_input(layer, 1)
        quant.install(layers, quant.SignActivation())  # Eq. 1; its gradient is that of Eq. 4
        task.train(
            net,
            self.epochs,
            loss=lambda net, x, y: quant.square_hinge(net(x), y),
            optimizer=lambda params: torch.optim.Adam(quant.groups(net, params, self.lr)),
            after_step=quant.clip(net, self.bound),
        )
        quant.bake(net, Coding("binary", per_channel=False))
        return net


def arrange(net: nn.Module, stochastic: bool) -> None:
    """Bring ``net`` into the order of Algorithm 1, in place."""
    quant.normalise_outputs(net)
    normalise_hidden(net)
    pool_first(net)
    for name, module in quant.leaves(net):
        if isinstance(module, nn.ReLU):
            net.set_submodule(name, nn.Hardtanh())  # Eq. 5
        elif isinstance(module, BatchNorm):
            module.eps = EPS
    for name, layer in list(quant.layers(net).items())[1:]:
        net.set_submodule(name, nn.Sequential(quant.SignActivation(stochastic), layer))  # Eq. 2 where stochastic


def normalise_hidden(net: nn.Module) -> None:
    """BN behind every layer but the last that has none before the next layer, in place."""
    parts = quant.leaves(net)
    places = [i for i, (_, module) in enumerate(parts) if isinstance(module, quant.Layer)]
    for start, end in itertools.pairwise(places):
        name, layer = parts[start]
        if not any(isinstance(module, BatchNorm) for _, module in parts[start:end]):
            kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
            norm = kind(len(layer.weight)).to(layer.weight.device)
            net.set_submodule(name, nn.Sequential(layer, norm))


def pool_first(net: nn.Module) -> None:
    """Max-pools that follow on BN and ReLU go before them, in place."""
    parts = quant.leaves(net)
    for (name, norm), (_, between), (place, pool) in zip(parts, parts[1:], parts[2:], strict=False):
        if isinstance(norm, BatchNorm) and isinstance(between, nn.ReLU) and isinstance(pool, nn.MaxPool2d):
            net.set_submodule(name, nn.Sequential(pool, norm))
            net.set_submodule(place, nn.Identity())
