"""torchvision's ResNet-50 on ImageNet folders, or on a deterministic subset of them (data.classes, data.per_class)."""

from baselines.base import Baseline, Recipe
from baselines.data import imagenet
from baselines.models.imagenet import resnet18, resnet50, resnet50_pretrained

BASELINE = Baseline(
    name="resnet50_imagenet",
    net=resnet50,
    student=resnet18,
    data=imagenet,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    augment="resized",
    train={},
    finetune=Recipe(epochs=1, lr=0.001, batch_size=64, weight_decay=1e-4),
    stages=("layer1", "layer2", "layer3", "layer4"),
    siblings={"resnet18": resnet18},
    published={"top1": 76.15, "top5": 92.87},
    source="HRank (CVPR 2020) Table 6",
    pretrained=resnet50_pretrained,
)
