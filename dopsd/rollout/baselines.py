"""Training batches of the objectives in which the student does not roll out.

Both sources use this: a fused learner with its own teacher adapter, a teacher worker with its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.method.noise import batch_noise, batch_uniform
from dopsd.method.objective import loss_mask
from dopsd.method.off_policy import (
    Targets,
    flow_matching,
    teacher_at_noised,
    teacher_path,
    training_levels,
)
from dopsd.method.rollout import VelocityFn
from dopsd.models.families.family import Family
from dopsd.models.sampling import training_sigmas
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch


def baseline_targets(
    config: RunConfig,
    family: Family,
    batch: EncodedBatch,
    teacher: VelocityFn | None,
    device: torch.device | str,
) -> tuple[Targets, Tensor | None]:
    """What ``config.method.objective`` trains on, and what the teacher drew if it drew.

    ``teacher``: its velocity under its own context for this micro-batch's B samples; None for
    ``sft``, which has none. Everything lies on ``device``.
    """
    method, info = config.method, batch.info
    shape = family.latent_shape(info.height, info.width)
    # Row 0 is the noise of a rollout, as `dopsd` draws it; the others noise clean latents.
    noise = batch_noise(config.run.seed, info.step, info.noise_ids, (method.steps + 1, *shape))
    first, rest = noise[:, 0].to(device), noise[:, 1:].transpose(0, 1).to(device)
    sigmas = training_sigmas(config, family, info.height, info.width).to(device)
    if method.objective == "sft":
        assert batch.target is not None
        levels = _levels(config, family, info).to(device)
        return flow_matching(batch.target.to(device), rest, levels), None
    assert teacher is not None
    if method.objective == "off_policy" and method.off_policy_states == "noised":
        assert batch.target is not None
        clean = batch.target.to(device)
        return teacher_at_noised(clean, rest, sigmas[:-1], teacher, method.weighting), None
    targets, finished = teacher_path(first, sigmas, teacher, method.weighting)
    if method.objective == "off_policy":
        return targets, finished
    return flow_matching(finished, rest, _levels(config, family, info).to(device)), finished


def _levels(config: RunConfig, family: Family, info: SampleInfo) -> Tensor:
    uniform = batch_uniform(config.run.seed, info.step, info.noise_ids, config.method.steps)
    return training_levels(
        uniform, family.noise_levels(config.method.steps, info.height, info.width)
    )


def baseline_batch(
    config: RunConfig,
    family: Family,
    batch: EncodedBatch,
    teacher: VelocityFn,
    version: int,
    device: torch.device | str,
) -> TrainingBatch:
    """``baseline_targets`` as the record that travels, of the teacher's ``version``."""
    targets, finished = baseline_targets(config, family, batch, teacher, device)
    return TrainingBatch(
        info=batch.info,
        policy_version=version,
        teacher_version=version,
        states=targets.states.cpu(),
        sigmas=targets.sigmas.cpu(),
        student=batch.student,
        target_velocity=targets.velocity.cpu(),
        weight=targets.weight.cpu(),
        finished=None if finished is None else finished.cpu(),
        mask=loss_mask(batch.mask, targets.states.shape),
        encode_stats=batch.encode_stats,
    )
