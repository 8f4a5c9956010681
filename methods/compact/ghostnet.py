"""GhostNet: More Features from Cheap Operations.

K. Han, Y. Wang, Q. Tian, J. Guo, C. Xu, C. Xu. CVPR 2020, https://arxiv.org/abs/1911.11907.

Idea: many feature maps of a layer resemble others; so an ordinary convolution gives only one in s of them, and a cheap
depthwise convolution makes the rest, their ghosts, from these.

``net`` "baseline": a Ghost module stands for every ungrouped convolution of the baseline's net, together with the BN
and the ReLU behind it, and has BN, and a ReLU where there was one, behind both of its parts, as in the authors' code of
GhostNet. Where s does not divide n, it makes s * ceil(n / s) maps and drops the last. s = 1 is an ordinary convolution.
``net`` "ghostnet": GhostNet itself, at any width; nothing of it is adapted to small images.

Deviations
- The first convolution is replaced too (``first``), except in ResNet-50. The authors write that it is not on CIFAR, but
  with it the printed MACs of all seven VGG-16 nets are met, digits cut off, without it those of four.
- The code of the CIFAR nets is not published. That of Ghost-ResNet-50 has no BN behind its Ghost modules; here BN
  stands where ResNet-50 has it. The paper prints 13.0M and 6.5M parameters for it, which neither has.
- The baseline's VGG-16 has BN behind the 512-unit layer: 1,024 parameters more than the recounted 7,650,474.
- On CIFAR there are the 164 epochs and the rate of the ResNet paper, to which the authors refer, on MNIST the rate of
  the dense net, on ImageNet 0.4 for batches of 1024, scaled to the baseline's, and 90 epochs: theirs are unknown.
- The paper prints 63M MACs for Ghost-ResNet-56, which has 65.1M here; of GhostNet 1.3x's 227.0M it prints 226M.
- Schedule (cosine), batch size, momentum and weight decay are the baseline's.
- The primary convolution begins with the first of the weights drawn for the one that it replaces, the cheap one as in
  the authors' code, and GhostNet as timm draws it.
- ``inherit`` is not in the paper: the net begins as the trained one, each primary convolution with its first filters.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx, nn

from baselines.errors import UserError
from methods.base import Claim, Method, Paper, Reported, Select

if TYPE_CHECKING:
    from baselines.task import Task

Pair = int | tuple[int, int]
# Table 1: kernel, expansion, outputs, share of the squeeze, stride of each bottleneck; grouped as timm names them
BLOCKS = (
    ((3, 16, 16, 0, 1),), ((3, 48, 24, 0, 2),), ((3, 72, 24, 0, 1),), ((5, 72, 40, 0.25, 2),), ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0, 2),),
    ((3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 0.25, 1), (3, 672, 112, 0.25, 1)),
    ((5, 672, 160, 0.25, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)),
)  # fmt: skip
IMAGENET = {"first": False, "epochs": 90.0}
GROUNDS = {
    "vgg16_mnist5k": {"epochs": 12.0, "lr": 0.05},
    **{name: {} for name in ("vgg16_cifar10", "resnet56_cifar10", "resnet56_cifar100")},
    "resnet50_imagenette": {**IMAGENET, "lr": 0.0125},  # batches of 32
    "resnet50_imagenet": {**IMAGENET, "lr": 0.025},  # batches of 64
}
READ = "read in a translation of the article with its tables; sizes recounted"


@dataclass
class GhostNet(Method):
    """Trains the baseline's net with Ghost modules, or GhostNet itself, from new weights.

    ``net`` "baseline": of n maps, ceil(n / ``ratio``) come from the convolution and the others from depthwise ones of
    ``kernel`` x ``kernel``; ``first``: in the first convolution as well; ``inherit``: begin with the trained weights.
    ``net`` "ghostnet": GhostNet at ``width``, whatever the baseline's net is.
    """

    net: str = "baseline"
    ratio: int = 2
    kernel: int = 3
    first: bool = True
    inherit: bool = False
    width: float = 1.0
    epochs: float = 164.0
    lr: float = 0.1

    paper: ClassVar[Paper] = Paper(
        title="GhostNet: More Features from Cheap Operations",
        authors="K. Han, Y. Wang, Q. Tian, J. Guo, C. Xu, C. Xu",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1911.11907",
        code="https://github.com/huawei-noah/Efficient-AI-Backbones",
    )
    recipes: ClassVar[dict[str, dict]] = {
        **GROUNDS,
        **{f"{ground}/s4": {**fields, "ratio": 4} for ground, fields in GROUNDS.items()},
        **{f"{ground}/inherit": {**fields, "inherit": True} for ground, fields in GROUNDS.items()},
        **{f"vgg16_cifar10/s{ratio}": {"ratio": ratio} for ratio in (3, 5)},
        **{f"vgg16_cifar10/d{kernel}": {"kernel": kernel} for kernel in (1, 5, 7)},
        **{
            f"{ground}/{name}": {"net": "ghostnet", "width": width, "epochs": 90.0, "lr": GROUNDS[ground]["lr"]}
            for ground in ("resnet50_imagenette", "resnet50_imagenet")
            for name, width in {"w050": 0.5, "w100": 1.0, "w130": 1.3}.items()
        },
    }
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            baseline=recipe.split("/")[0], recipe=recipe, label=label, source=f"Table {source}", top1=top1, top5=top5,
            base_top1=base_top1, base_top5=base_top5, params=params, macs=macs, verified=READ,
        )
        for recipe, label, source, top1, top5, base_top1, base_top5, params, macs in (
            ("vgg16_cifar10", "Ghost-VGG-16, s=2, d=3", "5", 93.7, None, 93.6, None, 7.7e6, 1.58e8),
            ("vgg16_cifar10/s3", "Ghost-VGG-16, s=3", "4", 93.4, None, 93.6, None, 5.2e6, 1.07e8),
            ("vgg16_cifar10/s4", "Ghost-VGG-16, s=4", "4", 93.0, None, 93.6, None, 4.0e6, 8.0e7),
            ("vgg16_cifar10/s5", "Ghost-VGG-16, s=5", "4", 92.9, None, 93.6, None, 3.3e6, 6.5e7),
            ("vgg16_cifar10/d1", "Ghost-VGG-16, d=1", "3", 93.5, None, 93.6, None, 7.6e6, 1.57e8),
            ("vgg16_cifar10/d5", "Ghost-VGG-16, d=5", "3", 93.4, None, 93.6, None, 7.7e6, 1.60e8),
            ("vgg16_cifar10/d7", "Ghost-VGG-16, d=7", "3", 93.1, None, 93.6, None, 7.7e6, 1.63e8),
            ("resnet56_cifar10", "Ghost-ResNet-56, s=2", "5", 92.7, None, 93.0, None, 4.3e5, 6.3e7),
            ("resnet50_imagenet", "Ghost-ResNet-50, s=2", "6", 75.0, 92.3, 75.3, 92.2, 1.30e7, 2.2e9),
            ("resnet50_imagenet/s4", "Ghost-ResNet-50, s=4", "6", 74.1, 91.9, 75.3, 92.2, 6.5e6, 1.2e9),
            ("resnet50_imagenet/w050", "GhostNet 0.5x", "7", 66.2, 86.6, None, None, 2.6e6, 4.2e7),
            ("resnet50_imagenet/w100", "GhostNet 1.0x", "7", 73.9, 91.4, None, None, 5.2e6, 1.41e8),
            ("resnet50_imagenet/w130", "GhostNet 1.3x", "7", 75.7, 92.7, None, None, 7.3e6, 2.26e8),
        )
    )  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (Claim(
        "With half of its maps made by cheap operations (s = 2) a net is as good as the dense one.", "Tables 5 and 6",
        Select("ghostnet", ("",)), (Select("dense"),), budgets=("short", "paper"), margin=0.5, verified=READ,
    ),)  # fmt: skip

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Build the net and train it from the start; the trained dense net is used with ``inherit`` only."""
        self._check()
        if self.net == "ghostnet":
            task.from_scratch = True
            net = Bottlenecks(task.num_classes, self.width, task.example.shape[1]).to(task.example.device)
        else:
            net = to_ghosts(model if self.inherit else task.fresh(), self.ratio, self.kernel, self.first)
        return task.train(net, self.epochs, lr=self.lr)

    def _check(self) -> None:
        """UserError for a value that nothing can be made of."""
        if self.net not in ("baseline", "ghostnet"):
            raise UserError(f"There is no net '{self.net}': choose baseline or ghostnet.")
        if self.ratio < 1:
            raise UserError(f"ratio={self.ratio} is no number of maps for one: give 1 (no ghosts) or more, such as 2.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} has no middle: give an odd number, such as 3.")
        if not self.width > 0:
            raise UserError(f"width={self.width:g} leaves no channel: give a positive factor, such as 1.")
        if self.inherit and self.net == "ghostnet":
            raise UserError("inherit=true is for net=baseline: GhostNet has no layer of the trained net, leave it out.")


class Ghost(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'): ceil(out_channels / ratio) intrinsic maps, then ghosts.

    Arguments as of the convolution that it stands for, and: ``ratio`` maps for each intrinsic one, ``cheap_kernel`` of
    the depthwise convolutions, ``relu`` behind BN in both parts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        ratio: int = 2,
        cheap_kernel: int = 3,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.ratio, self.cheap_kernel, self.relu = ratio, cheap_kernel, relu
        intrinsic = math.ceil(out_channels / ratio)
        self.surplus = intrinsic * ratio - out_channels
        convolution = nn.Conv2d(in_channels, intrinsic, kernel_size, stride, padding, dilation, bias=False)
        self.primary, self.cheap = normalised(convolution, relu), None
        if ratio > 1:
            ghosts, middle = intrinsic * (ratio - 1), cheap_kernel // 2
            depthwise = nn.Conv2d(intrinsic, ghosts, cheap_kernel, padding=middle, groups=intrinsic, bias=False)
            nn.init.kaiming_normal_(depthwise.weight, mode="fan_out", nonlinearity="relu")
            self.cheap = normalised(depthwise, relu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The intrinsic maps and, without the last that are too many, their ghosts."""
        maps = self.primary(x)  # Eq. 2
        if self.cheap is None:
            return maps
        ghosts = self.cheap(maps)  # Eq. 3, whose last operation is the identity
        return torch.cat([maps, ghosts[:, : -self.surplus] if self.surplus else ghosts], 1)

    @torch.no_grad()
    def begin(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        """Begin with the first filters of ``conv``, and their part of its BN if it has one; biases go into the mean."""
        own, own_norm = self.primary[0], self.primary[1]
        count = len(own.weight)
        own.weight.copy_(conv.weight[:count])
        if norm is not None:
            own_norm.load_state_dict({key: v[:count] if v.ndim else v for key, v in norm.state_dict().items()})
        if conv.bias is not None:
            own_norm.running_mean -= conv.bias[:count]


def normalised(conv: nn.Conv2d, relu: bool) -> nn.Sequential:
    """The convolution, its BN and, where ``relu``, a ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), *([nn.ReLU(inplace=True)] if relu else []))


class Bottlenecks(nn.Module):
    """GhostNet at any width, of timm's blocks: images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        from timm.models.ghostnet import GhostNet

        self.num_classes, self.width, self.in_channels = num_classes, width, in_channels
        self.net = GhostNet(BLOCKS, num_classes, width, in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.net(x)


def to_ghosts(net: nn.Module, ratio: int = 2, kernel: int = 3, first: bool = True) -> nn.Module:
    """``net`` with Ghost modules for its ungrouped convolutions (the first one only if ``first``), changed in place.

    The BN and the ReLU that alone read such a convolution go, unless they are called elsewhere too.
    """
    modules = dict(net.named_modules())
    nodes = [node for node in fx.symbolic_trace(net).graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)

    def behind(node: fx.Node, kind: type[nn.Module]) -> fx.Node | None:
        """The call of a module of this kind that alone reads ``node``."""
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        return reader if reader is not None and isinstance(modules.get(reader.target), kind) else None

    plain = [n for n in nodes if isinstance(modules[n.target], nn.Conv2d) and modules[n.target].groups == 1]
    if not plain[int(not first) :]:
        raise UserError("This network has no convolution to put a Ghost module in place of: choose another baseline.")
    for node in plain[int(not first) :]:
        conv, norm = modules[node.target], behind(node, nn.BatchNorm2d)
        relu = behind(node if norm is None else norm, nn.ReLU)
        shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
        ghost = Ghost(*shape, ratio, kernel, relu is not None).to(conv.weight.device)
        ghost.begin(conv, None if norm is None else modules[norm.target])
        net.set_submodule(node.target, ghost)
        for gone in (norm, relu):
            if gone is not None and calls[gone.target] == 1:
                net.set_submodule(gone.target, nn.Identity())
    return net
