"""Quarter-width ConvNet of BinaryConnect and BNN on 5,000 embedded MNIST digits."""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import mnist5k
from baselines.models.convnets import bnn_convnet

BASELINE = Baseline(
    name="bnn_convnet_mnist5k",
    net=partial(bnn_convnet, width=0.25),
    student=partial(bnn_convnet, width=0.125),
    data=partial(mnist5k, side=32, channels=3),
    mean=(0.1307,) * 3,
    std=(0.3081,) * 3,
    crop=2,
    train={"short": Recipe(epochs=10, lr=0.05, batch_size=50, warmup=0.1)},
    finetune=Recipe(epochs=12, lr=0.01, batch_size=50),
    stages=("features.6", "features.13", "features.20"),
    siblings={"half": partial(bnn_convnet, width=0.125)},
    budgets=("smoke", "zero", "short"),
    default_budget="short",
)
