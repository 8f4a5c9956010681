"""Quarter-width VGG16 with two fully connected layers of 1,024 units on 5,000 embedded MNIST digits.

``vgg16fc_cifar10`` at a quarter of the width: 56 % of its weights are fully connected there and here.
"""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import mnist5k
from baselines.models.vgg import FC, VGG, VGG16

BASELINE = Baseline(
    name="vgg16fc_mnist5k",
    net=lambda classes: VGG(VGG16, classes, width=0.25, hidden=FC),
    student=lambda classes: VGG(VGG16, classes, width=0.125, hidden=FC),
    data=partial(mnist5k, side=32, channels=3),
    mean=(0.1307,) * 3,
    std=(0.3081,) * 3,
    crop=2,
    train={"short": Recipe(epochs=10, lr=0.05, batch_size=50, warmup=0.1)},
    finetune=Recipe(epochs=12, lr=0.01, batch_size=50),
    stages=tuple(f"features.{i}" for i in (6, 13, 23, 33)),
    siblings={"half": lambda classes: VGG(VGG16, classes, width=0.125, hidden=FC)},
    budgets=("smoke", "zero", "short"),
    default_budget="short",
)
