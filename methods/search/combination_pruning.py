"""Combination pruning method based on reinforcement learning and 3-sigma criterion (in Chinese).

S. Xu, Y. Li, Q. Yuan. Journal of Zhejiang University (Engineering Science) 2023, 57(3): 486-494,
https://doi.org/10.3785/j.issn.1008-973X.2023.03.006.

Idea: convolutions and fully connected layers ask for different criteria. Reinforcement learning finds how sparse each
convolution may become at a given sparsity of all of them; a threshold of mean plus three standard deviations, beyond
which 0.27 % of a normal distribution lie, leaves the few large weights of each fully connected layer.

Here: DDPG takes one step per convolution; its action is the share of weights that stays, those of the largest
magnitude; the reward is minus the error of the pruned net before any retraining; the best episode counts. Then the
fully connected layers are thresholded, and the net is retrained with the zeros held. ``mode`` "ddpg" does the first
alone, "three_sigma" the second (on all layers, or with ``whole=false`` on the fully connected ones), as the rows of the
paper's tables do. Every convolution and linear layer is pruned, the first and the last as well; biases and batch
normalisation are not. Removed weights stay in the net as zeros.

Deviations
- Mean and deviation are those of the magnitudes; the text at hand says "of the weights" and removes |w| < T. Signed
  weights have a mean near zero, on which T would hardly depend, and magnitudes fit the tables better. The whole net
  loses 99.05 % there; a normal layer loses 99.08 % by magnitudes, 99.73 % by signed weights (a trained VGG-16 98.9 and
  99.5 %). Of ResNet56's 6,400 fully connected weights, 59 or 17 stay then; 35.89 % of 100 classes, as reached there,
  cannot do with 17. ``magnitudes=false`` takes the signed ones.
- The agent is not described in the text at hand: it has AMC's settings, episodes (300 behind 100 random ones) and
  state; the shares reduced and to come in it are those of weights.
- Every episode removes exactly the given share of the convolutions' weights: an action is limited from both sides, so
  that the layers behind can still make up the rest. AMC limits the size from above only.
- Batch normalisation is calibrated on a few training images, without labels, before a pruned net is judged, and once
  more before the retraining.
- An action leaves at least ``lowest`` = 5 % of a layer, where the paper's (0, 1] may leave nothing; with less, 40
  episodes found worse nets on held-out digits.
- The sweep behind the sparsity, 0.8 for both ResNets, is not run again. VGG16's is not in the text at hand: 0.6423 is
  what makes up the printed 28.08 % of all parameters, in the net that ``vgg16fc_cifar10`` infers.
- ResNet56's 70.1 % of the parameters are not the 80 % that the text names for it: a recipe does each. Whether its
  thresholds (Table 6) come on top of the search is not said: here they prune the fully connected layer alone.
- Of the retraining the paper gives the epochs only, as many as the dense training had. The learning rates are chosen on
  held-out digits (dense 98.4 %; 12 epochs): the combination came back to 98.8 % from 0.05, the dense net's, and to 84.0
  from 0.01; the net thresholded as a whole to 60.8 % at best, from 0.1. The ResNets start at 0.01. Schedule (cosine)
  and dropout are the baseline's.
- A layer below its threshold as a whole keeps its largest weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from baselines.errors import UserError
from baselines.task import seed_of
from methods.base import Claim, Method, Paper, Reported, Select
from methods.kit import masks, search

if TYPE_CHECKING:
    from baselines.task import Task
    from methods.kit.masks import Keep

MODES = ("combination", "ddpg", "three_sigma")
VGG16_SPARSITY = 0.6423  # 28.08 % of 33,646,666 parameters, of 14,710,464 convolution weights
RESNET56_70 = 0.7097  # 70.1 % of 858,868 parameters, of 848,304 convolution weights
DDPG, WHOLE = {"mode": "ddpg"}, {"mode": "three_sigma"}
RESNET50 = {"epochs": 90.0, "lr": 0.01, "calibration": 100}
READ = "read in the paper's text"


def rows(net: str) -> dict[str, dict]:
    """The recipes of Table 4: the combination, the search alone, the threshold on the whole net."""
    searched = {"sparsity": VGG16_SPARSITY}
    return {net: searched, f"{net}/ddpg": {**DDPG, **searched}, f"{net}/three_sigma": {**WHOLE, "lr": 0.1}}


def thresholds(net: str, **fields: float) -> dict[str, dict]:
    """The recipes of Table 6: the fully connected layer thresholded at mu + sigma, 2 sigma, 3 sigma."""
    return {f"{net}/{k}sigma": {**WHOLE, "whole": False, "sigmas": float(k), **fields} for k in (1, 2, 3)}


@dataclass
class CombinationPruning(Method):
    """Prunes convolutions as sparsely as DDPG finds best, fully connected layers by mean + ``sigmas`` deviations.

    ``sparsity``: share of all weights of convolutions to remove; ``lowest``: share of each that stays in any case.
    ``warmup`` episodes of search are random, ``episodes`` follow them; batch normalisation is calibrated on
    ``calibration`` images. ``whole``: the threshold of mode "three_sigma" is for convolutions as well. ``magnitudes``:
    mean and deviation are those of |w|, else of w.
    """

    mode: str = "combination"
    sparsity: float = 0.8
    lowest: float = 0.05
    warmup: int = 100
    episodes: int = 300
    calibration: int = 500
    sigmas: float = 3.0
    whole: bool = True
    magnitudes: bool = True
    epochs: float = 160.0
    lr: float = 0.05

    paper: ClassVar[Paper] = Paper(
        title="Combination pruning method based on reinforcement learning and 3-sigma criterion",
        authors="S. Xu, Y. Li, Q. Yuan",
        venue="Journal of Zhejiang University (Engineering Science) 2023, 57(3): 486-494",
        url="https://doi.org/10.3785/j.issn.1008-973X.2023.03.006",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **rows("vgg16fc_cifar10"),
        **rows("vgg16fc_mnist5k"),
        **rows("vgg16_cifar10"),
        **rows("vgg16_mnist5k"),
        "resnet56_cifar10": {**DDPG, "epochs": 164.0, "lr": 0.01},
        "resnet56_cifar100": {**DDPG, "epochs": 240.0, "lr": 0.01},
        "resnet56_cifar100/params70": {**DDPG, "sparsity": RESNET56_70, "epochs": 240.0, "lr": 0.01},
        **thresholds("resnet56_cifar100", epochs=240.0),
        "resnet50_imagenette": RESNET50,
        "resnet50_imagenet": RESNET50,
    }
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            baseline="vgg16fc_cifar10", recipe="vgg16fc_cifar10/ddpg", label="DDPG, convolutions only",
            source="Table 4", delta=-0.75, params_reduction=28.08, rule="nonzero", verified=READ,
        ),
        Reported(
            baseline="vgg16fc_cifar10", recipe="vgg16fc_cifar10/three_sigma", label="3-sigma threshold, whole net",
            source="Table 4", delta=-6.11, params_reduction=99.05, rule="nonzero", verified=READ,
        ),
        Reported(
            baseline="vgg16fc_cifar10", recipe="vgg16fc_cifar10", label="combination",
            source="Table 4", delta=-1.55, params_reduction=83.33, rule="nonzero",
            verified=f"{READ} and in its abstract",
        ),
        Reported(
            baseline="resnet56_cifar100", recipe="resnet56_cifar100/params70", label="DDPG, convolutions only",
            source="text and abstract", top1=69.52, base_top1=71.5, params_reduction=70.1, rule="nonzero",
            verified=f"{READ}; the abstract repeats the 70.1 % and the 1.98 points lost",
        ),
        Reported(
            baseline="resnet56_cifar100", recipe="resnet56_cifar100", label="DDPG, 80 % sparsity", source="Fig. 5",
            top1=69.42, base_top1=71.5, rule="nonzero",
            verified=f"computed from its lead over weight sum and APoZ, {READ}",
        ),
        Reported(
            baseline="resnet56_cifar100", recipe="resnet56_cifar100/3sigma", label="mu + 3 sigma", source="Table 6",
            top1=35.89, base_top1=71.5, rule="nonzero", verified=f"computed from the 35.61 points lost, {READ}",
        ),
        Reported(
            baseline="resnet50_imagenet", recipe="resnet50_imagenet", label="combination", source="text and abstract",
            top1=74.16, top5=91.96, base_top1=76.02, base_top5=92.94, params_reduction=80.9, rule="nonzero",
            verified=f"{READ}; the abstract repeats the 80.9 % and the 1.86 points lost",
        ),
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "The combination of both criteria is better than the threshold on the whole net.", "Table 4",
            Select("combination_pruning", ("",), {"mode": "combination"}),
            (Select("combination_pruning", ("three_sigma",)),), budgets=("short", "paper"), verified=READ,
        ),
        Claim(
            "At 80 % sparsity the searched net is better than without the filters of least weight sum or most APoZ.",
            "Fig. 5", Select("combination_pruning", ("",), {"mode": "ddpg", "sparsity": 0.8}),
            (Select("l1_filter", ("weight_sum",)), Select("apoz", ("survey",))), baselines=("resnet56_cifar100",),
            verified=READ,
        ),
    )  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Search and prune the convolutions, threshold the fully connected layers, retrain with the zeros held."""
        if self.mode not in MODES:
            raise UserError(f"There is no mode '{self.mode}': choose one of {', '.join(MODES)}.")
        weights = masks.weights(model)
        convs = {n: m for n, m in model.named_modules() if n in weights and isinstance(m, nn.Conv2d)}
        linear = {name: weight for name, weight in weights.items() if name not in convs}
        keep: Keep = {}
        if self.mode != "three_sigma":
            keep |= self._search(model, task, convs)
        if self.mode != "ddpg":
            keep |= self._thresholds(weights if self.mode == "three_sigma" and self.whole else linear, task)
        masks.prune(weights, keep)
        search.calibrate(model, task.batches(self.calibration))
        return task.train(model, self.epochs, lr=self.lr, after_step=masks.hold(model))

    def _search(self, model: nn.Module, task: Task, convs: Mapping[str, nn.Conv2d]) -> Keep:
        """The weights to keep in every convolution by the best episode."""
        if not convs:
            raise UserError("This network has no convolution to search: take mode=three_sigma.")
        if not 0 < self.sparsity < 1:
            raise UserError(f"The sparsity {self.sparsity} lies outside (0, 1): give the share of weights to remove.")
        sizes = np.array([conv.weight.numel() for conv in convs.values()])
        goal = float(sizes.sum()) * (1 - self.sparsity)
        counts = search.Counts(sizes, lambda left: float(left.sum()), goal, self.lowest)
        orders = {name: masks.magnitudes(name, c.weight).flatten().argsort(stable=True) for name, c in convs.items()}

        def kept(actions: search.Actions) -> Keep:
            found = {}
            for (name, order), count in zip(orders.items(), counts.of(actions), strict=True):
                stays = torch.ones(len(order), dtype=torch.bool)
                stays[order[: len(order) - count]] = False  # the smallest |w| go
                found[name] = stays.view(convs[name].weight.shape)
            return found

        def reward(actions: search.Actions) -> float:
            pruned = copy.deepcopy(model)
            masks.prune(masks.weights(pruned), kept(actions))
            search.calibrate(pruned, task.batches(self.calibration))
            return task.validate(pruned) / 100 - 1  # minus the error

        states = search.describe(model, task.example, list(convs))
        warmup, episodes = task.rounds(self.warmup), task.rounds(self.episodes)
        space = search.Space(states, sizes, counts.bounds, counts.snap)
        found = search.search(space, reward, warmup + episodes, warmup, seed_of(task.seed, "search"))
        task.report(**found.facts(list(convs), counts))
        return kept(found.actions)

    def _thresholds(self, weights: Mapping[str, torch.Tensor], task: Task) -> Keep:
        """The weights to keep in every layer, those from its threshold on."""
        if not weights and self.mode == "three_sigma":
            raise UserError("This network has no linear layer for a threshold: take whole=true.")
        if self.sigmas < 0:
            raise UserError(f"sigmas={self.sigmas} is no threshold: give a number from 0 on; the paper takes 1 to 3.")
        limits, keep, clamped = {}, {}, []
        for name, weight in weights.items():
            size = masks.magnitudes(name, weight)
            limits[name] = threshold(weight, self.sigmas, self.magnitudes)
            keep[name] = size >= limits[name]  # |w| < T go
            if not keep[name].any():
                clamped.append(name)
                keep[name].view(-1)[size.argmax()] = True
        gone = {name: 1 - float(kept.double().mean()) for name, kept in keep.items()}
        task.report(thresholds=limits, sparsities=gone, clamped=clamped)
        return keep


def threshold(weight: torch.Tensor, sigmas: float, of_magnitudes: bool) -> float:
    """T = mu + sigmas * sigma, mean and deviation (by n) of the magnitudes, or else of the weights themselves."""
    values = weight.detach().cpu().double()
    values = values.abs() if of_magnitudes else values
    return float(values.mean() + sigmas * values.std(unbiased=False))
