"""Differential output preservation: a class word is held to what the base predicts under it.

For each sample whose prompt has the token, the student also rolls out under the prompt with the
class word in its place, from the same noise; the target at its states is the frozen base's velocity
under that very context. A LoRA that begins at zero is the base, so this loss begins at zero.
"""

from __future__ import annotations

from torch import Tensor

from dopsd.config import RunConfig
from dopsd.records import SampleInfo


def class_weight(config: RunConfig, info: SampleInfo) -> Tensor:
    """How much each sample's class prompt counts beside its prompt, [B] float32: 0 where both are
    one."""
    return config.data.preservation.weight * info.preserved
