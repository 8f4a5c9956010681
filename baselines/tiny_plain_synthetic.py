"""A tiny plain net (flatten -> linear) on a toy problem: for the contract checks, not for boards."""

from baselines.base import Baseline, Recipe
from baselines.data import synthetic
from baselines.models.tiny import TinyPlain

BASELINE = Baseline(
    name="tiny_plain_synthetic",
    net=TinyPlain,
    student=lambda classes: TinyPlain(classes, channels=(4, 6), hidden=12),
    data=synthetic,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    crop=1,
    train={"short": Recipe(epochs=2, lr=0.05, batch_size=32), "paper": Recipe(epochs=4, lr=0.05, batch_size=32)},
    finetune=Recipe(epochs=1, lr=0.01, batch_size=32),
    stages=("features.3", "features.7"),
)
