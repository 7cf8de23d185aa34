"""Where a rank's micro-batches come from: scored by others, or rolled out by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.data.stream.block import load_encoded
from dopsd.learner.learner import LearnerMicroBatch
from dopsd.learner.zero.engine import ZeroEngine
from dopsd.method.noise import batch_noise
from dopsd.method.objective import loss_mask, state_weights
from dopsd.method.rollout import VelocityFn
from dopsd.method.schedule import euler_step
from dopsd.method.terms import Term, Terms, fused_terms, stored_terms, target_terms
from dopsd.models.families.family import DTYPES
from dopsd.models.sampling import training_sigmas
from dopsd.records import EncodedBatch, TrainingBatch
from dopsd.rollout.baselines import baseline_targets
from dopsd.rollout.preservation import class_weight
from dopsd.run_folder.trajectories import dump_path, dumped, trajectory_record

FetchFn = Callable[[int], Iterator[tuple[Any, bool]]]
"""step -> (payload, is real) of this rank's micro-batches: bytes of a TrainingBatch, or the
encoded block when there are no inference workers."""


class DisaggregatedSource:
    """Scored micro-batches from the coordinator; contexts are cast to the compute ``dtype``."""

    def __init__(self, fetch: FetchFn, device: torch.device, dtype: torch.dtype) -> None:
        self._fetch, self.device, self.dtype = fetch, device, dtype

    def __call__(self, step: int) -> Iterator[LearnerMicroBatch]:
        for payload, real in self._fetch(step):
            batch: TrainingBatch = TrainingBatch.from_bytes(payload)
            batch.states = batch.states.to(self.device)
            batch.sigmas = batch.sigmas.to(self.device)
            batch.target_velocity = batch.target_velocity.to(self.device)
            batch.weight = batch.weight.to(self.device)
            batch.mask = None if batch.mask is None else batch.mask.to(self.device)
            batch.student = batch.student.to(self.device, self.dtype)
            if batch.class_student is not None and batch.class_weight is not None:
                batch.class_student = batch.class_student.to(self.device, self.dtype)
                batch.class_weight = batch.class_weight.to(self.device)
            yield LearnerMicroBatch(
                stored_terms(batch),
                batch.info,
                real,
                batch.policy_version,
                batch.teacher_version,
                batch.encode_stats,
            )


class FusedSource:
    """The rank rolls out and scores on its own engine; the rollout's forward trains."""

    def __init__(
        self,
        config: RunConfig,
        fetch: FetchFn,
        engine: ZeroEngine,
        device: torch.device,
        dump: Callable[[str, bytes], None],
    ) -> None:
        self.config, self._fetch, self.engine = config, fetch, engine
        self.device, self._dump = device, dump
        self.family = engine.student.family

    def __call__(self, step: int) -> Iterator[LearnerMicroBatch]:
        for block, real in self._fetch(step):
            batch = load_encoded(block)
            on_policy = self.config.method.objective == "dopsd"
            terms = self._dopsd(batch, real) if on_policy else self._baseline(batch)
            yield LearnerMicroBatch(terms, batch.info, real, step, step, batch.encode_stats)

    def _dopsd(self, batch: EncodedBatch, real: bool) -> Terms:
        info = batch.info
        shape = self.family.latent_shape(info.height, info.width)
        noise = batch_noise(self.config.run.seed, info.step, info.noise_ids, shape)
        sigmas = training_sigmas(self.config, self.family, info.height, info.width)
        student = batch.student.to(self.device, self._dtype)
        terms = fused_terms(
            noise.to(self.device),
            sigmas,
            student,
            self._scorer(batch),
            self.config.method.weighting,
            self._mask(batch),
        )
        if real and dumped(self.config, info.step, info.index):
            terms = self._recorded(terms, batch, sigmas)
        yield from terms
        if batch.class_student is None:
            return
        kept = batch.class_student.to(self.device, self._dtype)
        yield from fused_terms(
            noise.to(self.device),
            sigmas,
            kept,
            lambda latents, sigma: self.engine.base_velocity(latents, sigma, kept.tensors),
            self.config.method.weighting,
            class_weight=class_weight(self.config, info).to(self.device),
        )

    def _baseline(self, batch: EncodedBatch) -> Terms:
        """A generator: the teacher's forwards count as the learner's work, not as waiting."""
        teacher = None if batch.teacher is None else self._scorer(batch)
        targets, _ = baseline_targets(self.config, self.family, batch, teacher, self.device)
        student = batch.student.to(self.device, self._dtype)
        yield from target_terms(targets, student, self._mask(batch))

    def _mask(self, batch: EncodedBatch) -> Tensor | None:
        info = batch.info
        mask = loss_mask(batch.mask, self.family.latent_shape(info.height, info.width))
        return None if mask is None else mask.to(self.device)

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.config.model.dtype]

    def _scorer(self, batch: EncodedBatch) -> VelocityFn:
        assert batch.teacher is not None
        context = batch.teacher.to(self.device, self._dtype).tensors
        return lambda latents, sigma: self.engine.teacher_velocity(latents, sigma, context)

    def _recorded(self, terms: Terms, batch: EncodedBatch, sigmas: Tensor) -> Terms:
        """The same terms, written down when the last of them is trained."""
        passed: list[Term] = []
        velocities: list[Tensor] = []
        try:
            passed.append(next(terms))
            while True:
                velocities.append((yield passed[-1]))
                passed.append(terms.send(velocities[-1]))
        except StopIteration:
            pass
        last = passed[-1].state
        finished = euler_step(last, velocities[-1].float(), *sigmas[-2:].to(last.device))
        info = batch.info
        scored = TrainingBatch(
            info,
            policy_version=info.step,
            teacher_version=info.step,
            states=torch.stack([term.state for term in passed]).cpu(),
            sigmas=sigmas[:-1],
            student=batch.student,
            target_velocity=torch.stack([term.target for term in passed]).cpu(),
            weight=state_weights(sigmas[:-1], self.config.method.weighting),
            finished=finished.cpu(),
            mask=loss_mask(batch.mask, last.shape),
        )
        self._dump(dump_path(info), trajectory_record(self.config, batch, scored))
