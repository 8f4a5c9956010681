"""Caffe's LeNet-5 (20-50-500) on 5,000 embedded MNIST digits."""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import mnist5k
from baselines.models.lenet import lenet5, lenet_300_100

BASELINE = Baseline(
    name="lenet5_mnist5k",
    net=lenet5,
    student=lenet_300_100,
    data=partial(mnist5k, side=28, channels=1),
    mean=(0.1307,),
    std=(0.3081,),
    crop=2,
    train={"short": Recipe(epochs=10, lr=0.05, batch_size=50)},
    finetune=Recipe(epochs=12, lr=0.01, batch_size=50),
    stages=("conv1", "conv2", "ip1", "ip2"),
    siblings={"lenet300": lenet_300_100},
    budgets=("smoke", "zero", "short"),
    default_budget="short",
    source="Han et al. (NIPS 2015) print 99.20 % on the full MNIST, which is another data set",
)
