"""What drivers and learners call of the coordinator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
)

from dopsd.checkpoint.learner_state import LearnerState, SlicedState, write_state
from dopsd.config import TimeoutSection
from dopsd.coordinator.messages import CheckpointRequest, ObjectRefBox, ResumePoint, Share
from dopsd.errors import DopsdError, WorkerError
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.failures import error_message, unwrap_error
from dopsd.ray_cluster.process import peak_memory_mb
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.timeline import Span

ANSWER_SECONDS = 60.0
"""What the coordinator may take for an answer: it answers from memory."""
_HEARTBEAT_SECONDS = 10.0
"""Between two signs of life of a learner that writes its part of a large checkpoint."""


class CoordinatorLost(WorkerError):
    """The coordinator died, or answers no more."""


def ask(coordinator: Any, method: str, *values: Any, limit: float = ANSWER_SECONDS) -> Any:
    """Call the coordinator. Raises CoordinatorLost, or the coordinator's own DopsdError."""
    try:
        return ray.get(getattr(coordinator, method).remote(*values), timeout=limit)
    except GetTimeoutError:
        raise CoordinatorLost(
            f"coordinator timed out after {limit:g} s while answering {method}"
        ) from None
    except (RayActorError, ActorUnavailableError) as error:
        raise CoordinatorLost(f"coordinator died: {error_message(error)}") from None
    except RayError as error:
        raise unwrap_error(error, "coordinator") from None


def retry(call: Callable[[], Any], patience: float) -> Any:
    """``call()``, once Ray knows a name, or has given it free: for ``patience`` seconds its
    ValueErrors are passed over."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return call()
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


class ActorConnection:
    """How a learner reaches its coordinator, an actor, and the object store. ``limit``: seconds
    after which a call that is not answered asks whether the actor still answers others."""

    def __init__(self, actor: Any, limit: float) -> None:
        self._actor, self._limit = actor, limit
        self._sent: ray.ObjectRef | None = None

    def call(self, method: str, *values: Any) -> Any:
        """Call a method of the coordinator and wait for its answer."""
        answer = getattr(self._actor, method).remote(*values)
        while True:
            try:
                return ray.get(answer, timeout=self._limit)
            except GetTimeoutError:
                # While it is there it has deadlines of its own, and replaces who timed out.
                ray.get(self._actor.error.remote(), timeout=self._limit)

    def send(self, method: str, *values: Any) -> None:
        """Call a method whose answer nobody waits for."""
        self._sent = getattr(self._actor, method).remote(*values)

    def bring(self, refs: list[ray.ObjectRef]) -> None:
        """Let objects come to this node side by side; nobody waits for them here."""
        # What a wait has asked for keeps coming when the wait is over. It takes each ref once, and
        # padding repeats one.
        once = list(dict.fromkeys(refs))
        ray.wait(once, num_returns=len(once), timeout=0, fetch_local=True)

    def get(self, ref: ray.ObjectRef, limit: float) -> Any:
        """Raises ObjectLostError when it is gone, GetTimeoutError after ``limit`` seconds."""
        return ray.get(ref, timeout=limit)

    def put(self, value: Any) -> ray.ObjectRef:
        return ray.put(value)

    def close(self, limit: float) -> None:
        """Wait for what was sent: a process that ends takes its unsent calls along."""
        if self._sent is not None:
            ray.wait([self._sent], timeout=limit)


class CoordinatorClient:
    """What learner ``rank`` of ``world`` says to the coordinator, in the name of its ``attempt``.

    Every rank calls every method; what is of the whole group, rank 0 alone passes on. A learner of
    an attempt that is over gets a WorkerError from each call. ``timeouts`` are those of objects on
    their way; ``checkpoints`` is the folder for what learners write of a checkpoint themselves.
    """

    def __init__(
        self,
        connection: ActorConnection,
        attempt: int,
        rank: int,
        world: int,
        *,
        timeouts: TimeoutSection,
        checkpoints: str,
    ) -> None:
        self._connection, self._attempt = connection, attempt
        self.rank, self.world = rank, world
        self._timeouts, self._checkpoints = timeouts, checkpoints
        self._last_alive = float("-inf")

    def _call(self, method: str, *values: Any) -> Any:
        return self._connection.call(method, self._attempt, *values)

    def enter(self, handle: Any) -> tuple[ResumePoint, dict[str, bytes]]:
        """Say that this learner is there (``handle``: its actor); returns where its group begins,
        and the contents of the checkpoint's files by name."""
        begin: ResumePoint = self._call("enter", self.rank, handle)
        get, limit = self._connection.get, self._timeouts.startup
        return begin, {name: get(box.ref, limit) for name, box in begin.files.items()}

    def fetch(self, step: int) -> Iterator[tuple[Any, bool]]:
        """(payload, is real) of this rank's micro-batches of ``step``, each as soon as it and those
        before it are there; one whose object is lost is awaited once more."""
        number, more = 0, True
        while more:
            share: Share = self._call("fetch", step, self.rank, self.world, number)
            more = share.missing > 0
            self._connection.bring([box.ref for box in share.boxes])
            for box in share.boxes:
                try:
                    payload = self._connection.get(box.ref, self._timeouts.step)
                except ObjectLostError:
                    self._call("lost", step, box.index, box.losses)
                    more = True
                    break
                number += 1
                yield payload, box.real

    def put(self, payload: Any) -> Any:
        """Store bytes; returns their reference."""
        return self._connection.put(payload)

    def publish(self, bundle: Bundle) -> CheckpointRequest:
        """Publish a version; returns what the coordinator wants of the group now."""
        request: CheckpointRequest = CheckpointRequest()
        if self.rank == 0:
            request = self._call("publish", bundle)
        return request

    def save(
        self, state: LearnerState | SlicedState, gather: Callable[[Any], Sequence[Any]]
    ) -> None:
        """Have a checkpoint written of ``state``, of which references travel; slices are written
        here. Collective.

        ``gather`` collects a value of every rank on all of them.
        """
        if isinstance(state, SlicedState):
            written = write_state(
                state, self._checkpoints, self.rank, self.world, gather, self.alive
            )
            if self.rank == 0:
                self._call("save", state.step, {}, written)
        elif self.rank == 0:
            # As arrays: those are read in the store, and no reader has a copy.
            files = {
                name: ObjectRefBox(self.put(np.frombuffer(data, np.uint8)), True)
                for name, data in state.to_files().items()
            }
            self._call("save", state.step, files)

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """The metrics of a finished step, with this process's peak memory."""
        if self.rank == 0:
            self._call("report", step, {**metrics, "learner_peak_memory_mb": peak_memory_mb()})

    def record(self, step: int, share: TrainedShare) -> None:
        """What this rank put into ``step``, for the ledger."""
        self._call("record", step, share)

    def write(self, name: str, payload: bytes) -> None:
        """Write a file into the run folder."""
        self._call("write", name, payload)

    def tell(self, spans: list[Span]) -> None:
        """Hand spans to the run's timeline; nobody waits for it."""
        self._connection.send("tell", spans)

    def alive(self) -> None:
        """A sign of life, however often it is asked for: at most one every few seconds."""
        if time.monotonic() - self._last_alive > _HEARTBEAT_SECONDS:
            self._call("alive")
            self._last_alive = time.monotonic()

    def fail(self, error: DopsdError) -> None:
        """End the run with ``error``, which no restart mends."""
        # What a call to the coordinator raised comes in Ray's wrapping, which is no argument; of a
        # learner whose attempt is over nobody listens.
        with contextlib.suppress(RayError, DopsdError):
            self._call("fail", unwrap_error(error, f"learner {self.rank}"))

    def record_death(self, error: Exception) -> None:
        """Say what this learner dies of, which a restart may mend."""
        with contextlib.suppress(RayError, DopsdError):
            self._call("record_death", self.rank, error_message(error))
