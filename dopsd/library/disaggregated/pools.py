"""The pools that all concepts in flight share, and the flow of micro-batches through them, as one
actor: learners publish to it and fetch from it. Only references pass through."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.config import RunConfig
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.errors import DopsdError, WorkerError, message_line
from dopsd.library.disaggregated.flow import Flow, Ticket
from dopsd.library.disaggregated.in_flight import Shape, StepTimes
from dopsd.library.disaggregated.inference import ConceptWorker, Settings
from dopsd.library.disaggregated.inference_pool import Failed, InferencePool, Served
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.lost_nodes import LeavingNodes
from dopsd.ray_cluster.placement import Roles

_WAIT_SECONDS = 0.05
"""After which calls are looked at that were submitted meanwhile."""


@dataclass(frozen=True)
class Learnt:
    """What a learner says of its last step, beside the next version."""

    learner: str
    held_seconds: float
    """In which it worked for any concept since it began."""
    seconds: float = 0.0
    """Of the step's computing; 0: there was none yet."""
    rest: float = 0.0
    """To take the concept up, and to publish."""


@dataclass(frozen=True)
class PoolsStatus:
    """How the pools are, for the library's command."""

    error: DopsdError | None
    """What no other attempt at a concept would mend."""
    missing: tuple[str, ...]
    """Roles of which no worker has loaded the base yet."""
    held_seconds: float
    """In which learners worked."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of its workers' time in which each role computed."""
    per_learner: int | None = None
    """Concepts that keep a learner busy, once that is known."""


class SharedPools:
    """A plain class; :func:`launch_pools` makes it an actor of several threads. ``worker``: of the
    pools' actors."""

    def __init__(self, config: RunConfig, roles: Roles, worker: type = ConceptWorker) -> None:
        self.config = config
        self._changed = threading.Condition()
        self._error: DopsdError | None = None
        self._pools = [
            InferencePool(worker, config, role, adapters, method)
            for role, adapters, method in _stages(roles)
        ]
        self._leaving = LeavingNodes()
        self._flow = Flow(len(self._pools))
        self._held: dict[str, float] = {}
        self._times = StepTimes()
        threading.Thread(target=self._drive, daemon=True).start()

    # -- learners --------------------------------------------------------------------------

    def open(self, concept: str, first: int, sizes: Sequence[int], settings: Settings) -> int:
        """As :meth:`Flow.open`."""
        with self._changed:
            self._require()
            return self._flow.open(concept, first, sizes, settings)

    def publish(
        self, lane: int, bundle: Bundle, blocks: Sequence[ObjectRefBox], learnt: Learnt
    ) -> None:
        """A version of a concept's adapters, with the encoded micro-batches of the step that it
        generates. What a worker is free for goes to it at once."""
        with self._changed:
            self._require()
            self._held[learnt.learner] = learnt.held_seconds
            if learnt.seconds:
                self._times.learned(learnt.seconds, learnt.rest)
            self._flow.publish(lane, bundle.version, bundle, [box.ref for box in blocks])
            self._dispatch()
            self._changed.notify_all()

    def fetch(self, lane: int, step: int, patience: float) -> list[ObjectRefBox] | None:
        """The scored micro-batches of a step, when all of them are ready; None after ``patience``
        seconds. Raises the concept's error, or that of the pools."""
        until = time.monotonic() + patience
        with self._changed:
            while True:
                self._require()
                if (items := self._flow.results(lane, step)) is not None:
                    return [
                        ObjectRefBox(item.result, True, item.ticket.part, item.lost)
                        for item in items
                    ]
                if (left := until - time.monotonic()) <= 0:
                    return None
                self._changed.wait(left)

    def lost(self, lane: int, step: int, index: int, lost: int) -> None:
        """The object of a scored micro-batch is gone: it is generated again."""
        with self._changed:
            self._flow.lose(Ticket(lane, step, index), lost)
            self._dispatch()

    def close(self, lane: int) -> None:
        """The concept of a lane is done, or has failed."""
        with self._changed:
            self._flow.close(lane)
            self._changed.notify_all()

    # -- the library's command -------------------------------------------------------------

    def drop(self, concept: str) -> None:
        """The learner of a concept is no more."""
        with self._changed:
            self._flow.drop(concept)
            self._changed.notify_all()

    def status(self) -> PoolsStatus:
        with self._changed:
            sizes = {pool.role.name: pool for pool in self._pools}
            micro_batches = self.config.learner.micro_batches
            shapes = {name: Shape(micro_batches, pool.here) for name, pool in sizes.items()}
            busy = {
                name: min(1.0, pool.busy_seconds / there) if (there := pool.there_seconds) else 0.0
                for name, pool in sizes.items()
            }
            return PoolsStatus(
                self._error,
                tuple(pool.role.name for pool in self._pools if not pool.here),
                sum(self._held.values()),
                busy,
                self._times.per_learner(shapes),
            )

    def stop(self) -> None:
        """End the pools' actors."""
        with self._changed:
            self._error = self._error or WorkerError("the library's pools have ended")
            self._changed.notify_all()
            for pool in self._pools:
                pool.stop()

    # -- the thread ------------------------------------------------------------------------

    def _require(self) -> None:
        if self._error is not None:
            raise self._error

    def _drive(self) -> None:
        while self._error is None:
            try:
                self._advance()
            except Exception as error:  # or learners would wait for ever
                named = error if isinstance(error, DopsdError) else WorkerError(message_line(error))
                with self._changed:
                    self._error = self._error or named
                    self._changed.notify_all()

    def _advance(self) -> None:
        """Hand out what waits, and take in what has ended meanwhile."""
        leaving = self._leaving.look()  # without the lock: a cluster may be slow to answer
        with self._changed:
            for pool in self._pools:
                pool.move(leaving)
            self._dispatch()
            pending = [ref for pool in self._pools for ref in pool.pending()]
            if not pending:
                self._changed.wait(_WAIT_SECONDS)
                return
        ray.wait(pending, timeout=_WAIT_SECONDS, fetch_local=False)
        with self._changed:
            self._collect()

    def _dispatch(self) -> None:
        """Every free worker gets the oldest micro-batch that waits for its stage."""
        for stage, pool in enumerate(self._pools):
            while (item := self._flow.oldest(stage)) is not None:
                worker = pool.free((item.ticket.lane, item.bundle.version))
                if worker is None:
                    break
                pool.submit(worker, self._flow.take(stage))

    def _collect(self) -> None:
        for pool in self._pools:
            for event in pool.collect():
                if isinstance(event, Served):
                    self._times.served(pool.role.name, event.seconds)
                    self._flow.passed(event.ticket, event.result)
                elif isinstance(event, Failed):
                    self._flow.fail(event.ticket, event.why)
                else:
                    self._flow.again(event.ticket, event.why, event.blamed)
                self._changed.notify_all()


def _stages(roles: Roles) -> list[tuple[Any, tuple[str, ...], str]]:
    """(role, its adapters, its method) in the order in which a micro-batch passes them."""
    assert roles.rollout is not None, "on-policy, as the library checks"
    if roles.teacher is None:
        return [(roles.rollout, (STUDENT, TEACHER), "generate_and_score")]
    return [(roles.rollout, (STUDENT,), "generate"), (roles.teacher, (TEACHER,), "score")]


def launch_pools(
    config: RunConfig, roles: Roles, threads: int, worker: type = ConceptWorker
) -> Any:
    """The actor, beside the command, with which it lives and dies; ``threads``: learners' calls
    that may wait at a time."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(SharedPools)
    options = actor.options(num_cpus=0, max_concurrency=threads, scheduling_strategy=here)
    return options.remote(config, roles, worker)
