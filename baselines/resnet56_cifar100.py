"""ResNet-56 with option-A shortcuts on CIFAR-100."""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import stored
from baselines.models.resnet_cifar import ResNetCifar

BASELINE = Baseline(
    name="resnet56_cifar100",
    net=partial(ResNetCifar, 56),
    student=partial(ResNetCifar, 20),
    data=partial(stored, "cifar100"),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    crop=4,
    flip=True,
    train={
        "paper": Recipe(
            epochs=240,
            lr=0.05,
            batch_size=64,
            nesterov=False,
            schedule="step",
            milestones=(150 / 240, 180 / 240, 210 / 240),
        ),
        "short": Recipe(epochs=30, lr=0.1, warmup=0.05, sizes=((0.6, 16), (0.85, 24))),
    },
    finetune=Recipe(epochs=2, lr=0.01),
    stages=("layer1", "layer2", "layer3"),
    siblings={f"resnet{depth}": partial(ResNetCifar, depth) for depth in (20, 32, 44, 110)},
    published={"top1": 71.5},
    source="Xu, Li and Yuan (J. Zhejiang Univ. 2023, 57(3): 486-494), ResNet56 baseline",
)
