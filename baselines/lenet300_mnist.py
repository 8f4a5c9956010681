"""LeNet-300-100 on MNIST: the net of the first tables of Han et al. (NIPS 2015; ICLR 2016).

The papers give no recipe. The rate was chosen on a held-out tenth of the training images: 98.7 % at 0.05, 98.2 % at
0.01, 98.6 % at 0.1; 30 epochs are no better (98.5 %).
"""

from dataclasses import replace
from functools import partial

from baselines.base import BUDGETS, Recipe
from baselines.data import stored
from baselines.lenet300_mnist5k import BASELINE as FEWER_DIGITS

BASELINE = replace(
    FEWER_DIGITS,
    name="lenet300_mnist",
    data=partial(stored, "mnist"),
    crop=0,
    train={"paper": Recipe(epochs=11, lr=0.05, batch_size=64), "short": Recipe(epochs=4, lr=0.05, batch_size=64)},
    finetune=Recipe(epochs=4, lr=0.01, batch_size=64),
    published={"top1": 98.36},
    source="Han et al. (NIPS 2015) Table 1",
    budgets=BUDGETS,
    default_budget="paper",
)
