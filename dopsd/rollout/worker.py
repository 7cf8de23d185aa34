"""Inference workers: plain batched classes; ``worker_pool.py`` wraps them as Ray actors.

A worker serves only the version that it has bound, and every call names the version that it
wants: a mismatch is an error, never a silent use of other weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.data.stream.block import load_encoded
from dopsd.errors import AcknowledgementError, ModelError
from dopsd.method.noise import batch_noise
from dopsd.method.objective import loss_mask, state_weights
from dopsd.method.rollout import rollout, score
from dopsd.models import FAMILIES
from dopsd.models.checksum import checksum
from dopsd.models.compiled import compile_blocks
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.layers import BASE, STUDENT, TEACHER, activate, bind_parameters
from dopsd.models.lora.merge import load_trained_base
from dopsd.models.sampling import batch_velocity, training_sigmas
from dopsd.models.trained import TrainableParameters
from dopsd.policy.buckets import bucket_key, unpack_bucket
from dopsd.policy.bundle import Acknowledgement, Bundle, read_payload
from dopsd.ray_cluster.process import peak_memory_mb, set_up
from dopsd.records import Context, EncodedBatch, TrainingBatch, Trajectory
from dopsd.rollout.baselines import baseline_batch
from dopsd.rollout.pictures import PromptPainter, Size
from dopsd.rollout.preservation import class_weight

Stats = dict[str, float]


class InferenceWorker:
    """A frozen base with the adapters of its role: rollout, teacher, or both (shared)."""

    def __init__(self, config: RunConfig, device: str, adapters: tuple[str, ...]) -> None:
        set_up(device, config.run.determinism)
        self.config = config
        self.device = device
        self.adapters = adapters
        self.dtype = DTYPES[config.model.dtype]
        self.family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        self.transformer = load_trained_base(config, self.family, device, config.model.attention)
        self.trained = TrainableParameters(config, self.family)
        self.trained.prepare(self.transformer, adapters)
        self.transformer.requires_grad_(False)
        if config.model.compile:
            compile_blocks(self.transformer)
        self.version = self.teacher_version = -1
        self._bound: dict[str, str] = {}
        """Checksums of the adapters or buckets that are bound, read back from the parameters."""
        self._kept: dict[int, Tensor] = {}
        self._painter = PromptPainter(config, self.family, self.transformer, self.trained, device)

    def load(self, version: int, *payloads: Any) -> Acknowledgement:
        """Bind a version's weights, one payload for each of the worker's adapters, in order; None
        for those that are bound already, as a teacher's that does not move.

        Returns what the model's parameters now hold.
        """
        kept, self._bound, modules = self._bound, {}, 0
        self.version = self.teacher_version = -1  # until all is bound: it may end half way
        bound: dict[str, str] = {}
        for adapter, payload in zip(self.adapters, payloads, strict=True):
            own = self.trained.parameters(self.transformer, adapter)
            if payload is None:
                bound[adapter] = kept[adapter]
            else:
                bind_parameters(own, read_payload(payload, adapter))
                bound[adapter] = checksum({name: p.data for name, p in own.items()})
            modules = len(own)
        self._bound, self.version, self.teacher_version = bound, version, version
        return Acknowledgement(version, dict(bound), modules)

    def load_buckets(self, bundle: Bundle, fetch: Callable[[Any], bytes]) -> Acknowledgement:
        """Bind a version of a whole model in place, one bucket at a time.

        ``fetch`` gets a reference's bytes, as ray.get does. A model that is bound already, as a
        teacher's is that has not been published anew, is acknowledged as it was read back. Raises
        ModelError for a tensor that does not fit.
        """
        (adapter,) = self.adapters  # a second one would need a second model
        buckets = {
            bucket_key(adapter, index): ref for index, ref in enumerate(bundle.refs[adapter])
        }
        if self._bound != {key: bundle.checksums[key] for key in buckets}:
            self._bound, self.version, self.teacher_version = {}, -1, -1
            own = self.trained.parameters(self.transformer, adapter)
            bound: dict[str, str] = {}
            for key, ref in buckets.items():
                state = unpack_bucket(fetch(ref))
                names = list(state)
                bind_parameters({n: own.pop(n) for n in names if n in own}, state)
                del state  # before the next one is fetched
                bound[key] = checksum({n: self.transformer.get_parameter(n).data for n in names})
            if own:
                raise ModelError(f"weights: {len(own)} tensors missing, e.g. {min(own)}")
            self._bound = bound
        self.version = bundle.version
        self.teacher_version = (
            bundle.version if bundle.teacher_version is None else bundle.teacher_version
        )
        modules = sum(1 for _ in self.transformer.parameters())
        return Acknowledgement(self.version, dict(self._bound), modules)

    def generate(self, version: int, block: pa.Table) -> tuple[bytes, Stats]:
        """Roll the student out on an encoded micro-batch: a Trajectory and its timing."""
        return self._timed(lambda: self._rollout(version, load_encoded(block)).to_bytes())

    def generate_and_keep(self, version: int, block: pa.Table, number: int) -> tuple[bytes, Stats]:
        """As ``generate``, but the states stay on the device until ``send(number)``."""

        def work() -> bytes:
            path = self._rollout(version, load_encoded(block))
            self._kept[number] = path.states
            return replace(path, states=path.states.new_empty(0)).to_bytes()

        return self._timed(work)

    def send(self, number: int) -> Tensor:
        """The states [K + 1, B, C, h, w] of a rollout, which are given away."""
        return self._kept.pop(number)

    def score(
        self, version: int, block: pa.Table, trajectory: bytes, states: Tensor | None = None
    ) -> tuple[bytes, Stats]:
        """Add the teacher's velocities for all K states: a TrainingBatch and its timing.

        ``states``: those of a trajectory that was kept without them.
        """

        def work() -> bytes:
            path: Trajectory = Trajectory.from_bytes(trajectory)
            if states is not None:
                path = replace(path, states=states)
            return self._score(version, load_encoded(block), path).to_bytes()

        return self._timed(work)

    def generate_and_score(self, version: int, block: pa.Table) -> tuple[bytes, Stats]:
        """Both on one base, so that states need not travel."""

        def work() -> bytes:
            batch = load_encoded(block)
            return self._score(version, batch, self._rollout(version, batch)).to_bytes()

        return self._timed(work)

    def teach(self, version: int, block: pa.Table) -> tuple[bytes, Stats]:
        """A TrainingBatch of an objective in which only the teacher works, and its timing."""

        def work() -> bytes:
            self._require(version)
            batch = load_encoded(block)
            assert batch.teacher is not None
            activate(self.transformer, TEACHER)
            teacher = batch_velocity(self.family, self.transformer, batch.teacher, self.dtype)
            scored = baseline_batch(self.config, self.family, batch, teacher, version, self.device)
            scored.teacher_version = self.teacher_version
            return scored.to_bytes()

        return self._timed(work)

    def draw(
        self, version: int, weights: Any, context: Context, index: int, size: Size
    ) -> tuple[bytes, Stats]:
        """An own prompt's picture under a version of the student, and its timing. The version that
        is bound may be another, and stays."""
        return self._painter.draw(version, weights, context, index, size)

    def _rollout(self, version: int, batch: EncodedBatch) -> Trajectory:
        self._require(version)
        info = batch.info
        noise = batch_noise(
            self.config.run.seed,
            info.step,
            info.noise_ids,
            self.family.latent_shape(info.height, info.width),
        )
        sigmas = training_sigmas(self.config, self.family, info.height, info.width)
        activate(self.transformer, STUDENT)
        contexts = [context for context in (batch.student, batch.class_student) if context]
        paths = [
            rollout(
                batch_velocity(self.family, self.transformer, context, self.dtype),
                noise.to(self.device),
                sigmas,
            )
            for context in contexts
        ]
        states = torch.cat(paths, 1)
        return Trajectory(info, version, self.config.run.seed, sigmas, states, batch.student)

    def _score(self, version: int, batch: EncodedBatch, path: Trajectory) -> TrainingBatch:
        self._require(version)
        assert batch.teacher is not None
        states, sigmas = path.states[:-1], path.sigmas[:-1]
        info, rows = path.info, len(path.info)
        target = self._scores(TEACHER, batch.teacher, states[:, :rows], sigmas)
        if batch.class_student is not None:
            kept = self._scores(BASE, batch.class_student, states[:, rows:], sigmas)
            target = torch.cat([target, kept], 1)
        return TrainingBatch(
            info=info,
            policy_version=path.policy_version,
            teacher_version=self.teacher_version,
            states=states,
            sigmas=sigmas,
            student=path.student,
            target_velocity=target,
            weight=state_weights(sigmas, self.config.method.weighting),
            finished=path.states[-1, :rows],
            mask=loss_mask(batch.mask, states.shape),
            class_student=batch.class_student,
            class_weight=class_weight(self.config, info) if batch.class_student else None,
            encode_stats=batch.encode_stats,
        )

    def _scores(self, adapter: str, context: Context, states: Tensor, sigmas: Tensor) -> Tensor:
        """Velocities of an adapter at all K states [K, B, C, h, w], on the CPU."""
        activate(self.transformer, adapter)
        velocity = batch_velocity(
            self.family, self.transformer, context.repeat(len(states)), self.dtype
        )
        return score(velocity, states.to(self.device), sigmas).cpu()

    def _require(self, version: int) -> None:
        if version != self.version:
            raise AcknowledgementError(
                f"asked to serve policy version {version}, but {self.version} is bound"
            )

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, Stats]:
        start = time.perf_counter()
        result = work()
        return result, {
            "seconds": time.perf_counter() - start,
            "peak_memory_mb": peak_memory_mb(),
        }
