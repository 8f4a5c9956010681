"""LeNet-300-100 on 5,000 embedded MNIST digits."""

from functools import partial

from torch import nn

from baselines.base import Baseline, Recipe
from baselines.data import mnist5k
from baselines.models.lenet import lenet_300_100

BASELINE = Baseline(
    name="lenet300_mnist5k",
    net=lenet_300_100,
    student=lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, classes)),
    data=partial(mnist5k, side=28, channels=1),
    mean=(0.1307,),
    std=(0.3081,),
    crop=2,
    train={"short": Recipe(epochs=10, lr=0.05, batch_size=50)},
    finetune=Recipe(epochs=12, lr=0.01, batch_size=50),
    stages=("ip1", "ip2", "ip3"),
    budgets=("smoke", "zero", "short"),
    default_budget="short",
    source="Han et al. (NIPS 2015) print 98.36 % on the full MNIST, which is another data set",
)
