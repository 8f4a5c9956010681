"""Losses between a teacher and a student, and the layers' outputs that they compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from baselines.errors import UserError

VERSION = 1


class _Reached(Exception):
    """Everything that was asked for has been seen: the end of a pass, not an error."""


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) of the softened class probabilities, in float32 or wider, averaged over the batch.

    Logits are (N, classes); ``temperature`` T > 0 divides them. T^2 keeps the gradient's size when T changes (Hinton et
    al., arXiv 1503.02531, Sec. 2). No gradient flows into ``teacher_logits``.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(wide) / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def outputs(
    net: nn.Module, names: Sequence[str], x: torch.Tensor, *, whole: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """(outputs of the modules ``names`` in that order, logits) of one pass of ``net`` over images ``x`` (N, C, H, W).

    The net stays in its mode, gradients flow, and no hook stays behind. Of a module that runs more than once it is the
    first output. Without ``whole`` the pass ends behind the last of them: no later layer runs, so that its statistics
    stay as they are and its parameters get no gradient; the logits are None then. UserError for a name that the net
    does not have and for a module that does not run.
    """
    modules = {name: _module(net, name) for name in names}
    found: dict[str, torch.Tensor] = {}
    handles, logits = [], None

    def keeper(name: str) -> Callable:
        def keep(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            found.setdefault(name, output)
            if not whole and len(found) == len(modules):
                raise _Reached

        return keep

    try:
        handles += [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
        logits = net(x)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for name in modules:
        if name not in found:
            raise UserError(f"The layer '{name}' does not run in this network: name one that does.")
    return [found[name] for name in names], logits


def _module(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"This network has no layer '{name}': name one of its modules, such as a stage.") from error
