"""A tiny residual net on a toy problem: for the contract checks, not for boards."""

from baselines.base import Baseline, Recipe
from baselines.data import synthetic
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import tiny_resnet

BASELINE = Baseline(
    name="tiny_resnet_synthetic",
    net=tiny_resnet,
    student=lambda classes: ResNetCifar(8, classes, widths=(4, 6, 8)),
    data=synthetic,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    crop=1,
    train={"short": Recipe(epochs=2, lr=0.05, batch_size=32), "paper": Recipe(epochs=4, lr=0.05, batch_size=32)},
    finetune=Recipe(epochs=1, lr=0.01, batch_size=32),
    stages=("layer1", "layer2", "layer3"),
)
