"""VGG16 with a 512-unit FC on CIFAR-10: the net of the L1, GAL and HRank tables."""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import stored
from baselines.models.vgg import VGG, VGG16

BASELINE = Baseline(
    name="vgg16_cifar10",
    net=lambda classes: VGG(VGG16, classes),
    student=lambda classes: VGG(VGG16, classes, width=0.5),
    data=partial(stored, "cifar10"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop=4,
    flip=True,
    train={
        "paper": Recipe(epochs=160, lr=0.1, nesterov=False, schedule="step"),
        "short": Recipe(epochs=30, lr=0.1, warmup=0.05, sizes=((0.6, 16), (0.85, 24))),
    },
    finetune=Recipe(epochs=2, lr=0.01),
    stages=tuple(f"features.{i}" for i in (6, 13, 23, 33)),
    siblings={"half": lambda classes: VGG(VGG16, classes, width=0.5)},
    published={"top1": 93.96},
    source="GAL (CVPR 2019) Table 1 and HRank (CVPR 2020) Table 1",
)
