"""ResNet-56 with option-A shortcuts on CIFAR-10.

Images are normalised with ImageNet's mean and deviation, as the usual public weights of this net expect.
"""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import stored
from baselines.models.resnet_cifar import ResNetCifar

BASELINE = Baseline(
    name="resnet56_cifar10",
    net=partial(ResNetCifar, 56),
    student=partial(ResNetCifar, 20),
    data=partial(stored, "cifar10"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop=4,
    flip=True,
    train={
        "paper": Recipe(epochs=164, lr=0.1, nesterov=False, weight_decay=1e-4, schedule="step"),
        "short": Recipe(epochs=30, lr=0.1, warmup=0.05, sizes=((0.6, 16), (0.85, 24))),
    },
    finetune=Recipe(epochs=2, lr=0.01, weight_decay=1e-4),
    stages=("layer1", "layer2", "layer3"),
    siblings={f"resnet{depth}": partial(ResNetCifar, depth) for depth in (20, 32, 44, 110)},
    published={"top1": 93.26},
    source="HRank (CVPR 2020) Table 2, GAL (CVPR 2019) Table 2",
)
