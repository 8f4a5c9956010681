"""Learning Efficient Convolutional Networks through Network Slimming.

Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang. ICCV 2017, https://arxiv.org/abs/1708.06519.

Idea: the scale that batch normalisation gives a channel can switch it off; an L1 penalty on the scales during training
drives those of unimportant channels towards 0, and one threshold over all scales of the net tells which channels go.

A net is trained with the penalty, loses the channels with the smallest scales for good, and is fine-tuned (``passes``
times). ``neurons``: hidden linear layers with batch normalisation lose neurons in the same way, as VGG-A does in the
paper; its nets for CIFAR have none. The penalty's subgradient is penalty * sign(scale), 0 at 0.

Two things decide how sparse the scales get. The penalty moves a scale by penalty * (the sum of the learning rates of
all steps) at most: with 1e-4 and 0.1 that takes the paper's 160 epochs. Recipes that continue the trained net at a
tenth of the learning rate have ten times the penalty, those for a hundredth of the steps a hundred times; at a budget
below the paper's the other recipes rank scales that the penalty has hardly touched. And weight decay acts on the
scales too, as in the authors' code (a habit elsewhere is to exempt batch normalisation, which gives other results): at
the baseline's 5e-4 it pulls a scale of 0.2 as hard as a penalty of 1e-4 does, large scales more than small ones.

On residual nets the channels inside the blocks (and those of ResNet-50's stem) are penalised and removed, the stream
that the blocks add to is left alone: the paper's ResNet-164 normalises at the start of a block, behind the addition,
and selects there which channels the block reads; the nets here normalise before the addition, so that no scale belongs
to what one block reads.

Deviations
- The nets are VGG-16 and ResNets with normalisation behind each convolution; the paper's are VGG-19, ResNet-164 and
  DenseNet-40 on CIFAR. Channels of a residual stream stay (above).
- The recipes for CIFAR with the paper's settings train new weights with all scales at 0.5, as the paper does
  (``scratch``); the others continue the trained net, so that they start where the methods beside them do.
- Batch size, weight decay and schedule (cosine) are the baseline's; the paper has batches of 64, a weight decay of 1e-4
  and divides the learning rate by 10 after 50 % and 75 % of the epochs.
- The hidden linear layer of VGG-16 stays whole, unless ``neurons`` is set.
- int(ratio * channels) channels go; the authors' code takes the channel at the threshold as well. A layer that would
  lose all of them keeps the one with the largest scale.
- Whether later passes start from the fine-tuned weights or from new ones is not published; they start from the former.
- ``macs_reduction`` is not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import surgery

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.surgery import Selection

FIRST_SCALE = 0.5
VGG = {"penalty": 1e-4}  # the published penalties, for training at 0.1 from new weights
RESNET = {"penalty": 1e-5}
VGG_ON = {"scratch": False, "penalty": 1e-3, "lr": 0.01}  # the trained net continued: a tenth of lr, ten times that
RESNET_ON = {"scratch": False, "penalty": 1e-4, "lr": 0.01}
MNIST_ON = {"scratch": False, "penalty": 1e-2, "lr": 0.01}
IMAGENETTE_ON = {"scratch": False, "penalty": 1e-3, "lr": 0.001, "sparse_epochs": 60.0, "epochs": 5.0}  # as ImageNet
MFMI = "Filter Pruning via Measuring Feature Map Information (Sensors 21(19), 2021): their run of this method"
README = "read in that paper's README; its rate is not published, so the recipe saves the printed share of MACs"


def points(net: str, fields: dict[str, float]) -> dict[str, dict]:
    """Recipes that save 30, 50 and 70 % of the MACs of a net."""
    return {f"{net}/macs{share}": {"macs_reduction": share / 100, **fields} for share in (30, 50, 70)}


@dataclass
class NetworkSlimming(Method):
    """Trains with an L1 penalty on the BN scales, removes the channels with the smallest ones, fine-tunes.

    ``macs_reduction`` (share of the MACs to save) or else ``ratio`` (share of all channels to remove, in each pass)
    sets the threshold. No pass takes more than the share ``limit`` of a layer's channels. ``sparse_epochs`` of training
    with the penalty and ``epochs`` of fine-tuning are those of one pass, each from the learning rate ``lr`` down.
    ``neurons``: those of hidden linear layers are channels as well; ``scratch``: from new weights.
    """

    ratio: float = 0.7
    macs_reduction: float | None = None
    penalty: float = 1e-4
    neurons: bool = False
    scratch: bool = True
    passes: int = 1
    limit: float = 1.0
    sparse_epochs: float = 160.0
    epochs: float = 160.0
    lr: float = 0.1

    paper: ClassVar[Paper] = Paper(
        title="Learning Efficient Convolutional Networks through Network Slimming",
        authors="Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang",
        venue="ICCV 2017",
        url="https://arxiv.org/abs/1708.06519",
        code="https://github.com/Eric-mingjie/network-slimming",
    )
    recipes: ClassVar[dict[str, dict]] = {
        "vgg16_mnist5k": MNIST_ON,
        **points("vgg16_mnist5k", MNIST_ON),
        "vgg16_cifar10": {"ratio": 0.7, **VGG},
        "vgg16_cifar10/multipass": {"ratio": 0.5, "limit": 0.5, "passes": 5, **VGG},
        "vgg16_cifar10/mfmi": {"macs_reduction": 0.364, **VGG},
        **points("vgg16_cifar10", VGG_ON),
        "resnet56_cifar10": {"ratio": 0.4, **RESNET},
        "resnet56_cifar10/mfmi": {"macs_reduction": 0.487, **RESNET},
        **points("resnet56_cifar10", RESNET_ON),
        "resnet56_cifar100": {"ratio": 0.4, **RESNET},
        "resnet56_cifar100/mfmi": {"macs_reduction": 0.5, **RESNET},
        **points("resnet56_cifar100", RESNET_ON),
        "resnet50_imagenette": {"ratio": 0.5, **IMAGENETTE_ON},
        **points("resnet50_imagenette", IMAGENETTE_ON),
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="vgg16_cifar10", recipe="vgg16_cifar10/mfmi", label="VGG-16 (one linear layer)", source=MFMI,
            top1=93.69, base_top1=93.90, params=3.45e6, macs=1.9966e8, verified=README,
        ),
        Reported(
            baseline="resnet56_cifar10", recipe="resnet56_cifar10/mfmi", label="ResNet-56", source=MFMI, top1=92.94,
            base_top1=93.22, params=4.1e5, macs=6.494e7, verified=README,
        ),
        Reported(
            baseline="resnet56_cifar100", recipe="resnet56_cifar100/mfmi", label="ResNet-56", source=MFMI, top1=70.51,
            base_top1=71.77, params=6.0e5, macs=6.282e7, verified=f"{README} (half: the dense MACs are misprinted)",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "Without most of its channels the fine-tuned net is no worse than the dense one.", "Table 1",
            Select("network_slimming", ("",)), (Select("dense"),), budgets=("short", "paper"), margin=0.5,
            verified="read in the paper's full text",
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Train with the penalty, prune, fine-tune."""
        self._check()
        if self.scratch:
            model = with_scales(task.fresh(), FIRST_SCALE)
        of = self.passes * (self.sparse_epochs + self.epochs)
        clamped: set[str] = set()
        for _ in range(self.passes):
            scales = scales_of(model, task.example, self.neurons)
            shrink = penalise(scales.values(), self.penalty)
            task.train(model, self.sparse_epochs, of=of, lr=self.lr, after_backward=shrink)
            keep, full = self._choose(model, task, scales)
            clamped.update(full)
            model = surgery.remove(model, task.example, keep)
            task.train(model, self.epochs, of=of, lr=self.lr)
        task.report(clamped=sorted(clamped), kept={name: int(kept.sum()) for name, kept in keep.items()})
        return model

    def _check(self) -> None:
        """UserError for a field that makes no sense."""
        if self.passes < 1:
            raise UserError(f"passes={self.passes} prunes nothing: give at least 1.")
        if not 0 < self.limit <= 1:
            raise UserError(f"limit={self.limit} lies outside (0, 1]: give the largest share that a layer may lose.")
        if not self.penalty >= 0:
            raise UserError(f"penalty={self.penalty} makes scales larger: give a number from 0 on, such as 1e-4.")

    def _choose(self, model: nn.Module, task: Task, scales: Mapping[str, torch.Tensor]) -> Selection:
        """The channels to keep: those above one threshold for the whole net."""
        sizes = {name: scale.detach().abs() for name, scale in scales.items()}
        if self.macs_reduction is not None:
            return surgery.macs_budget(model, task.example, sizes, self.macs_reduction, self._above)
        return self._above(sizes, self.ratio)

    def _above(self, sizes: Mapping[str, torch.Tensor], ratio: float) -> Selection:
        """Sec. 4.5: no layer loses more than the share ``limit`` of its channels."""
        keep, clamped = surgery.select_global(sizes, ratio, normalise=False)
        for name, size in sizes.items():
            least = len(size) - int(len(size) * self.limit)
            if keep[name].sum() < least:
                keep[name][size.cpu().argsort(descending=True, stable=True)[:least]] = True
                clamped.append(name)
        return keep, clamped


def scales_of(model: nn.Module, example: torch.Tensor, neurons: bool) -> dict[str, nn.Parameter]:
    """The BN scale of every layer that can lose channels by itself; UserError when there is none."""
    layers = surgery.layers(model, example, linear=neurons)
    found = {n: model.get_submodule(layer.bn).weight for n, layer in layers.items() if layer.bn and not layer.coupled}
    if not found:
        raise UserError("No layer of this network is free to lose channels and has batch normalisation: slimming needs "
                        "its scales; choose another baseline.")  # fmt: skip
    return found


def with_scales(model: nn.Module, value: float) -> nn.Module:
    """``model`` with every BN scale set to ``value``."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, value)
    return model


def penalise(scales: Iterable[nn.Parameter], penalty: float) -> Callable[[int], None]:
    """An ``after_backward`` that adds the subgradient of penalty * sum |scale|."""
    scales = list(scales)

    def after_backward(step: int) -> None:
        for scale in scales:
            scale.grad.add_(scale.detach().sign(), alpha=penalty)  # Eq. 1

    return after_backward
