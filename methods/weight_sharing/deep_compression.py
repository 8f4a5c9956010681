"""Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding.

S. Han, H. Mao, W. J. Dally. ICLR 2016, https://arxiv.org/abs/1510.00149.

Idea: few weights, few distinct values among them, and short words for what is frequent: prune (P), let the weights of a
layer that are similar share one value and train these values (Q), Huffman-code what is then stored (H).

P is the pruning of Han et al. (NIPS 2015): weights below a quality parameter times the deviation of their layer go, the
others are retrained, and again; or a published share of each layer stays (``densities``). Q is k-means of the weights
that are left, layer by layer, from centroids in equal steps between the least and the largest of them; then every
centroid is trained with the sum of the gradients of its weights, which keep their cluster. H is no training. A file
holds, for each weight left, an index into the layer's centroids and the zeros before it, both as numbers (PQ) or as
Huffman words (PQH); biases and batch normalisation are stored as they are. The variants P, PQ and PQH (no name) share
their training: of one dense net, their files differ by the stage alone. Every convolution and linear layer takes part.

Where the printed rates come from: the shares, bits and index bits of Tables 2 and 3 alone give 47.9x (LeNet-300-100)
and 41.4x (LeNet-5), without filler zeros, codebooks and biases. The printed 40x and 39x are totals of 2.49 % and
2.55 %; the printed rates of the layers add up to 2.44 % (41x) and 2.73 % (37x). LeNet-5's total is met with 2.25 %
for ip1, which its bits give without overhead, where its row prints 2.45 %.

Deviations
- Zero, which also fills gaps too long for a distance, is one of the 2^bits values of a layer, as in the authors'
  decoder: 2^bits - 1 are clusters, where the text counts 2^bits.
- Empty clusters are not in the paper: here they stay where they are, may get weights later and are not stored if they
  end empty. Moved to the farthest weights, as in scikit-learn, all would be filled so evenly that words come out longer
  than Tables 2 and 5 print them (those of Table 3 lie between).
- Density-based start: the text says equal steps of the distribution function; taken are their middles.
- Sec. 2 gives distances of 8 bits in convolutions, the tables 5 (AlexNet: 4) everywhere: 5 is the default here.
- Of the pruning paper only thresholds and iterations are used, which this one refers to; not that the two parts of a
  net are retrained in turn, that dropout shrinks, and that neurons without inputs or outputs go.
- Iteration k of K takes k / K of the quality, or density^(k / K); neither paper says how it grows. Five iterations are
  published for VGG-16's pruning, epochs are not: on MNIST, five in each, so that retraining takes 2.3 times as long as
  training, as the pruning paper says of AlexNet.
- Learning rates are not published. Pruning: a tenth of the dense net's (a hundredth for ResNet-50). Centroids: 1e-3, by
  validation on held-out images of the MNIST nets (a tenth of it for ResNet-50). Schedule, momentum and weight decay are
  the baseline's and act on each centroid as on a weight.
- The paper's nets have no batch normalisation; it and the biases are trained together with the centroids.
- A layer below its threshold as a whole keeps its largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import cluster, masks
from methods.kit.coding import Coding, attach

if TYPE_CHECKING:
    from baselines.task import Task

DEFAULT_QUALITY = 1.0
# Shares of weights that stay, Tables 2, 3 and 5; a layer of our VGG-16 has that of its namesake on ImageNet
LENET300 = (0.08, 0.09, 0.26)
LENET5 = (0.66, 0.12, 0.08, 0.19)
LENET = {"epochs": 5.0, "centroid_epochs": 5.0}
VGG16 = (0.58, 0.22, 0.34, 0.36, 0.53, 0.24, 0.42, 0.32, 0.27, 0.34, 0.35, 0.29, 0.36, 0.04, 0.23)
READ = "read in two copies of the paper's full text"


def stages(baseline: str, **fields: object) -> dict[str, dict]:
    """The recipes BASELINE (P, Q and H), BASELINE/PQ and BASELINE/P, the same but for the stages."""
    return {
        baseline: fields,
        f"{baseline}/PQ": {**fields, "huffman": False},
        f"{baseline}/P": {**fields, "quantise": False, "huffman": False},
    }


@dataclass
class DeepCompression(Method):
    """Prunes in ``iterations`` steps, shares weights by k-means (``quantise``), and Huffman-codes (``huffman``).

    ``quality`` (for all layers) counts before ``densities`` (share of each layer's weights that stay, in order of
    definition); with neither the quality is 1. ``start`` of the centroids: "linear", "random" or "density". ``epochs``
    are those of one retraining after pruning, at ``lr``; ``centroid_epochs`` those of the centroids.
    """

    quality: float | None = None
    densities: tuple[float, ...] = ()
    iterations: int = 5
    quantise: bool = True
    conv_bits: int = 8
    fc_bits: int = 5
    start: str = "linear"
    huffman: bool = True
    conv_index_bits: int = 5
    fc_index_bits: int = 5
    epochs: float = 30.0
    lr: float = 0.01
    centroid_epochs: float = 30.0
    centroid_lr: float = 0.001

    paper: ClassVar[Paper] = Paper(
        title="Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman "
        "Coding",
        authors="S. Han, H. Mao, W. J. Dally",
        venue="ICLR 2016",
        url="https://arxiv.org/abs/1510.00149",
        code="https://github.com/songhan/Deep-Compression-AlexNet",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **stages("lenet300_mnist", densities=LENET300, fc_bits=6, lr=0.005, **LENET),
        **stages("lenet5_mnist", densities=LENET5, lr=0.002, **LENET),
        **stages("lenet300_mnist5k", densities=LENET300, fc_bits=6, lr=0.005),
        **stages("lenet5_mnist5k", densities=LENET5, lr=0.005),
        **stages("vgg16_mnist5k", densities=VGG16, lr=0.005),
        **stages("vgg16_cifar10", densities=VGG16),
        **stages("resnet56_cifar10", quality=1.0),
        **stages("resnet56_cifar100", quality=1.0),
        **stages("resnet50_imagenette", quality=1.0, lr=0.001, centroid_lr=0.0001),
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="lenet300_mnist", recipe="lenet300_mnist", label="LeNet-300-100, 40x",
            source="Table 1", top1=98.42, base_top1=98.36, rule="nonzero", verified=READ,
        ),
        Reported(
            baseline="lenet5_mnist", recipe="lenet5_mnist", label="LeNet-5, 39x",
            source="Table 1", top1=99.26, base_top1=99.20, rule="nonzero", verified=READ,
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "Pruned, quantised and Huffman-coded, a net 35 to 49 times smaller loses no accuracy.", "abstract, Table 1",
            Select("deep_compression", ("",)), (Select("dense"),), budgets=("short", "paper"), margin=0.5,
            baselines=("lenet300_mnist", "lenet5_mnist", "lenet300_mnist5k", "lenet5_mnist5k"), verified=READ,
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Prune and retrain, ``iterations`` times; cluster the weights and train the centroids; say what is stored."""
        if self.iterations < 1:
            raise UserError(f"iterations={self.iterations} prunes nothing: give at least 1.")
        weights = masks.weights(model)
        targets, storage = self._targets(list(weights)), self._storage(model, list(weights))
        of, clamped = self.epochs * self.iterations + self.centroid_epochs, []
        for k in range(1, self.iterations + 1):
            for name, weight in weights.items():
                keep, spared = self._kept(name, weight, targets[name], k / self.iterations)
                masks.prune(weights, {name: keep})
                clamped += [name] if spared and name not in clamped else []
            task.train(model, self.epochs, of=of, lr=self.lr, after_step=masks.hold(model))
        task.report(clamped=clamped)
        if self.quantise:
            self._quantise(weights, storage, task)
            after_backward, after_step = cluster.tie(weights.values())
            task.train(
                model, self.centroid_epochs, of=of, lr=self.centroid_lr,
                after_backward=after_backward, after_step=after_step,
            )  # fmt: skip
        for name, coding in storage.items():
            attach(model.get_submodule(name), "weight", coding)
        return model

    def _quantise(self, weights: dict[str, nn.Parameter], storage: dict[str, Coding], task: Task) -> None:
        """Sec. 3.1: the weights of each layer that are left become the centroids of their clusters."""
        random = np.random.default_rng(seed_of(task.seed, "deep_compression"))
        found = {}
        for name, weight in weights.items():
            found[name] = cluster.share(name, weight, 2 ** storage[name].bits - 1, self.start, random)  # Eq. 2
        task.report(values=found)

    def _storage(self, model: nn.Module, names: list[str]) -> dict[str, Coding]:
        """How each layer is stored; UserError where there is no such storage."""
        found = {}
        for name in names:
            conv = isinstance(model.get_submodule(name), nn.Conv2d)
            sparse = self.conv_index_bits if conv else self.fc_index_bits
            kind, bits = ("codebook", self.conv_bits if conv else self.fc_bits) if self.quantise else ("dense", 32)
            found[name] = Coding(kind, bits=bits, sparse=sparse, huffman=self.huffman)
        return found

    def _targets(self, names: list[str]) -> dict[str, float]:
        """The quality or the density that each layer is to reach, whichever is set."""
        values = self.densities
        if self.quality is not None or not self.densities:
            values = (DEFAULT_QUALITY if self.quality is None else self.quality,) * len(names)
        if len(values) != len(names):
            raise UserError(
                f"{len(values)} densities were given, but there are {len(names)} layers with weights "
                f"({', '.join(names)}): give one for each, or a quality."
            )
        return dict(zip(names, values, strict=True))

    def _kept(self, name: str, weight: torch.Tensor, target: float, share: float) -> tuple[torch.Tensor, bool]:
        """Which weights of a layer stay after the share k / K of the iterations, and whether one had to be spared."""
        if self.quality is not None or not self.densities:
            return masks.beyond(name, weight, target * share)
        if not 0 < target <= 1:
            raise UserError(f"The density {target} lies outside (0, 1]: give the share of the weights that stays.")
        keep, clamped = masks.largest({name: weight}, 1 - target**share)
        return keep[name], bool(clamped)
