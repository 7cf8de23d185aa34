"""The learner loop: takes the micro-batches of step s, steps, publishes version s + 1.

It knows only training terms; where they come from is a source's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from dopsd.checkpoint.learner_state import LearnerState, SlicedState
from dopsd.checkpoint.slices import SliceReader
from dopsd.config import LearnerSection, RunConfig
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.errors import WorkerError
from dopsd.learner.weights import Weights, trained_weights
from dopsd.learner.zero.engine import ZeroEngine
from dopsd.method.objective import state_loss
from dopsd.method.terms import Terms
from dopsd.records import SampleInfo
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.timeline import Span


@dataclass
class LearnerMicroBatch:
    """One micro-batch of a rank: its terms, and whose they are."""

    terms: Terms
    info: SampleInfo
    real: bool
    """False for zero-weight padding."""
    policy_version: int
    teacher_version: int
    encode_stats: dict[str, Any]


@dataclass
class StepResult:
    """What one rank did in one optimizer step."""

    loss: float
    """This rank's share of the global batch's loss."""
    preservation_loss: float
    """Of it, what held class words to the base."""
    compute_seconds: float
    encode_seconds: float
    """Spent upstream on this rank's micro-batches."""
    last: LearnerMicroBatch
    trained: dict[int, tuple[str, ...]]
    """Sample ids of the real micro-batches, by position within the step."""


def learning_rate(step: int, learner: LearnerSection) -> float:
    """Linear warm-up over ``warmup_steps``, then constant or cosine to zero at ``steps``."""
    if step < learner.warmup_steps:
        return learner.lr * (step + 1) / learner.warmup_steps
    if learner.schedule == "constant":
        return learner.lr
    span = max(1, learner.steps - learner.warmup_steps)
    return learner.lr * 0.5 * (1 + math.cos(math.pi * (step - learner.warmup_steps) / span))


class LearnerClient(Protocol):
    """To whom a learner reports; ``coordinator/client.py`` says what each call means."""

    def record(self, step: int, share: TrainedShare) -> None: ...

    def report(self, step: int, metrics: dict[str, Any]) -> None: ...

    def tell(self, spans: list[Span]) -> None: ...

    def save(
        self, state: LearnerState | SlicedState, gather: Callable[[Any], Sequence[Any]]
    ) -> None: ...


class Learner:
    """One rank of the optimizer.

    ``source(step)`` yields this rank's micro-batches, equally many on every rank. ``publish`` takes
    each version and its weights, on every rank; all else of the outside world is ``client``.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: ZeroEngine,
        source: Callable[[int], Iterator[LearnerMicroBatch]],
        client: LearnerClient,
        publish: Callable[[int, Weights], CheckpointRequest],
    ) -> None:
        self.config, self.engine, self._client = config, engine, client
        self._source, self._publish = source, publish
        self._spans: list[Span] = []
        self._nonfinite = 0
        self.weights = trained_weights(config, engine)

    def restore(self, state: LearnerState | SliceReader) -> None:
        """Resume from a checkpoint; every rank is given all of it, or where it lies. Collective."""
        weights: Any = self.weights  # whose kind is the state's: the config is the checkpoint's
        weights.restore(state)
        skipped = state.meta["skipped"] if isinstance(state, SliceReader) else state.skipped
        self._nonfinite = int(skipped)

    def run(self, start: int, stop: int) -> bool:
        """Train steps [start, stop), or until the coordinator wants an end; True when all are done.

        The initial weights are published as version ``start``. Raises WorkerError when weights are
        not finite, when more than ``learner.max_nonfinite`` steps in a row had gradients that are
        not, and when the last step was such a one: nobody has seen that the weights still work.
        """
        self._hand_over(start)
        for step in range(start, stop):
            began = time.perf_counter()
            lr = learning_rate(step, self.config.learner)
            self.engine.set_lr(lr)
            done = self._step(step)
            waited = time.perf_counter() - began - done.compute_seconds
            skipped = self.engine.skipped()
            if not skipped:
                self.weights.update()
            trained = time.perf_counter()
            self._record(step, done, skipped)
            request = self._hand_over(step + 1)
            self._note("publish", step, time.perf_counter() - began - done.compute_seconds - waited)
            self._client.tell(self._spans)
            self._spans = []
            loss, preserved, encode_seconds, save, end = self.engine.sum_over_ranks(
                [
                    done.loss,
                    done.preservation_loss,
                    done.encode_seconds,
                    float(request.save),
                    float(request.stop),
                ]
            )
            now = time.perf_counter()
            losses = {"loss": loss, "grad_norm": self.engine.grad_norm()}
            if self.config.data.preservation.words:
                losses["preservation_loss"] = preserved
            if (found := self.engine.found_rate()) is not None:
                losses["effective_lr"] = found
            metrics = {
                # JSON knows no nan: a step that was skipped has neither loss nor norm.
                **({} if skipped else losses),
                "skipped": skipped,
                "lr": lr,
                "learners": self.engine.world,
                "samples": done.last.info.step_samples,
                "samples_per_second": done.last.info.step_samples / (now - began),
                "student_lag": step - done.last.policy_version,
                "teacher_lag": step - done.last.teacher_version,
                "learner_seconds": now - began - waited,
                "learner_compute_seconds": done.compute_seconds,
                "learner_publish_seconds": now - trained,
                "learner_wait_seconds": waited,
                "learner_idle_fraction": waited / (now - began),
                "encoder_seconds": encode_seconds,
                "encoder_peak_memory_mb": done.last.encode_stats.get("peak_memory_mb", 0.0),
            }
            self._client.report(step, metrics)
            if save:
                state = replace(self.weights.state(step + 1), skipped=self._nonfinite)
                self._client.save(state, self.engine.gather)
            if end:
                return False
        if self._nonfinite:
            raise WorkerError(
                f"the last {self._nonfinite} of {stop} steps were skipped, loss or gradients are "
                "not finite: nothing is exported; allowed: a lower learner.lr, or more "
                "learner.steps; skipped.jsonl names their samples"
            )
        return True

    def _record(self, step: int, done: StepResult, skipped: bool) -> None:
        last = done.last
        self._client.record(
            step,
            TrainedShare(
                self.engine.rank,
                self.engine.world,
                done.trained,
                last.policy_version,
                last.teacher_version,
                skipped,
            ),
        )
        self._nonfinite = self._nonfinite + 1 if skipped else 0
        if self._nonfinite > self.config.learner.max_nonfinite:
            raise WorkerError(
                f"step {step}: loss or gradients are not finite, {self._nonfinite} steps in a row "
                f"(learner.max_nonfinite: {self.config.learner.max_nonfinite}); skipped.jsonl "
                "names their samples"
            )

    def _step(self, step: int) -> StepResult:
        loss: Tensor | float = 0.0
        preserved: Tensor | float = 0.0
        compute, encode, updated, last = 0.0, 0.0, False, None
        trained = {}
        for micro in self._source(step):
            began = time.perf_counter()
            part, kept, updated = self._accumulate(micro)
            loss, preserved = loss + part, preserved + kept
            compute += (seconds := time.perf_counter() - began)
            self._note("train", step, seconds)
            self._note_encoding(micro, step)
            encode += micro.encode_stats.get("seconds", 0.0) if micro.real else 0.0
            last = micro
            if micro.real:
                trained[micro.info.index] = micro.info.sample_ids
        assert updated and last is not None, f"step {step}: wrong number of backward passes"
        began = time.perf_counter()
        value = float(loss)  # a GPU that is still at work is waited for here, once in a step
        compute += time.perf_counter() - began
        return StepResult(value, float(preserved), compute, encode, last, trained)

    def _note(self, task: str, step: int, seconds: float) -> None:
        """A task of this learner that ended just now."""
        now = time.time()
        self._spans.append(Span(f"learner-{self.engine.rank}", task, step, now - seconds, now))

    def _note_encoding(self, micro: LearnerMicroBatch, step: int) -> None:
        """What its encoder, which speaks to nobody else, did for a micro-batch."""
        stats = micro.encode_stats
        if micro.real and "ended" in stats:
            began = stats["ended"] - stats["seconds"]
            lane = f"encoder:{stats['worker']}"
            self._spans.append(Span(lane, "encode", step, began, stats["ended"]))

    def _accumulate(self, micro: LearnerMicroBatch) -> tuple[Tensor | float, Tensor | float, bool]:
        """Backward at each state on its own, so that one state's activations are alive. Returns the
        loss and of it what preserves, float64 where they were computed: reading them would wait for
        the device; and whether the weights were updated."""
        total: Tensor | float = 0.0
        preserved: Tensor | float = 0.0
        updated = False
        states = self.config.method.steps
        velocity: Tensor | None = None
        while True:
            try:
                term = next(micro.terms) if velocity is None else micro.terms.send(velocity)
            except StopIteration:
                return total, preserved, updated
            velocity = self.engine.velocity(
                term.state, term.sigma.expand(len(term.state)), term.context.tensors
            )
            losses = state_loss(velocity, term.target, term.weight, term.mask)
            loss = losses.sum() * (float(micro.real) / (micro.info.step_samples * states))
            updated = self.engine.backward(loss)
            total = total + loss.detach().double()
            if term.preserves:
                preserved = preserved + loss.detach().double()
            velocity = velocity.detach()

    def _hand_over(self, version: int) -> CheckpointRequest:
        """Publish (student, EMA) as ``version``; a fused learner's teacher adapter follows.

        What is saved or exported of a version has been published: all of it is looked at here.
        """
        if name := self.weights.nonfinite():
            lr = learning_rate(max(0, version - 1), self.config.learner)
            raise WorkerError(
                f"step {version}: weights are not finite ({name}), and so neither published, saved "
                f"nor exported; likely a learning rate that is too large (learner.lr, {lr:g} at "
                "this step) or gradients that overflow (learner.max_grad_norm)"
            )
        self.weights.bind_teacher()
        return self._publish(version, self.weights)
