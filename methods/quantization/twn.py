"""Ternary Weight Networks.

F. Li, B. Liu, X. Wang, B. Zhang, J. Yan. arXiv 2022, https://arxiv.org/abs/1605.04711. First version: F. Li, B. Zhang,
B. Liu, NIPS 2016 Workshop on Efficient Methods for Deep Neural Networks.

Idea: a weight is -alpha, 0 or alpha: those up to a threshold Delta become zero, the others the mean alpha of their
magnitudes, which is the nearest ternary filter for that threshold; the best threshold is close to 0.75 of the mean
magnitude where weights are normally distributed.

Trained from new weights by SGD: forward and backward pass see alpha * T, and the gradient with respect to alpha * T
moves the real-valued weights, which are not clipped. Delta and alpha follow the weights in every step: of every filter
(of every neuron) as in the text and code of 2022, with 0.75 (0.7 and one pair per layer in the texts and the code of
2016: the recipes /layer). The first layer and projections are ternary like any other. The last layer stays real, as in
the code of 2022; in that of 2016 it is ternary as well. ``exact`` takes the threshold that minimises ||W - alpha * T||,
by sorting. Zeros count as removed weights; the file holds 1.6 bits a weight. Equations are numbered as in the text of
2016.

Deviations
- Batch size and schedule (cosine) are the baseline's; the paper divides the rate by 10 at epochs 80 and 120 on CIFAR-10
  (its code every 30 of 150 epochs), and takes batches of 100 on CIFAR-10 and 50 on MNIST.
- The accuracy is that of the last epoch; the authors' code keeps the best epoch on the test set.
- The text trains LeNet-5 with a hinge loss; every net has cross-entropy here, as in the authors' code.
- The paper's VGG-7 has one 1024-unit layer, the ConvNet of BinaryConnect and BNN here two, VGG-small none; Caffe's
  LeNet-5 is narrower than the paper's (32-64-512), without batch normalisation, which they put behind ternary layers.
- VGG-small, VGG-16, ResNet-56 and ResNet-50 are not in the paper and take the settings of CIFAR-10 or MNIST. Nor is
  LeNet-300-100, with a rate chosen on held-out images.
- ``scratch=false``, with which the trained net is ternarised and goes on from there, is not in the paper: the recipes
  /trained, and those of Imagenette, whose few images cannot train a ResNet-50 from new weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import quant
from methods.kit.coding import Coding

if TYPE_CHECKING:
    from baselines.task import Task

MNIST = {"lr": 0.01, "epochs": 30.0}
LAYER = {"factor": 0.7, "per_filter": False, "classifier": True}
TRAINED = {"scratch": False, "lr": 0.01, "epochs": 30.0}
IMAGENETTE = {**TRAINED, "lr": 0.001}
READ = "read in a copy of the paper's full text"


def variants(net: str, fields: dict[str, float]) -> dict[str, dict]:
    """The recipes of a net: as in 2022, as in 2016, with the exact threshold, and from the trained net."""
    others = {"layer": LAYER, "exact": {"exact": True}, "trained": TRAINED}
    return {net: fields, **{f"{net}/{name}": {**fields, **more} for name, more in others.items()}}


@dataclass
class TWN(Method):
    """Trains with ternary weights.

    ``factor``, in [0, 1), of the mean magnitude is the threshold (``exact``: the best threshold instead), for every
    filter or (``per_filter`` false) every layer. ``classifier``: whether the last layer is ternary. ``scratch``:
    whether it starts from new weights or from the trained net.
    """

    factor: float = 0.75
    exact: bool = False
    per_filter: bool = True
    classifier: bool = False
    scratch: bool = True
    epochs: float = 150.0
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    paper: ClassVar[Paper] = Paper(
        title="Ternary Weight Networks",
        authors="F. Li, B. Liu, X. Wang, B. Zhang, J. Yan",
        venue="NIPS EMDNN Workshop 2016, arXiv 2022",
        url="https://arxiv.org/abs/1605.04711",
        code="https://github.com/Thinklab-SJTU/twns",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **{f"lenet5_{digits}": MNIST for digits in ("mnist", "mnist5k")},
        **{f"lenet5_{digits}/layer": {**MNIST, **LAYER} for digits in ("mnist", "mnist5k")},
        **{f"lenet300_{digits}": {**MNIST, "lr": 0.03} for digits in ("mnist", "mnist5k")},
        **variants("bnn_convnet_mnist5k", MNIST),
        **variants("bnn_convnet_cifar10", {}),
        **variants("vggsmall_mnist5k", MNIST),
        **variants("vggsmall_cifar10", {}),
        **variants("vgg16_mnist5k", MNIST),
        **variants("vgg16_cifar10", {}),
        **variants("resnet56_cifar10", {}),
        **variants("resnet56_cifar100", {}),
        "resnet50_imagenette": IMAGENETTE,
        "resnet50_imagenette/layer": {**IMAGENETTE, **LAYER},
        "resnet50_imagenette/exact": {**IMAGENETTE, "exact": True},
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="lenet5_mnist5k", recipe="lenet5_mnist5k", label="LeNet-5 32-64-512 with BN (full MNIST)",
            source="the table of results on MNIST and CIFAR-10", top1=99.35, base_top1=99.41, verified=READ,
        ),
        Reported(
            baseline="bnn_convnet_cifar10", recipe="bnn_convnet_cifar10", label="VGG-7 (one 1024-unit layer fewer)",
            source="the table of results on MNIST and CIFAR-10", top1=92.56, base_top1=92.88, verified=READ,
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "Ternary weights are better than binary ones.", "the tables of results", Select("twn", ("", "layer")),
            (Select("xnor_net", settings={"mode": "bwn"}), Select("binaryconnect", ("", "stochastic")), Select("bnn")),
            verified=READ,
        ),
        Claim(
            "Ternary weights lose little against real ones.", "the tables of results", Select("twn", ("", "layer")),
            (Select("dense"),), margin=0.5, verified=READ,
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Algorithm 1: ternary weights in every pass, real-valued ones in the update; ternary ones at the end."""
        if not 0 <= self.factor < 1:
            raise UserError(f"factor={self.factor} lies outside [0, 1): from 1 on a filter may lose every weight.")
        net = task.fresh() if self.scratch else model
        quant.install(quant.layers(net, skip_last=not self.classifier), Ternary(self))
        task.train(net, self.epochs, optimizer=self._sgd)
        quant.bake(net, Coding("ternary", per_channel=self.per_filter))
        return net

    def _sgd(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, self.lr, self.momentum, weight_decay=self.weight_decay)


class Ternary(nn.Module):
    """The ternary weights of a latent weight, with the gradient straight through."""

    def __init__(self, method: TWN) -> None:
        super().__init__()
        self.method = method

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """alpha * T of a latent weight (out, in, ...)."""
        return quant.through(latent, ternary(latent, self.method.factor, self.method.exact, self.method.per_filter))


@torch.no_grad()
def ternary(weight: torch.Tensor, factor: float, exact: bool = False, per_filter: bool = True) -> torch.Tensor:
    """alpha * T nearest to ``weight`` (out, in, ...) for the threshold, for every slice along the first axis or all."""
    sizes = weight.abs()
    one = tuple(range(1 if per_filter else 0, weight.dim()))  # the axes that one Delta and one alpha are for
    delta = best_threshold(sizes, per_filter) if exact else factor * sizes.mean(one, keepdim=True)
    kept = sizes > delta  # Eq. 3
    alpha = (sizes * kept).sum(one, keepdim=True) / kept.sum(one, keepdim=True).clamp(min=1)  # Eq. 5
    return torch.where(kept, alpha * weight.sign(), 0.0)


def best_threshold(sizes: torch.Tensor, per_filter: bool) -> torch.Tensor:
    """Eq. 6: the Delta of magnitudes (out, in, ...) that maximises (sum of those above it)^2 / their number.

    Of the k largest, k = 1, 2, ..., one set is the best there is; Delta is the next magnitude, 0 behind the last.
    Shaped to be compared with ``sizes``.
    """
    ordered = sizes.reshape(len(sizes) if per_filter else 1, -1).sort(1, descending=True).values
    counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    best = (ordered.cumsum(1, dtype=torch.float64).square() / counts).argmax(1, keepdim=True)
    following = nn.functional.pad(ordered, (0, 1)).gather(1, best + 1)
    return following.view(-1, *[1] * (sizes.dim() - 1))
