"""The weights that a learner trains and the teacher's that follow them, whole or sharded."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dopsd.checkpoint.learner_state import LearnerState, SlicedState
from dopsd.checkpoint.slices import SliceReader
from dopsd.config import MethodSection, RunConfig
from dopsd.errors import CheckpointError
from dopsd.learner.zero.deepspeed_private import whole_numel
from dopsd.learner.zero.engine import ZeroEngine
from dopsd.learner.zero.optimizer_state import (
    optimizer_state,
    own_slices,
    restore_slices,
    updates_taken,
)
from dopsd.method.ema import Ema
from dopsd.models.finite import first_nonfinite
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.policy.buckets import cut


class ReplicatedWeights:
    """A LoRA, with a few modules perhaps: small enough that every rank holds all of it, in fp32.

    ``fused``: the engine has a teacher adapter of its own.
    """

    def __init__(self, engine: ZeroEngine, decay: float, fused: bool) -> None:
        self._engine, self._fused = engine, fused
        self.student = engine.full_weights(STUDENT)
        self.ema = Ema(self.student, decay)

    def update(self) -> None:
        """Follow an update of the optimizer. Collective."""
        self.student = self._engine.full_weights(STUDENT)
        self.ema.update(self.student)

    def nonfinite(self) -> str:
        """A tensor that holds infinity or nan, in words; empty when all are finite. Collective."""
        if trained := self._engine.nonfinite():
            return trained
        name = first_nonfinite(self.ema.tensors)  # equal on every rank
        return f"teacher {name}" if name else ""

    def bind_teacher(self) -> None:
        """A fused learner's teacher adapter takes the teacher's weights. Collective."""
        if self._fused:
            self._engine.write_teacher(self.ema.tensors)

    def state(self, step: int) -> LearnerState:
        """Everything that a learner needs to resume at ``step``. Collective."""
        updates, moments = optimizer_state(self._engine.zero, self._engine.trained())
        return LearnerState(step, self.student, self.ema.tensors, updates, moments)

    def restore(self, state: LearnerState) -> None:
        """Inverse of :meth:`state`; every rank is given all of it. Collective."""
        self._engine.restore(state.student, state.updates, state.moments)
        self.student = self._engine.full_weights(STUDENT)
        self.ema.tensors = state.ema


class ShardedWeights:
    """All weights of a model, which no rank ever holds whole in fp32.

    The student's masters are the optimizer's. The teacher's average lies beside AdamW's moments,
    so that a rank keeps that of its own part of the masters and ZeRO knows how to gather it.
    Buckets are gathered one by one, cast to the compute dtype, and handed to rank 0.
    """

    def __init__(self, engine: ZeroEngine, method: MethodSection, bucket_bytes: int) -> None:
        self._engine = engine
        self.decay = method.teacher_decay
        self.averages = method.objective != "sft" and 0.0 < self.decay < 1.0
        """Whether the teacher has weights of its own: neither the base's nor the student's."""
        parameters = engine.trained()
        self.dtype = next(iter(parameters.values())).dtype
        self.sizes = {name: whole_numel(p) * self.dtype.itemsize for name, p in parameters.items()}
        """Bytes of each tensor as it is published."""
        self.buckets = cut(self.sizes, bucket_bytes)
        if self.averages:
            engine.start_average()

    def update(self) -> None:
        """Follow an update of the optimizer: each rank for its own part."""
        if self.averages:
            self._engine.update_average(1.0 - self.decay)

    def nonfinite(self) -> str:
        """As of ReplicatedWeights: the teacher's average is among the optimizer's state."""
        return self._engine.nonfinite()

    def bind_teacher(self) -> None:
        """A fused learner's teacher is the student itself: nothing to do."""

    def state(self, step: int) -> SlicedState:
        """This rank's part of what learners need to resume at ``step``."""
        zero = self._engine.zero
        return SlicedState(step, updates_taken(zero), own_slices(zero, self._engine.trained()))

    def restore(self, state: SliceReader) -> None:
        """Inverse of :meth:`state`, from the parts of all ranks, however many they were.

        Collective. Raises CheckpointError unless they are of the same model.
        """
        parameters = self._engine.trained()
        missing = parameters.keys() - {name.rpartition(".")[0] for name in state.names()}
        if missing:
            raise CheckpointError(f"checkpoint: {min(missing)} is missing")
        restore_slices(self._engine.zero, parameters, state.meta["updates"], state.read)

    def gather(self, adapter: str) -> Iterator[dict[str, Tensor]]:
        """The buckets of student or teacher in turn, on rank 0's CPU and empty elsewhere.

        Collective: every rank has to take all of them.
        """
        averaged = adapter == TEACHER and self.averages
        for names in self.buckets:
            # Nothing here may hold a bucket while the next one is gathered.
            yield self._average(names) if averaged else self._student(names)

    def _student(self, names: list[str]) -> dict[str, Tensor]:
        parameters = {name: self._engine.trained()[name] for name in names}
        with self._engine.gathered(list(parameters.values()), modify=False):
            if self._engine.rank:
                return {}
            return {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}

    def _average(self, names: list[str]) -> dict[str, Tensor]:
        averages = {}
        for name in names:
            full = self._engine.full_average(name)
            if not self._engine.rank:
                averages[name] = full.to(self.dtype).to("cpu", copy=True)
        return averages


Weights = ReplicatedWeights | ShardedWeights


def trained_weights(config: RunConfig, engine: ZeroEngine) -> Weights:
    """As ``adapters`` asks for. Collective."""
    if config.adapters == "full":
        return ShardedWeights(engine, config.method, config.learner.bucket_mb * 2**20)
    return ReplicatedWeights(engine, config.method.teacher_decay, config.source == "fused")
