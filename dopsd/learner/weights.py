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
    scalars,
    updates_taken,
)
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import cut
from dopsd.policy.flat import FlatLayout


class ReplicatedWeights:
    """A LoRA, with a few modules perhaps: small enough that every rank holds all of it as it is
    computed with. The fp32 masters are the optimizer's, and the teacher's average lies beside
    AdamW's moments.

    ``fused``: the engine has a teacher adapter of its own.
    """

    def __init__(self, engine: ZeroEngine, decay: float, fused: bool) -> None:
        self._engine, self.decay, self._fused = engine, decay, fused
        self.layout = engine.layout()
        self._bound = False
        engine.start_average()

    @property
    def teacher_moves(self) -> bool:
        """Whether the teacher is another one after an update."""
        return self.decay < 1.0

    def update(self) -> None:
        """Follow an update of the optimizer: each rank for its own part."""
        if self.teacher_moves:
            self._engine.update_average(1.0 - self.decay)

    def nonfinite(self) -> str:
        """A tensor that holds infinity or nan, in words; empty when all are finite. The teacher's
        average is among the optimizer's state. Collective."""
        return self._engine.nonfinite()

    def bind_teacher(self) -> None:
        """A fused learner's teacher adapter takes the teacher's weights. Collective."""
        if self._fused and (self.teacher_moves or not self._bound):
            self._engine.write_teacher()
            self._bound = True

    def flat(self, adapter: str) -> Tensor:
        """Student or teacher as ``layout`` says, on the device; what is sharded is whole on rank 0
        alone. Collective."""
        return self._engine.flat_student() if adapter == STUDENT else self._engine.flat_average()

    def full(self, adapter: str) -> dict[str, Tensor]:
        """The same in fp32 on the CPU of every rank, for files. Collective."""
        if adapter == TEACHER:
            return self._engine.full_average()
        return self._engine.full_weights(STUDENT)

    def state(self, step: int) -> LearnerState:
        """Everything that a learner needs to resume at ``step``. Collective."""
        updates, moments = optimizer_state(self._engine.zero, self._engine.trained())
        return LearnerState(
            step,
            self.full(STUDENT),
            self.full(TEACHER),
            updates,
            moments,
            scalars=scalars(self._engine.zero),
        )

    def restore(self, state: LearnerState) -> None:
        """Inverse of :meth:`state`; every rank is given all of it. Collective."""
        self._engine.restore(state.student, state.updates, state.moments, state.scalars)
        self._engine.start_average()  # anew: the optimizer's state is another one
        self._engine.set_average(state.ema)
        self._bound = False


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
        self.shapes = engine.layout().shapes
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

    def flats(self, adapter: str) -> Iterator[tuple[FlatLayout, Tensor]]:
        """The buckets of student or teacher in turn, and how they lie, on the device; of
        what is sharded whole on rank 0 alone. Collective: every rank has to take all of them."""
        averaged = adapter == TEACHER and self.averages
        flat = self._engine.flat_average if averaged else self._engine.flat_student
        for names in self.buckets:
            # Nothing here may hold a bucket while the next one is gathered.
            yield self._layout(names), flat(names)

    def gather(self, adapter: str) -> Iterator[dict[str, Tensor]]:
        """The same as tensors by name, on rank 0's CPU and empty elsewhere."""
        for layout, flat in self.flats(adapter):
            whole = {} if self._engine.rank else layout.views(flat)
            yield {name: tensor.to("cpu", copy=True) for name, tensor in whole.items()}
            del flat, whole

    def _layout(self, names: list[str]) -> FlatLayout:
        return FlatLayout({name: self.shapes[name] for name in names}, self.dtype)


Weights = ReplicatedWeights | ShardedWeights


def trained_weights(config: RunConfig, engine: ZeroEngine) -> Weights:
    """As ``adapters`` asks for. Collective."""
    if config.adapters == "full":
        return ShardedWeights(engine, config.method, config.learner.bucket_mb * 2**20)
    return ReplicatedWeights(engine, config.method.teacher_decay, config.source == "fused")
