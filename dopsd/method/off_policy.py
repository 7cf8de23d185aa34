"""The objectives that the method is held against: what a batch is when no student rolls out.

Their states do not depend on the student, so a micro-batch is finished before it is trained.
All of them return ``Targets``; the learner trains on them as it does on ``dopsd``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopsd.method.objective import Weighting, state_weights
from dopsd.method.rollout import VelocityFn
from dopsd.method.schedule import euler_step


@dataclass
class Targets:
    """States [K, B, C, h, w], ``sigmas`` [K] or [K, B], velocities like states, weights [K]."""

    states: Tensor
    sigmas: Tensor
    velocity: Tensor
    weight: Tensor


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x0 + sigma eps.

    ``clean`` [B, C, h, w], ``noise`` [K, B, C, h, w], ``sigma`` [K] or [K, B]. Returns
    [K, B, C, h, w].
    """
    level = sigma.view(*sigma.shape, *([1] * (noise.dim() - sigma.dim())))
    return (1 - level) * clean + level * noise


def flow_matching(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Targets:
    """``sft``: noised targets and their analytic velocity u = eps - x0, every state counting 1.

    ``sft_on_teacher`` is the same on what the teacher drew.

    Args:
        clean: [B, C, h, w] latents of the targets.
        noise: [K, B, C, h, w].
        sigmas: [K, B], a noise level for each.
    """
    return Targets(
        noised(clean, noise, sigmas), sigmas, noise - clean, torch.ones(len(sigmas)).to(clean)
    )


@torch.no_grad()
def teacher_at_noised(
    clean: Tensor, noise: Tensor, sigmas: Tensor, teacher: VelocityFn, weighting: Weighting
) -> Targets:
    """``off_policy`` on noised targets: the teacher's velocity at each of them.

    Args:
        clean: [B, C, h, w] latents of the targets.
        noise: [K, B, C, h, w].
        sigmas: [K], the levels of the few-step schedule without the final 0.
        teacher: the teacher under its own context.
        weighting: see ``state_weights``.
    """
    states = noised(clean, noise, sigmas)
    velocity = torch.stack(
        [teacher(state, sigma.expand(len(clean))) for state, sigma in zip(states, sigmas)]
    )
    return Targets(states, sigmas, velocity, state_weights(sigmas, weighting))


@torch.no_grad()
def teacher_path(
    noise: Tensor, sigmas: Tensor, teacher: VelocityFn, weighting: Weighting
) -> tuple[Targets, Tensor]:
    """``off_policy`` on the teacher's own trajectory, and where that trajectory ends.

    Args:
        noise: [B, C, h, w].
        sigmas: [K + 1], the few-step schedule with its final 0.
        teacher: the teacher under its own context.
        weighting: see ``state_weights``.

    Returns:
        The K states with the velocities that the teacher took there, and the finished latents
        [B, C, h, w].
    """
    state, states, velocities = noise.float(), [], []
    for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:]):
        states.append(state)
        velocities.append(teacher(state, sigma.expand(len(state))))
        state = euler_step(state, velocities[-1], sigma, next_sigma)
    weight = state_weights(sigmas[:-1], weighting)
    return Targets(torch.stack(states), sigmas[:-1], torch.stack(velocities), weight), state


def training_levels(uniform: Tensor, schedule: Tensor) -> Tensor:
    """Noise levels for flow matching: uniform in the time of the pipeline's own scheduler.

    Args:
        uniform: any shape, in [0, 1).
        schedule: [T + 1], the scheduler's levels for many steps, descending to 0.

    Returns:
        Like ``uniform``; the final 0 of the schedule is never drawn.
    """
    return schedule[(uniform * (len(schedule) - 1)).long()]
