"""The noise levels of a run's training roll-outs."""

from __future__ import annotations

from torch import Tensor

from dopsd.config import RunConfig
from dopsd.method.schedule import with_final_zero
from dopsd.models.base import Family


def training_sigmas(config: RunConfig, family: Family, height: int, width: int) -> Tensor:
    """Roll-out sigmas [K + 1]: the config's override, or the pipeline's own schedule."""
    if config.method.sigmas is not None:
        return with_final_zero(config.method.sigmas)
    return family.sigmas(config.method.steps, height, width)
