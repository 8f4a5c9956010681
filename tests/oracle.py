"""What the method tests share: mutants of a method's file, and sizes counted from the definition."""

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn


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
