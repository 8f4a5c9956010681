"""Losses between a teacher and a student."""

from __future__ import annotations

import torch
import torch.nn.functional as F

VERSION = 1


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) of the softened class probabilities, in float32 or wider, averaged over the batch.

    Logits are (N, classes); ``temperature`` T > 0 divides them. T^2 keeps the gradient's size when T changes (Hinton et
    al., arXiv 1503.02531, Sec. 2). No gradient flows into ``teacher_logits``.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(wide) / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
