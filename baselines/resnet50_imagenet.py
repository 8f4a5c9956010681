"""torchvision's ResNet-50 on ImageNet folders, or on a deterministic subset of them (data.classes, data.per_class)."""

from dataclasses import replace

from baselines.base import Recipe
from baselines.data import imagenet
from baselines.resnet50_imagenette import BASELINE as IMAGENETTE

BASELINE = replace(
    IMAGENETTE,
    name="resnet50_imagenet",
    data=imagenet,
    finetune=Recipe(epochs=1, lr=0.001, batch_size=64, weight_decay=1e-4),
    source="HRank (CVPR 2020) Table 6",
)
