"""BinaryConnect: Training Deep Neural Networks with binary weights during propagations.

M. Courbariaux, Y. Bengio, J.-P. David. NIPS 2015, https://arxiv.org/abs/1511.00363.

Idea: forward and backward pass see weights of -1 and +1, the update moves real-valued ones: many small noisy steps add
up there, and the noise of the binary ones regularises, as dropout does.

The gradient with respect to the binary weight is applied to the real one, which is clipped to [-1, 1] after every step
(Algorithm 1). *Deterministic*: the sign, sign(0) = +1; *stochastic*: +1 with probability clip((w + 1) / 2, 0, 1), drawn
anew in every pass. All weights of convolutions and linear layers are binary, first and last included; biases and batch
normalisation are real. As in the authors' code real weights start from U(-1, 1), the loss is the square hinge with
batch normalisation behind the outputs too, and the learning rate of a layer's weights is divided by its Glorot
coefficient (ADAM) or by the square of it (SGD, Nesterov).

At test time the deterministic net has its binary weights: one bit each in the file. The stochastic net has the real
weights, which are the means of the binary ones it was trained with: as large as the dense net, and its file says so;
what it shows is the regularisation.

Deviations
- The schedule is the baseline's (cosine), from the paper's learning rate; the paper's decays exponentially, on
  CIFAR-10 from 0.003 to 0.000002. So are batch size (theirs is 50 on CIFAR-10) and augmentation (they have none).
- Images are normalised by channel; the paper's CIFAR-10 has global contrast normalisation and ZCA whitening.
- Batch normalisation has an epsilon of 1e-5; theirs is 1e-4.
- In the stochastic net the statistics of batch normalisation are measured again, with the real weights, on
  ``calibration`` training images (0: never). Theirs are those of training, with binary weights, whose sums are larger
  unless most real weights have come to -1 or +1, which takes hundreds of epochs. The 12 epochs of VGG-16 on MNIST leave
  the stochastic net all but untrained: of held-out images it has 30.0 % right with new statistics, 7.6 % without.
- The accuracy is that of the last epoch, and every training image is trained on; the paper holds 5,000 of CIFAR-10 out
  and takes the epoch that is best on them.
- VGG-small, VGG-16, ResNet-56, ResNet-50 and the LeNets are not in the paper and take the settings of its CIFAR-10
  net, LeNet-5 a higher rate, chosen on held-out images. Shortcuts are as in the dense nets, projections binary.
- ``scratch=false`` is not in the paper: it starts from the trained weights, divided by the Glorot coefficient of their
  layer, and keeps the trained biases and normalisation; the recipes /trained, and those of Imagenette, whose few
  images cannot train a ResNet-50 from new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import quant, search
from methods.kit.coding import Coding

if TYPE_CHECKING:
    from baselines.task import Task

OPTIMIZERS = {"adam": 1.0, "nesterov": 2.0, "sgd": 2.0}  # and the power of the Glorot coefficient that scales its rate
TRAINED = {"scratch": False, "epochs": 30.0}
CODE = "read in the notes on BNN, which quote it"


def variants(net: str, fields: dict[str, float]) -> dict[str, dict]:
    """The recipes of a net: deterministic, stochastic, and deterministic from the trained net."""
    others = {"stochastic": {"stochastic": True}, "trained": TRAINED}
    return {net: fields, **{f"{net}/{name}": {**fields, **more} for name, more in others.items()}}


@dataclass
class BinaryConnect(Method):
    """Trains with binary weights.

    ``stochastic``: random signs, and real-valued weights in the end, with normalisation statistics of ``calibration``
    images. ``optimizer``: "adam", "nesterov" or "sgd"; ``momentum`` is ADAM's beta_1 or Nesterov's, sgd has none.
    ``scale_lr``: rates scaled by the Glorot coefficients. ``scratch``: whether it starts from new weights or from the
    trained net.
    """

    stochastic: bool = False
    optimizer: str = "adam"
    momentum: float = 0.9
    scale_lr: bool = True
    scratch: bool = True
    calibration: int = 1000
    epochs: float = 500.0
    lr: float = 0.003

    paper: ClassVar[Paper] = Paper(
        title="BinaryConnect: Training Deep Neural Networks with binary weights during propagations",
        authors="M. Courbariaux, Y. Bengio, J.-P. David",
        venue="NIPS 2015",
        url="https://arxiv.org/abs/1511.00363",
        code="https://github.com/MatthieuCourbariaux/BinaryConnect",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **variants("bnn_convnet_mnist5k", {}),
        **variants("bnn_convnet_cifar10", {}),
        **variants("vggsmall_mnist5k", {}),
        **variants("vggsmall_cifar10", {}),
        **variants("vgg16_mnist5k", {}),
        **{f"lenet300_{digits}": {} for digits in ("mnist", "mnist5k")},
        **{f"lenet5_{digits}": {"lr": 0.01} for digits in ("mnist", "mnist5k")},
        **variants("vgg16_cifar10", {}),
        **variants("resnet56_cifar10", {}),
        **variants("resnet56_cifar100", {}),
        "resnet50_imagenette": TRAINED,
        "resnet50_imagenette/stochastic": {**TRAINED, "stochastic": True},
    }
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            baseline="bnn_convnet_cifar10", recipe=recipe, label=label, source="Table 2", top1=top1, base_top1=89.36,
            verified=CODE,
        )
        for recipe, label, top1 in (
            ("bnn_convnet_cifar10", "ConvNet, deterministic", 90.10),
            ("bnn_convnet_cifar10/stochastic", "ConvNet, stochastic", 91.73),
        )
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "Binary weights are a regulariser: the net is no worse than with real ones.", "Table 2",
            Select("binaryconnect", ("", "stochastic")), (Select("dense"),), budgets=("short", "paper"), verified=CODE,
        ),
        Claim(
            "Stochastic binary weights are better than deterministic ones.", "Table 2",
            Select("binaryconnect", ("stochastic",)), (Select("binaryconnect", ("",)),), verified=CODE,
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Algorithm 1 for every batch; then the weights of the test phase."""
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"There is no optimizer '{self.optimizer}': choose one of {', '.join(OPTIMIZERS)}.")
        if not (0 < self.momentum < 1 and self.calibration >= 0):
            given = f"momentum={self.momentum}, calibration={self.calibration}"
            raise UserError(f"{given} cannot be used: give a momentum between 0 and 1, and a number of images from 0.")
        net = task.fresh() if self.scratch else model
        for layer in quant.layers(net).values():
            self._start(layer.weight)
        quant.normalise_outputs(net)
        quant.install(quant.layers(net), Binary(self.stochastic))
        task.train(net, self.epochs, loss=hinge, optimizer=self._update_of(net), after_step=quant.clip(net))
        if self.stochastic:
            quant.restore(net)
            search.calibrate(net, task.batches(self.calibration))
        else:
            quant.bake(net, Coding("binary", per_channel=False))
        return net

    @torch.no_grad()
    def _start(self, weight: nn.Parameter) -> None:
        if self.scratch:
            weight.uniform_(-1, 1)
        else:
            weight.div_(quant.glorot(weight)).clamp_(-1, 1)

    def _update_of(self, net: nn.Module) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
        """The optimiser of ``net``: rates of binary weights are scaled (Sec. 2.5), others are not."""
        power = OPTIMIZERS[self.optimizer] if self.scale_lr else 0.0

        def make(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            groups = quant.groups(net, params, self.lr, power)
            if self.optimizer == "adam":
                return torch.optim.Adam(groups, betas=(self.momentum, 0.999))
            nesterov = self.optimizer == "nesterov"
            return torch.optim.SGD(groups, momentum=self.momentum if nesterov else 0.0, nesterov=nesterov)

        return make


class Binary(nn.Module):
    """The binary weights of a latent weight in [-1, 1], with the gradient straight through."""

    def __init__(self, stochastic: bool) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """-1 and +1; in eval mode the latent weight itself where the signs are random."""
        if not self.stochastic:
            return quant.through(latent, quant.signs(latent))  # Eq. 1
        return quant.through(latent, quant.random_signs(latent)) if self.training else latent  # Eq. 2 and 3


def hinge(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The square hinge loss of a batch."""
    return quant.square_hinge(model(x), y)
