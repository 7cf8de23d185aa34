"""The student's own few-step trajectory: step 2 of the algorithm in docs/method.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dopsd.method.schedule import euler_step

VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, h, w] float32, sigma [B] float32) -> velocity [B, C, h, w] float32."""


@torch.no_grad()
def rollout(student: VelocityFn, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Euler-integrate the student from ``noise`` [B, C, h, w] along ``sigmas`` [K + 1].

    Returns the states [K + 1, B, C, h, w] in float32: the noise first, the finished latents
    last. Every state is detached: no gradient flows from one step to another.
    """
    sigmas = sigmas.to(noise.device)
    states = [noise.float()]
    for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:]):
        velocity = student(states[-1], sigma.expand(len(noise)))
        states.append(euler_step(states[-1], velocity, sigma, next_sigma))
    return torch.stack(states)


@torch.no_grad()
def score(teacher: VelocityFn, states: Tensor, sigmas: Tensor) -> Tensor:
    """The teacher's velocities at the student's states: step 3 of the algorithm.

    ``states`` [K, B, C, h, w], ``sigmas`` [K]. All K states are known, so the teacher sees them
    as ONE batch of K * B; its context must be repeated K times, as ``Context.repeat`` does.
    Returns [K, B, C, h, w] float32.
    """
    count, batch = states.shape[:2]
    sigma = sigmas.to(states.device).repeat_interleave(batch)
    return teacher(states.flatten(0, 1), sigma).unflatten(0, (count, batch))
