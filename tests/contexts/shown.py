"""The method's loss at step 0: student and teacher with the same weights, each in its context."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dopsd.method.objective import state_loss
from dopsd.method.rollout import rollout, score
from dopsd.method.terms import fused_terms, stored_terms
from dopsd.models.families.family import Family
from dopsd.records import Context, SampleInfo, TrainingBatch


@torch.no_grad()
def losses(
    family: Family,
    transformer: nn.Module,
    student: Context,
    teacher: Context,
    noise: Tensor,
    sigmas: Tensor,
) -> tuple[Tensor, Tensor]:
    """[K, B] each: by the fused source's terms, and by those of a stored, scored roll-out."""

    def run(terms) -> Tensor:
        rows = []
        term = next(terms)
        while True:
            velocity = family.velocity(
                transformer, term.state, term.sigma.expand(len(noise)), term.context
            )
            rows.append(state_loss(velocity, term.target, term.weight))
            try:
                term = terms.send(velocity)
            except StopIteration:
                return torch.stack(rows)

    velocity = partial(_velocity, family, transformer)
    fused = run(fused_terms(noise, sigmas, student, velocity(teacher), "x0"))
    states = rollout(velocity(student), noise, sigmas)[:-1]
    names = tuple(map(str, range(len(noise))))
    batch = TrainingBatch(
        SampleInfo(0, 0, names, names, 1, 1, len(noise)),
        policy_version=0,
        teacher_version=0,
        states=states,
        sigmas=sigmas[:-1],
        student=student,
        target_velocity=score(velocity(teacher.repeat(len(states))), states, sigmas[:-1]),
        weight=sigmas[:-1].square(),
    )
    return fused, run(stored_terms(batch))


def _velocity(family: Family, transformer: nn.Module, context: Context):
    return lambda latents, sigma: family.velocity(transformer, latents, sigma, context)
