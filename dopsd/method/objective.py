"""The distillation loss and its weights: step 4 of the algorithm in docs/method.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Weighting = Literal["x0", "velocity"]


def state_weights(sigmas: Tensor, weighting: Weighting) -> Tensor:
    """w_k of each state, [K]: 1 (the paper's Eq. 7) or sigma_k^2.

    sigma^2 times the error of the velocities is the error of the clean estimates x - sigma u:
    the loss of the authors' scripts.
    """
    return torch.ones_like(sigmas) if weighting == "velocity" else sigmas.square()


def loss_mask(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """How much each place of latents counts in the loss of its sample: [B, 1, h, w] float32 on the
    CPU, of mean 1, so that a small mask weighs as much as a whole picture.

    ``mask`` [B, H, W] uint8 in pixels, 255 for what counts in full, and nowhere all 0 (None: all of
    every sample); ``shape`` ends in h, w. Each place takes the mean of its pixels.
    """
    if mask is None:
        return None
    height, width = shape[-2:]
    shares = adaptive_avg_pool2d(mask.cpu().unsqueeze(1) / 255, (height, width))
    return shares / shares.mean((2, 3), keepdim=True)


def state_loss(
    velocity: Tensor, target: Tensor, weight: Tensor, mask: Tensor | None = None
) -> Tensor:
    """w_k * MSE(u_s, stop_grad(u_t)) of each sample, [B] float32, at one state.

    ``velocity`` and ``target`` [B, C, h, w]. The mean over a sample's own elements makes buckets
    of different resolutions count alike; the mean over states and samples is the caller's.
    ``mask`` is ``loss_mask``'s.
    """
    error = velocity.float() - target.detach().float()
    squares = error.square() if mask is None else error.square() * mask
    return weight * squares.flatten(1).mean(1)
