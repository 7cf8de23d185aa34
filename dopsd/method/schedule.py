"""Few-step sigmas, read from the pipeline's own scheduler, and the Euler step between them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def scheduler_sigmas(scheduler: Any, unshifted: list[float], mu: float) -> Tensor:
    """The noise levels that ``scheduler`` visits, [K + 1] float32, descending, the last is 0.

    ``scheduler``: a diffusers FlowMatchEulerDiscreteScheduler (it is copied, not changed).
    ``unshifted``: the pipeline's K sigmas before the scheduler's shift. ``mu``: the pipeline's
    resolution shift; a scheduler without dynamic shifting ignores it.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=unshifted, mu=mu, device="cpu")
    return torch.as_tensor(scheduler.sigmas, dtype=torch.float32).clone()


def with_final_zero(sigmas: list[float]) -> Tensor:
    """User-given sigmas [K] as a schedule [K + 1] float32 that ends in 0."""
    return torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def euler_step(state: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """x' = x + (sigma' - sigma) u; ``state`` and ``velocity`` [B, C, h, w], sigmas scalar."""
    return state + (next_sigma - sigma) * velocity


def clean_estimate(state: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0_hat = x - sigma u, [B, C, h, w]."""
    return state - sigma * velocity
