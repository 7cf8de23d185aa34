"""A run's training rollouts in terms of its family: noise levels and velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.method.rollout import VelocityFn
from dopsd.method.schedule import with_final_zero
from dopsd.models.families.family import Family
from dopsd.records import Context


def training_sigmas(config: RunConfig, family: Family, height: int, width: int) -> Tensor:
    """Rollout sigmas, [K + 1] float32, descending to 0: the config's, or the pipeline's own.

    ``height`` and ``width`` in pixels. Raises ModelError for a size that the family does not allow.
    """
    if config.method.sigmas is not None:
        return with_final_zero(config.method.sigmas)
    return family.sigmas(config.method.steps, height, width)


def batch_velocity(
    family: Family, transformer: torch.nn.Module, context: Context, dtype: torch.dtype
) -> VelocityFn:
    """(latents [B, C, h, w] float32, sigma [B]) -> velocity [B, C, h, w] float32, under the
    transformer's active adapter. ``context``, of B rows, moves to its device and to ``dtype``."""
    context = context.to(next(transformer.parameters()).device, dtype)
    return lambda latents, sigma: family.velocity(transformer, latents, sigma, context)
