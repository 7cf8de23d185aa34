"""The distillation loss and its weights: step 4 of the algorithm in docs/method.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["x0", "velocity"]


def state_weights(sigmas: Tensor, weighting: Weighting) -> Tensor:
    """w_k of each state, [K]: 1 (the paper's Eq. 7) or sigma_k^2.

    sigma^2 times the error of the velocities is the error of the clean estimates x - sigma u:
    the loss of the authors' scripts.
    """
    return torch.ones_like(sigmas) if weighting == "velocity" else sigmas.square()


def state_loss(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """w_k * MSE(u_s, stop_grad(u_t)) of each sample, [B] float32, at one state.

    ``velocity`` and ``target`` [B, C, h, w]. The mean over a sample's own elements makes buckets
    of different resolutions count alike; the mean over states and samples is the caller's.
    """
    error = velocity.float() - target.detach().float()
    return weight * error.square().flatten(1).mean(1)
