"""The noise levels of a run's training rollouts."""

from __future__ import annotations

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.method.rollout import VelocityFn
from dopsd.method.schedule import with_final_zero
from dopsd.models.base import Family
from dopsd.records import Context


def training_sigmas(config: RunConfig, family: Family, height: int, width: int) -> Tensor:
    """Rollout sigmas [K + 1]: the config's override, or the pipeline's own schedule."""
    if config.method.sigmas is not None:
        return with_final_zero(config.method.sigmas)
    return family.sigmas(config.method.steps, height, width)


def batch_velocity(
    family: Family, transformer: torch.nn.Module, context: Context, dtype: torch.dtype
) -> VelocityFn:
    """The velocity function of one micro-batch under the transformer's active adapter."""
    context = context.to(next(transformer.parameters()).device, dtype)
    return lambda latents, sigma: family.velocity(transformer, latents, sigma, context)
