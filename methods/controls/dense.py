"""The uncompressed baseline: the reference row of every table.

There is no paper behind it; the citation is that of the residual networks most rows are measured against: K. He,
X. Zhang, S. Ren, J. Sun. Deep Residual Learning for Image Recognition. CVPR 2016, https://arxiv.org/abs/1512.03385.

Idea: the row is the trained net itself, measured by the same referee as everything else.

Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from methods.base import Method, Paper

if TYPE_CHECKING:
    from baselines.task import Task


@dataclass
class Dense(Method):
    """Returns the trained net as it is."""

    paper: ClassVar[Paper] = Paper(
        title="Dense baseline (nets as in: Deep Residual Learning for Image Recognition)",
        authors="K. He, X. Zhang, S. Ren, J. Sun",
        venue="CVPR 2016",
        url="https://arxiv.org/abs/1512.03385",
    )
    expected_failures: ClassVar[dict[str, str]] = {
        "smaller": "it is the dense net",
        "dial": "it has no hyper-parameter",
    }

    def compress(self, model: nn.Module, task: Task) -> nn.Module:
        """Nothing."""
        return model
