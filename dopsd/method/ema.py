"""The teacher's weights: an exponential moving average of the student, in fp32.

In bfloat16 an EMA of decay 0.9999 hardly moves: its step of 1e-4 of a difference is below the
spacing of the type.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ema:
    """teacher <- decay * teacher + (1 - decay) * student, per tensor, in float32.

    decay 1.0 keeps the initial weights (the frozen base as teacher); 0.0 is the live student.
    """

    def __init__(self, student: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in student.items()}

    @torch.no_grad()
    def update(self, student: dict[str, Tensor]) -> None:
        """Move one step toward ``student`` (same names and shapes as at the start)."""
        for name, average in self.tensors.items():
            average.lerp_(student[name].detach().to(average), 1.0 - self.decay)
