"""The ConvNet of BinaryConnect and BNN on CIFAR-10."""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import stored
from baselines.models.convnets import bnn_convnet

BASELINE = Baseline(
    name="bnn_convnet_cifar10",
    net=bnn_convnet,
    student=partial(bnn_convnet, width=0.5),
    data=partial(stored, "cifar10"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop=4,
    flip=True,
    train={
        "paper": Recipe(epochs=160, lr=0.1, nesterov=False, schedule="step"),
        "short": Recipe(epochs=30, lr=0.1, warmup=0.05),
    },
    finetune=Recipe(epochs=2, lr=0.01),
    stages=("features.6", "features.13", "features.20"),
    siblings={"half": partial(bnn_convnet, width=0.5)},
    published={"top1": 89.36},
    source="BinaryConnect (NIPS 2015) Table 2, no regulariser: on ZCA-whitened images, without augmentation",
)
