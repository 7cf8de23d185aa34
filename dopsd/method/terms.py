"""Training terms: what the learner differentiates, one state at a time.

Because every state is detached, the gradients of the K states are independent, so each state's
backward runs on its own and activation memory is that of ONE state. A source of batches is a
generator of terms; the learner sends the student's velocity at each term back into it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from dopsd.method.objective import Weighting, state_weights
from dopsd.method.off_policy import Targets
from dopsd.method.rollout import VelocityFn
from dopsd.method.schedule import euler_step
from dopsd.records import Context, TrainingBatch


@dataclass
class Term:
    """One state of one micro-batch: student input, target [B, C, h, w] and weight w_k.

    ``sigma`` is a scalar, or [B] where every sample has a level of its own; ``weight`` is too."""

    state: Tensor
    sigma: Tensor
    context: Context
    target: Tensor
    weight: Tensor
    mask: Tensor | None = None
    """[B, 1, h, w], what of each sample counts (``objective.loss_mask``); None: all of it."""
    preserves: bool = False
    """Whether a class prompt is held to the base, in place of a prompt to the teacher."""


Terms = Generator[Term, Tensor, None]
"""Yields terms; receives the student's velocity (detached) at the term just yielded."""


def stored_terms(batch: TrainingBatch) -> Terms:
    """The terms of a finished batch; the velocities sent back are not needed."""
    states, velocity = batch.states, batch.target_velocity
    if batch.class_student is None:
        yield from target_terms(
            Targets(states, batch.sigmas, velocity, batch.weight), batch.student, batch.mask
        )
        return
    assert batch.class_weight is not None
    rows = len(batch.info)
    own = Targets(states[:, :rows], batch.sigmas, velocity[:, :rows], batch.weight)
    yield from target_terms(own, batch.student, batch.mask)
    weight = batch.weight.unsqueeze(1) * batch.class_weight
    kept = Targets(states[:, rows:], batch.sigmas, velocity[:, rows:], weight)
    yield from target_terms(kept, batch.class_student, preserves=True)


def target_terms(
    targets: Targets, student: Context, mask: Tensor | None = None, preserves: bool = False
) -> Terms:
    """One term for each state; ``student`` is the context under which the student is run."""
    for state, sigma, velocity, weight in zip(
        targets.states, targets.sigmas, targets.velocity, targets.weight
    ):
        yield Term(state, sigma, student, velocity, weight, mask, preserves)


def fused_terms(
    noise: Tensor,
    sigmas: Tensor,
    student: Context,
    teacher: VelocityFn,
    weighting: Weighting,
    mask: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Terms:
    """Roll out while training: the rollout's forward IS the training forward.

    ``noise`` [B, C, h, w] float32, ``sigmas`` [K + 1]. The teacher scores each state when the
    student reaches it. With ``class_weight`` [B] the terms are those that preserve: ``student`` is
    the context of the class prompts, ``teacher`` the base under it.
    """
    sigmas = sigmas.to(noise.device)
    weights = state_weights(sigmas[:-1], weighting)
    state, preserves = noise.float(), class_weight is not None
    for k, weight in enumerate(weights):
        target = teacher(state, sigmas[k].expand(len(state)))
        if class_weight is not None:
            weight = weight * class_weight
        velocity = yield Term(state, sigmas[k], student, target, weight, mask, preserves)
        state = euler_step(state, velocity.detach().float(), sigmas[k], sigmas[k + 1])
