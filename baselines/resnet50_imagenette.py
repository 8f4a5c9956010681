"""torchvision's ResNet-50 with ImageNet weights on Imagenette: 10 ImageNet classes under the 1000-way head."""

from baselines.base import Baseline, Recipe
from baselines.data import imagenette
from baselines.models.imagenet import resnet18, resnet50, resnet50_pretrained

BASELINE = Baseline(
    name="resnet50_imagenette",
    net=resnet50,
    student=resnet18,
    data=imagenette,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    augment="resized",
    train={},
    finetune=Recipe(epochs=1, lr=0.001, batch_size=32, weight_decay=1e-4),
    stages=("layer1", "layer2", "layer3", "layer4"),
    siblings={"resnet18": resnet18},
    published={"top1": 76.15, "top5": 92.87},
    source="HRank (CVPR 2020) Table 6; measured there on all 1000 classes of ImageNet",
    pretrained=resnet50_pretrained,
)
