"""Training with few values: quantised weights in every forward and backward pass, real-valued latent weights behind.

The steps of a method: ``layers`` (what is quantised), ``install`` (a quantiser on each weight: the layer multiplies
with its result, the optimiser moves the latent weight, which ``clip`` keeps in a range), a training, ``bake`` (the
quantised values become the weights, with their ``Coding``) or ``restore`` (the latent ones do).

A quantiser is a module: ``forward(latent) -> quantised``, of the same shape, with the gradient that the latent weight
is to get. In eval mode it is deterministic, and ``bake`` takes what it gives there. ``through`` gives quantised values
the gradient of the identity, ``sign`` that of the hard tanh. Both hand on exact values: x + (q - x).detach() rounds,
and leaves more values in a filter than its coding holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from baselines.errors import UserError
from methods.kit import coding
from methods.kit.coding import Coding

VERSION = 1
WEIGHT = "weight"

Layer = nn.Conv2d | nn.Linear


# ------------------------------------------------------------------------------------------------------- what and how


def layers(model: nn.Module, *, skip_first: bool = False, skip_last: bool = False) -> dict[str, Layer]:
    """The convolutions and linear layers whose weights are quantised, by name, in order of definition.

    Biases and normalisation are not. UserError where none is left.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = found[int(skip_first) : len(found) - int(skip_last)]
    if not found:
        raise UserError(
            "No layer is left to quantise: give a network with more of them, or skip neither first nor last."
        )
    return dict(found)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules without children, in order of definition."""
    return [(name, module) for name, module in model.named_modules() if next(module.children(), None) is None]


def install(chosen: Mapping[str, Layer], quantiser: nn.Module) -> None:
    """Put ``quantiser`` on the weights of these layers, in place; what they hold now is the latent weight.

    One quantiser serves all layers: it keeps nothing of a layer.
    """
    for module in chosen.values():
        parametrize.register_parametrization(module, WEIGHT, quantiser)


def latents(model: nn.Module) -> dict[str, nn.Parameter]:
    """The latent weight of each layer with a quantiser, by the layer's name: what the optimiser moves."""
    return {name: module.parametrizations[WEIGHT].original for name, module in _installed(model).items()}


def clip(model: nn.Module, bound: float = 1.0) -> Callable[[int], None]:
    """An ``after_step`` for training: latent weights stay in [-bound, bound]. Does not synchronise."""
    held = list(latents(model).values())

    def after_step(step: int) -> None:
        with torch.no_grad():
            for weight in held:
                weight.clamp_(-bound, bound)

    return after_step


@torch.no_grad()
def bake(model: nn.Module, declared: Coding) -> None:
    """Take the quantisers off, in place: their values in eval mode are the weights, stored as ``declared``.

    -0.0 becomes +0.0. A layer with a coding of its own (``coding.attach`` before) keeps that.
    """
    model.eval()
    for module in _installed(model).values():
        quantised = getattr(module, WEIGHT) + 0.0
        _take_off(module).copy_(quantised)
        own = WEIGHT in vars(module).get(coding.DECLARED, {})
        if not own:
            coding.attach(module, WEIGHT, declared)


def restore(model: nn.Module) -> None:
    """Take the quantisers off, in place: the latent weights are the weights."""
    for module in _installed(model).values():
        _take_off(module)


def _installed(model: nn.Module) -> dict[str, Layer]:
    """The layers with a quantiser by name; UserError where there is none."""
    found = {name: m for name, m in model.named_modules() if parametrize.is_parametrized(m, WEIGHT)}
    if not found:
        raise UserError("No layer of this network has a quantiser: call quant.install first.")
    return found


def _take_off(module: Layer) -> nn.Parameter:
    """The weight, which is the latent one, of a layer that is plain again; its bias comes behind, as before."""
    parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=False)
    module._parameters["bias"] = module._parameters.pop("bias")
    return module.weight


# ------------------------------------------------------------------------------------- straight-through estimators


class _Through(torch.autograd.Function):
    """``values`` forward, the gradient unchanged to ``x`` backward."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _Sign(torch.autograd.Function):
    """sign(x) with sign(0) = +1, or a random sign, forward; gradient * 1[|x| <= 1] backward.

    In place: on a CPU four times as fast as ``signs`` and a mask, which take a fifth of a binary net's training.
    """

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, stochastic: bool) -> torch.Tensor:
        ctx.save_for_backward(x)
        return random_signs(x) if stochastic else x.clone().ge_(0).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return x.abs().le_(1).mul_(grad), None


def signs(x: torch.Tensor) -> torch.Tensor:
    """+1 where x >= 0, else -1, without a gradient: exportable."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def random_signs(x: torch.Tensor) -> torch.Tensor:
    """+1 with the probability clip((x + 1) / 2, 0, 1), else -1, from torch's generator, without a gradient."""
    return torch.where(torch.rand(x.shape, device=x.device) < (x.detach().float() + 1) / 2, 1.0, -1.0).to(x.dtype)


def through(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Exactly ``values``, with the gradient of x: straight through. Scale x to scale the gradient."""
    return _Through.apply(x, values.detach())


def sign(x: torch.Tensor, stochastic: bool = False) -> torch.Tensor:
    """sign(x), sign(0) = +1 (or +1 with probability clip((x + 1) / 2, 0, 1)); its gradient is 1[|x| <= 1]."""
    return _Sign.apply(x, stochastic)


class SignActivation(nn.Module):
    """Activations of -1 and +1: ``sign``, in training mode at random where ``stochastic``. Exports to ONNX."""

    def __init__(self, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        return sign(x, self.stochastic) if self.training else signs(x)


# ------------------------------------------------------------------------------------------------------ how it trains


def glorot(weight: torch.Tensor) -> float:
    """Glorot's coefficient sqrt(1.5 / (inputs + outputs)) of a layer's weight, as BinaryConnect and BNN take it.

    (out, in) or (out, in, *kernel); of a convolution the inputs and outputs are those of all its k * k taps.
    """
    taps = weight[0, 0].numel()
    return (1.5 / (taps * (weight.shape[1] + weight.shape[0]))) ** 0.5


def groups(model: nn.Module, params: Iterable[nn.Parameter], lr: float, power: float = 1.0) -> list[dict[str, Any]]:
    """An optimiser's groups of ``params``: each latent weight at lr / glorot**power, the others together at lr.

    Latent weights range over [-1, 1] where Glorot's would over his coefficient: a step of Adam has to be larger by
    1 / coefficient (``power`` 1), one of SGD by its square (2).
    """
    own = list(latents(model).values())
    ids = {id(weight) for weight in own}
    scaled = [{"params": [weight], "lr": lr / glorot(weight) ** power} for weight in own]
    return [{"params": [p for p in params if id(p) not in ids], "lr": lr}, *scaled]


def normalise_outputs(model: nn.Module) -> None:
    """Put a batch normalisation behind the last layer, in place, where that is linear, as BinaryConnect and BNN do.

    Sums of hundreds of -1 and +1 are far beyond the margin of a hinge loss.
    """
    name, last = list(layers(model).items())[-1]
    if isinstance(last, nn.Linear):
        norm = nn.BatchNorm1d(last.out_features).to(last.weight.device)
        model.set_submodule(name, nn.Sequential(last, norm))


def square_hinge(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over images and classes of max(0, 1 - t * logit)^2, t = +1 for the label's class, else -1; in float32.

    ``logits`` (N, classes), ``labels`` (N,).
    """
    targets = 2 * F.one_hot(labels, logits.shape[1]) - 1
    return (1 - targets * logits.float()).clamp(min=0).square().mean()
