"""What the method tests share: mutants of a method's file, sizes counted from the definition, toy tasks and nets."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.task import Task


def mutant(module, old, new):
    """The module of a method's file with one line of it changed."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"'{old}' has to stand in the file exactly once"
    changed = ModuleType(f"{module.__name__.rpartition('.')[2]}_mutant")
    sys.modules[changed.__name__] = changed  # dataclasses look their module up
    exec(compile(source.replace(old, new), "mutant", "exec"), changed.__dict__)
    return changed


@torch.no_grad()
def size_of(net, shape):
    """(params, MACs of convolutions and linear layers) on one image of ``shape`` (C, H, W): outputs times weights."""
    total = 0

    def count(module, _, out):
        nonlocal total
        total += out.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in net.parameters()), total


def toy_task(shape=(3, 16, 16), budget="zero", baseline="tiny_resnet_synthetic", noisy=2):
    """A task on toy data; ``noisy`` images of noise where they have another shape: for nets pruned untrained."""
    task = Task(base.load(baseline), synthetic(DataOptions(), train=64, test=4), budget=budget)
    task.example = torch.zeros(1, *shape)
    if shape != (3, 16, 16):
        noise = torch.randn(noisy, *shape, generator=torch.Generator().manual_seed(3))
        task.batches = lambda n: [(noise[:n], None)]
    return task


def dead_filters(live, seed):
    """A net of 3x3 convolutions, ten filters each, of which so many are alive, at random places.

    The others are zero, their BN and what reads them too.
    """
    g, layers, into = torch.Generator().manual_seed(seed), [], 3
    for _ in live:
        layers += [nn.Conv2d(into, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU()]
        into = 10
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4))
    readers = [*(net[3 * i] for i in range(1, len(live))), net[-1]]
    for i, (n, reader) in enumerate(zip(live, readers, strict=True)):
        dead = torch.randperm(10, generator=g)[n:]
        for tensor in (net[3 * i].weight, net[3 * i + 1].weight, reader.weight.transpose(0, 1)):
            tensor.data[dead] = 0
    return net


def live_filters(net):
    """How many filters of such a net, or of what a surgery left of it, are alive: an array, by convolution."""
    return np.array([int(m.weight.count_nonzero()) for m in net if isinstance(m, nn.BatchNorm2d)])


def worn(net, mean, std, gain=None, bias=None):
    """``net`` in eval mode with BN statistics as after a training, and shifts from N(mean, std^2).

    Linear weights from N(0, gain^2 / inputs) and their biases from N(*bias), where these are given.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, mean, std)
        elif isinstance(module, nn.Linear) and gain is not None:
            nn.init.normal_(module.weight, 0, gain * module.in_features**-0.5)
            if bias is not None:
                nn.init.normal_(module.bias, *bias)
    return net.eval()
