"""A pool of inference actors of one role: placement, weights, restarts, deadlines."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from dopsd.config import RunConfig
from dopsd.coordinator.admission import Key
from dopsd.coordinator.direct_transport import DirectTransport, lost_on_the_way
from dopsd.coordinator.pooled_worker import Call, Drawing, Finished, PooledWorker
from dopsd.errors import DeadlineError, DopsdError, WorkerError
from dopsd.policy.bundle import Bundle, check_acknowledgement
from dopsd.ray_cluster.failures import error_message
from dopsd.ray_cluster.lost_nodes import node_of, on_lost_nodes
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.task import fetch_bytes
from dopsd.rollout.worker import InferenceWorker
from dopsd.run_folder.timeline import Span

_log = logging.getLogger(__name__)
_DOING = {
    "generate": "generating",
    "score": "scoring",
    "generate_and_score": "generating and scoring",
    "teach": "scoring",
}
"""What a worker is doing, by the method that it was called by."""
_RETRY_PAUSE = 1.0
"""Seconds between two attempts to load weights that are gone."""


class WorkerPool:
    """Actors of one ``role`` that answer ``method``; driven by one thread.

    A worker has ``inference.max_inflight`` calls queued at once. When one of them times out, or the
    worker dies, it is killed and restarted, ``inference.max_restarts`` times at most, those not
    counted that were lost with their node. ``direct``: its actors can take part in a
    ``direct_transport``.
    """

    def __init__(
        self,
        config: RunConfig,
        role: Role,
        adapters: tuple[str, ...],
        method: str,
        direct: bool = False,
    ) -> None:
        self.config, self.role, self.adapters, self.method = config, role, adapters, method
        self.events = 0
        """Calls that ended and restarts: tells whether anything moves."""
        self._spans: list[Span] = []
        self.lost_objects: set[str] = set()
        """Ids of inputs that the object store has lost for good."""
        self.direct_transport: DirectTransport | None = None
        """Where states go from device to device, to or from this pool."""
        self._sent = 0
        self._again: list[Key] = []
        """Keys of calls behind a picture, lost with it."""
        # As an argument of `options` Ray would accept it, and ignore it.
        switched: Any = {"enable_tensor_transport": True}
        # A class of the role's name: Ray's process titles and its dashboard tell roles apart.
        worker = type(f"{role.name.capitalize()}Worker", (InferenceWorker,), {})
        actor: Any = (ray.remote(**switched) if direct else ray.remote)(worker)
        self._actor = actor.options(**role.options, max_restarts=0)
        self.workers = [
            PooledWorker(f"{role.name}-{i}", self._launch()) for i in range(role.workers)
        ]

    def _launch(self) -> Any:
        return self._actor.remote(self.config, self.role.device, self.adapters)

    def load(self, bundle: Bundle, most: int) -> None:
        """Let workers load ``bundle`` until ``most`` of them have it or are about to.

        Those with the fewest calls do, of idle ones those that are up. Call order on an actor is
        submission order: weights change only between trajectories, and this may be asked for while
        older ones are drawn.
        """
        having = sum((worker.loading or worker.bundle) is bundle for worker in self.workers)
        if having >= min(most, len(self.workers)):
            return
        now = time.monotonic()
        others = [
            worker
            for worker in self.workers
            if worker.loading is None and worker.bundle is not bundle and now >= worker.retry_after
        ]
        others.sort(key=lambda worker: (worker.queued, worker.loaded < 0))
        for worker in others[: most - having]:
            ack = self._load(worker, bundle)
            worker.calls.append(Call(None, bundle, ack, None, time.monotonic()))

    def free_worker(self, bundle: Bundle) -> PooledWorker | None:
        """The worker with the fewest calls of those that have acknowledged ``bundle``, if one of
        them has room for another."""
        if self.opening:
            return None
        able = [
            worker
            for worker in self.workers
            if worker.bundle is bundle
            and worker.loading is None
            and len(worker.calls) < self.config.inference.max_inflight
        ]
        return min(able, key=lambda worker: worker.queued, default=None)

    def _load(self, worker: PooledWorker, bundle: Bundle) -> ray.ObjectRef:
        if bundle.streamed:
            # References inside a bundle are not resolved on the way: a bucket at a time is enough.
            return worker.handle.load_buckets.remote(bundle, fetch_bytes)
        bound = worker.bundle.checksums if worker.bundle else {}
        payloads = (
            None if bound.get(adapter) == bundle.checksums[adapter] else bundle.refs[adapter]
            for adapter in self.adapters
        )
        return worker.handle.load.remote(bundle.version, *payloads)

    def submit(
        self, worker: PooledWorker, key: Key, bundle: Bundle, *inputs: ray.ObjectRef
    ) -> None:
        """Queue one micro-batch on ``worker`` under ``bundle``; inputs are passed by reference."""
        if (
            self.method == "generate"
            and self.direct_transport is not None
            and self.direct_transport.is_open
        ):
            try:
                worker.calls.append(self._submit_direct(worker, key, bundle, *inputs))
                return
            except (ValueError, RayError) as error:
                self.direct_transport.close(error_message(error))
        method = getattr(worker.handle, self.method).options(num_returns=2)
        result, stats = method.remote(bundle.version, *inputs)
        worker.calls.append(Call(key, bundle, stats, result, time.monotonic()))

    def _submit_direct(
        self, worker: PooledWorker, key: Key, bundle: Bundle, block: ray.ObjectRef
    ) -> Call:
        """A rollout whose states stay on the device until another actor takes them."""
        assert self.direct_transport is not None
        self._sent += 1
        send = worker.handle.send.options(tensor_transport=self.direct_transport.backend)
        stash = worker.handle.generate_and_keep.options(num_returns=2)
        result, stats = stash.remote(bundle.version, block, self._sent)
        states = send.remote(self._sent)
        return Call(key, bundle, stats, result, time.monotonic(), states)

    def draw(
        self,
        worker: PooledWorker,
        version: int,
        number: int,
        student: ray.ObjectRef,
        context: ray.ObjectRef,
        size: tuple[int, int],
    ) -> Drawing:
        """Have a worker that has no call draw an own prompt under the weights of ``student``."""
        method = worker.handle.draw.options(num_returns=2)
        result, stats = method.remote(version, student, context, number, size)
        worker.drawing = Drawing(version, number, stats, result, time.monotonic())
        return worker.drawing

    def end_drawing(self, worker: PooledWorker, seconds: float | None = None) -> None:
        """The worker has drawn, in ``seconds``, or failed to: what waits behind it begins."""
        drawing, worker.drawing = worker.drawing, None
        if drawing is not None and seconds is not None:
            self._note(worker, "draw", drawing.version, seconds)
        if worker.calls:
            worker.calls[0].started = time.monotonic()

    def replace(self, worker: PooledWorker, reason: DopsdError) -> None:
        """Restart a worker that did not do what its pool is for, which charges it nothing. What it
        had beside is generated again."""
        self._again += self._restart(worker, reason)

    @property
    def opening(self) -> bool:
        """Whether the direct transport is not there yet."""
        return self.direct_transport is not None and self.direct_transport.opening()

    def starting(self) -> bool:
        """Whether a worker loads its first weights, or none has any yet, or a transport opens."""
        new = [worker for worker in self.workers if worker.loaded < 0]
        return self.opening or len(new) == len(self.workers) or any(worker.calls for worker in new)

    def pending(self) -> list[ray.ObjectRef]:
        """References that become ready when something has happened."""
        return [call.done for worker in self.workers for call in worker.calls]

    def collect(self) -> tuple[list[Finished], list[Key]]:
        """Take in whatever has ended: finished micro-batches, and keys to be generated again.

        Raises WorkerError with a worker's own message, AcknowledgementError for wrong weights,
        DeadlineError when a worker timed out and its restart budget is exhausted.
        """
        finished: list[Finished] = []
        retry, self._again = self._again, []
        ready = self._ready()
        for worker in self.workers:
            while worker.calls:
                call = worker.calls[0]
                if call.done not in ready:
                    late = time.monotonic() - call.started > self._deadline(worker)
                    if late and worker.drawing is None:
                        retry += self._restart(worker, self._timed_out(worker, call))
                    break
                try:
                    value = ray.get(call.done)
                except RayTaskError as error:
                    retry += self._failed(worker, error)
                    continue
                except RayError as error:
                    died = WorkerError(f"{worker.name} died: {error_message(error)}")
                    if getattr(error, "actor_init_failed", False):
                        raise died from None
                    retry += self._restart(worker, died)
                    break
                finished += self._ended(worker, value)
        return finished, retry

    def _ready(self) -> set[ray.ObjectRef]:
        """What has ended, by one question for all workers."""
        pending = self.pending()
        if not pending:
            return set()
        ended, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        return set(ended)

    def _failed(self, worker: PooledWorker, error: RayTaskError) -> list[Key]:
        """The worker's first call raised; returns what has to be generated again.

        Raises WorkerError unless an input was lost with the process or node that held it.
        """
        if self.direct_transport is not None and lost_on_the_way(error):
            self.direct_transport.close(f"{worker.name} waited for states in vain")
        elif not isinstance(error.cause, RayError):
            _log.error("%s: %s", worker.name, error)  # with the worker's frames
            raise WorkerError(f"{worker.name}: {error_message(error)}") from None
        if isinstance(error.cause, ObjectLostError):
            self.lost_objects.add(error.cause.object_ref_hex)
        call = worker.calls.pop(0)
        if call.key is None:  # weights of a learner that died: its successor's follow
            worker.bundle = None
            worker.retry_after = time.monotonic() + _RETRY_PAUSE
            return []
        return [] if call.dropped else [call.key]

    def _ended(self, worker: PooledWorker, value: Any) -> list[Finished]:
        """The worker's first call has ended with ``value``: an acknowledgement or stats."""
        call = worker.calls.pop(0)
        self.events += 1
        if worker.calls:
            worker.calls[0].started = time.monotonic()
        if call.key is None:
            check_acknowledgement(call.bundle, value, worker.name)
            self._note_load(worker, call)
            worker.loaded = call.bundle.version
            worker.bundle = None if call.dropped else call.bundle
            return []
        assert call.result is not None
        worker.busy_seconds += value["seconds"]
        worker.peak_memory_mb = max(worker.peak_memory_mb, value["peak_memory_mb"])
        self._note(worker, self.method, call.key[0], value["seconds"])
        return [] if call.dropped else [Finished(call.key, call.result, call.states)]

    def reset(self) -> None:
        """The run is rewound: drop what is under way when it ends, and load weights anew."""
        for worker in self.workers:
            worker.bundle = None
            for call in worker.calls:
                call.dropped = True

    def drain_spans(self) -> list[Span]:
        """What the workers have done since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def _note(self, worker: PooledWorker, task: str, step: int, seconds: float) -> None:
        """A task that ended just now, in this process's clock: a worker's may differ."""
        now = time.time()
        # An answer may be noticed late: a worker does one task at a time.
        started = max(now - seconds, worker.noted_until)
        worker.noted_until = now
        self._spans.append(Span(worker.name, task, step, started, now))

    def _note_load(self, worker: PooledWorker, call: Call) -> None:
        first = worker.loaded < 0
        task, began = ("start up", worker.launched) if first else ("load weights", call.started)
        self._note(worker, task, call.bundle.version, time.monotonic() - began)

    def doing(self) -> str:
        """What each worker is doing, for progress and for the message of a deadline."""
        return ", ".join(f"{worker.name}: {self._doing(worker)}" for worker in self.workers)

    def stop(self) -> None:
        for worker in self.workers:
            ray.kill(worker.handle)

    def _doing(self, worker: PooledWorker) -> str:
        if (drawing := worker.drawing) is not None:
            picture = f"prompt {drawing.number + 1} after {drawing.version} steps"
            return f"drawing {picture} for {time.monotonic() - drawing.started:.0f} s"
        if not worker.calls:
            return "idle" if worker.loaded >= 0 else "waiting for weights"
        call = worker.calls[0]
        return f"{self._task(worker, call)} for {time.monotonic() - call.started:.0f} s"

    def _task(self, worker: PooledWorker, call: Call) -> str:
        if call.key is None:
            return "starting up" if worker.loaded < 0 else f"loading version {call.bundle.version}"
        return f"{_DOING[self.method]} step {call.key[0]} micro-batch {call.key[1]}"

    def _deadline(self, worker: PooledWorker) -> float:
        timeouts = self.config.timeouts
        return timeouts.startup if worker.loaded < 0 else timeouts.step

    def _timed_out(self, worker: PooledWorker, call: Call) -> DeadlineError:
        key = "timeouts.startup" if worker.loaded < 0 else "timeouts.step"
        return DeadlineError(
            f"{worker.name} timed out after {time.monotonic() - call.started:.0f} s while "
            f"{self._task(worker, call)} ({key}={self._deadline(worker):g})"
        )

    def _restart(self, worker: PooledWorker, reason: DopsdError) -> list[Key]:
        calls, drawing = worker.calls, worker.drawing
        keys = [call.key for call in calls if call.key and not call.dropped]
        if calls:
            step = next((call.key[0] for call in calls if call.key), calls[0].bundle.version)
            self._note(worker, "lost", step, time.monotonic() - calls[0].started)
        if drawing is None:
            worker.died_on.append(node_of(worker.handle))
        # A node's end is no fault of the worker's. It may be known only some seconds later, so that
        # all are judged anew.
        charged = len(worker.died_on) - on_lost_nodes(worker.died_on)
        budget = self.config.inference.max_restarts
        if charged > budget:
            raise type(reason)(
                f"{reason}; restart budget exhausted (inference.max_restarts={budget})"
            )
        ray.kill(worker.handle)
        if self.direct_transport is not None and self.direct_transport.grouped:
            self.direct_transport.close(
                f"{worker.name} was restarted, and its group cannot take it in again"
            )
        worker.handle, worker.loaded, worker.calls = self._launch(), -1, []
        worker.bundle = worker.drawing = None
        worker.launched = time.monotonic()
        worker.restarts += 1
        self.events += 1
        return keys
