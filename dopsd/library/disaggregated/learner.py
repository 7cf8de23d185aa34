"""The learner of several concepts: one process with one engine, a thread for each concept in
flight, each by the learner of `dopsd train` with ``source: disaggregated``."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray

from dopsd.checkpoint.learner_state import LearnerState
from dopsd.config import RunConfig
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.planning.plan import Plan
from dopsd.learner.adapter_publisher import AdapterPublisher
from dopsd.learner.learner import Learner, learning_rate
from dopsd.learner.sources import DisaggregatedSource
from dopsd.learner.weights import ReplicatedWeights, Weights
from dopsd.learner.zero.engine import ZeroEngine
from dopsd.library.disaggregated.client import Lane
from dopsd.library.disaggregated.inference import Settings
from dopsd.library.disaggregated.pools import Learnt
from dopsd.library.disaggregated.turns import SharedEngine, Shelf, Turns
from dopsd.library.workers.concept_run import ConceptRun
from dopsd.library.workers.jobs import Job, SavedState, Trained
from dopsd.library.workers.worker import BlocksAhead, LibraryWorker, plan_of_job
from dopsd.models.families.family import DTYPES


class PooledLearner(LibraryWorker):
    """A plain class; ``library/workers/pool.py`` wraps it as an actor with a thread for each place.

    Who has the turn has the engine: from a step's scored micro-batches to the publication of the
    version that it gave. ``pools``: the actor of ``pools.py``.
    """

    fused = False

    def __init__(
        self,
        config: RunConfig,
        preset: dict[str, Any],
        cache: ContextCache,
        device: str,
        pools: Any,
    ) -> None:
        super().__init__(config, preset, cache, device)
        self._pools, self._turns = pools, Turns()
        self._shared: SharedEngine[LearnerState] = SharedEngine()
        self._name = uuid.uuid4().hex
        self._reading = threading.Lock()

    def train(self, job: Job) -> Trained | SavedState:
        """Train a concept beside others, as :meth:`LibraryWorker.train` does and raises."""
        began, engine, config = time.perf_counter(), self._engine, job.config
        assert engine is not None, "load first"
        plan, progress = plan_of_job(job), self._progress_of(job)
        sizes = [plan.step_size(step) for step in range(config.learner.steps)]
        settings = Settings(config.method.weighting)
        pools, timeouts = self._pools, self.config.timeouts
        lane = Lane(pools, job.concept, job.first, sizes, settings, timeouts, progress.waits)
        take_turn = partial(self._turns.take, lane.number, progress.waits)

        take_turn()
        self._shared.clear()
        engine.reset(self._begin)
        run = _PooledRun(config, job.losses, progress, began)

        def resume(step: int) -> None:
            """Have the turn, and the concept in the engine."""
            take_turn()
            started = time.perf_counter()
            self._shared.take_up(shelf)
            engine.set_lr(learning_rate(step, config.learner))  # others have set theirs meanwhile
            run.took_up = time.perf_counter() - started

        blocks = BlocksAhead(partial(self._locked_blocks, plan), config.learner.steps)
        steps = _Steps(lane, run, self._turns.give_back, resume, blocks, self._learnt)
        source = DisaggregatedSource(steps.fetch, self._device, DTYPES[config.model.dtype])
        learner = Learner(config, engine, source, run, steps.publish)
        weights = learner.weights
        assert isinstance(weights, ReplicatedWeights), "adapters: lora, as the library checks"
        shelf = Shelf(
            lambda: weights.state(run.steps or job.first), partial(_restore, engine, weights)
        )
        self._shared.begin(shelf)
        if job.files:
            learner.restore(LearnerState.from_files(job.files))
        whole = learner.run(job.first, config.learner.steps)
        result = self._result(job, run, learner, whole, began)
        # Of a concept that raises nothing is given back: its process is of no use afterwards.
        self._shared.forget(shelf)
        self._turns.give_back()
        lane.close()
        return result

    def _learnt(self, run: _PooledRun) -> Learnt:
        return Learnt(self._name, self._turns.held_seconds, run.learning, run.rest)

    def _locked_blocks(self, plan: Plan, step: int) -> list[tuple[Any, bool]]:
        """As ``_blocks``; whoever reads for another concept is waited for."""
        with self._reading:
            return self._blocks(plan, step)


class _PooledRun(ConceptRun):
    """Also knows what the last step took, in seconds."""

    learning = rest = took_up = 0.0

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        assert metrics["student_lag"] == 0 == metrics["teacher_lag"], "strictly on-policy"
        super().report(step, metrics)
        self.learning = metrics["learner_compute_seconds"]
        self.rest = self.took_up + metrics["learner_publish_seconds"]


class _Steps:
    """What a concept's learner calls: to publish a version, and for the step that it generates.

    ``rest`` gives the turn back, ``resume(step)`` waits for it.
    """

    def __init__(
        self,
        lane: Lane,
        run: _PooledRun,
        rest: Callable[[], None],
        resume: Callable[[int], None],
        blocks: Callable[[int], Iterator[tuple[Any, bool]]],
        learnt: Callable[[_PooledRun], Learnt],
    ) -> None:
        self._lane, self._run, self._rest, self._resume = lane, run, rest, resume
        self._blocks, self._learnt = blocks, learnt
        self._publisher: AdapterPublisher | None = None
        self._padding = 0
        """Micro-batches that the step under way lacks."""

    def publish(self, version: int, weights: Weights) -> CheckpointRequest:
        """Nobody rolls out the last version."""
        assert isinstance(weights, ReplicatedWeights), "adapters: lora, as the library checks"
        config, request = self._run.config, self._run.publish(version, weights)
        if version == config.learner.steps or request.stop:
            return request
        if self._publisher is None:
            self._publisher = AdapterPublisher(config.method, weights, ray.put, speaks=True)
        own = list(self._blocks(version))
        blocks = [block for block, real in own if real]
        self._padding = len(own) - len(blocks)
        self._lane.publish(self._publisher.bundle(version), blocks, self._learnt(self._run))
        return request

    def fetch(self, step: int) -> Iterator[tuple[Any, bool]]:
        """(payload, is real) of the micro-batches of ``step``, the first once more for each that it
        lacks. Others have the engine until all of them are there."""
        self._rest()
        payloads = self._lane.fetch(step)
        self._resume(step)
        yield from ((payload, True) for payload in payloads)
        yield from [(payloads[0], False)] * self._padding


def _restore(engine: ZeroEngine, weights: ReplicatedWeights, state: LearnerState) -> None:
    """Have a concept's state in the engine, whatever another one left there."""
    if not state.updates:  # then it says nothing of the moments: they would be another's
        engine.reset(state.student)
    weights.restore(state)
