"""A pool of inference actors of one role: placement, weights, slots, restarts, deadlines."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from dopsd.config import RunConfig
from dopsd.coordinator.admission import Key
from dopsd.coordinator.direct_transport import Hop, lost_on_the_way
from dopsd.errors import DopsdError, LateError, WorkerError
from dopsd.policy.bundle import Bundle, check_acknowledgement
from dopsd.ray_cluster.failures import own_message
from dopsd.ray_cluster.placement import Role
from dopsd.rollout.worker import InferenceWorker
from dopsd.run_folder.timeline import Span

_log = logging.getLogger(__name__)

_REST = 1.0
"""Seconds between two attempts to load weights that are gone."""


@dataclass
class Call:
    """One call under way: a load of ``bundle``, or a micro-batch with ``key``."""

    key: Key | None
    bundle: Bundle
    done: ray.ObjectRef
    """Ready when the call has ended: an acknowledgement, or the call's stats."""
    result: ray.ObjectRef | None
    started: float
    states: ray.ObjectRef | None = None
    """What was handed out beside the result, on its way from device to device."""
    dropped: bool = False
    """Nobody wants its outcome any more: the run was rewound."""


@dataclass
class Member:
    """One actor of the pool and what it is doing."""

    name: str
    handle: Any
    launched: float = field(default_factory=time.monotonic)
    loaded: int = -1
    """Version it has acknowledged; -1 before the first."""
    bundle: Bundle | None = None
    """The weights it holds; None when they are of an attempt that is over."""
    calls: list[Call] = field(default_factory=list)
    rests_until: float = 0.0
    """It loads nothing before: the weights that it should load were gone."""
    restarts: int = 0
    busy_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    served: int = 0

    @property
    def loading(self) -> bool:
        return any(call.key is None for call in self.calls)


@dataclass
class Finished:
    """A micro-batch that a member has finished."""

    key: Key
    result: ray.ObjectRef
    stats: dict[str, float]
    states: ray.ObjectRef | None = None


class Pool:
    """Actors of one ``role`` that answer ``method``; driven by one thread.

    ``slots``: calls queued on a member at once. ``deadline``: seconds after which a call makes
    its member late; it is then killed and restarted, ``restarts`` times at most. ``direct``: its
    actors can take part in a ``hop``.
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
        self.gone: set[str] = set()
        """Ids of inputs that the object store has lost for good."""
        self.hop: Hop | None = None
        """Where states go from device to device, to or from this pool."""
        self._handed_out = 0
        # As an argument of `options` Ray would accept it, and ignore it.
        switched: Any = {"enable_tensor_transport": True}
        # A class of the role's name: Ray's process titles and its dashboard tell roles apart.
        worker = type(f"{role.name.capitalize()}Worker", (InferenceWorker,), {})
        actor: Any = (ray.remote(**switched) if direct else ray.remote)(worker)
        self._actor = actor.options(num_cpus=role.cpus, num_gpus=role.gpus, max_restarts=0)
        self.members = [Member(f"{role.name}-{i}", self._launch()) for i in range(role.workers)]

    def _launch(self) -> Any:
        return self._actor.remote(self.config, self.role.device, self.adapters)

    def free_member(self, bundle: Bundle) -> Member | None:
        """A member with a free slot that has acknowledged ``bundle``; others start loading it.

        Call order on an actor is submission order, so weights change only between trajectories.
        """
        best = None
        for member in self.members:
            if member.loading or time.monotonic() < member.rests_until:
                continue
            if member.bundle is not bundle:
                ack = self._load(member.handle, bundle)
                member.calls.append(Call(None, bundle, ack, None, time.monotonic()))
            elif self.hop is not None and self.hop.opening():
                continue
            elif len(member.calls) < self.config.inference.slots and (
                best is None or len(member.calls) < len(best.calls)
            ):
                best = member
        return best

    def _load(self, handle: Any, bundle: Bundle) -> ray.ObjectRef:
        if bundle.streamed:
            # References inside a bundle are not resolved on the way: a bucket at a time is enough.
            return handle.load_buckets.remote(bundle)
        return handle.load.remote(*(bundle.refs[a] for a in self.adapters))

    def submit(self, member: Member, key: Key, bundle: Bundle, *inputs: ray.ObjectRef) -> None:
        """Queue one micro-batch on ``member`` under ``bundle``; inputs are passed by reference."""
        if self.method == "generate" and self.hop is not None and self.hop.is_open:
            try:
                member.calls.append(self._submit_direct(member, key, bundle, *inputs))
                return
            except (ValueError, RayError) as error:
                self.hop.close(own_message(error))
        method = getattr(member.handle, self.method).options(num_returns=2)
        result, stats = method.remote(bundle.version, *inputs)
        member.calls.append(Call(key, bundle, stats, result, time.monotonic()))

    def _submit_direct(
        self, member: Member, key: Key, bundle: Bundle, block: ray.ObjectRef
    ) -> Call:
        """A roll-out whose states stay on the device until another actor takes them."""
        assert self.hop is not None
        self._handed_out += 1
        hand_out = member.handle.hand_out.options(tensor_transport=self.hop.backend)
        keep = member.handle.generate_and_keep.options(num_returns=2)
        result, stats = keep.remote(bundle.version, block, self._handed_out)
        states = hand_out.remote(self._handed_out)
        return Call(key, bundle, stats, result, time.monotonic(), states)

    def starting(self) -> bool:
        """Whether a member still loads its base or waits for its first weights, or a hop opens."""
        opening = self.hop is not None and self.hop.opening()
        return opening or any(member.loaded < 0 for member in self.members)

    def pending(self) -> list[ray.ObjectRef]:
        """References that become ready when something has happened."""
        return [call.done for member in self.members for call in member.calls]

    def collect(self) -> tuple[list[Finished], list[Key]]:
        """Take in whatever has ended: finished micro-batches, and keys to be generated again.

        Raises WorkerError with a worker's own message, AcknowledgementError for wrong weights,
        LateError when a member is late and its restarts are spent.
        """
        finished: list[Finished] = []
        retry: list[Key] = []
        for member in self.members:
            while member.calls:
                call = member.calls[0]
                ready, _ = ray.wait([call.done], timeout=0, fetch_local=False)
                if not ready:
                    if time.monotonic() - call.started > self._deadline(member):
                        retry += self._restart(member, self._late(member, call))
                    break
                try:
                    value = ray.get(call.done)
                except RayTaskError as error:
                    if self.hop is not None and lost_on_the_way(error):
                        self.hop.close(f"{member.name} waited for states in vain")
                    elif not isinstance(error.cause, RayError):
                        _log.error("%s: %s", member.name, error)  # with the worker's frames
                        raise WorkerError(f"{member.name}: {own_message(error)}") from None
                    # An input was lost with the process or node that held it.
                    if isinstance(error.cause, ObjectLostError):
                        self.gone.add(error.cause.object_ref_hex)
                    member.calls.pop(0)
                    if call.key is None:  # weights of a learner that died: its successor's follow
                        member.bundle = None
                        member.rests_until = time.monotonic() + _REST
                    elif not call.dropped:
                        retry.append(call.key)
                    continue
                except RayError as error:
                    died = WorkerError(f"{member.name} died: {own_message(error)}")
                    if getattr(error, "actor_init_failed", False):
                        raise died from None
                    retry += self._restart(member, died)
                    break
                member.calls.pop(0)
                self.events += 1
                if member.calls:
                    member.calls[0].started = time.monotonic()
                if call.key is None:
                    check_acknowledgement(call.bundle, value, member.name)
                    self._note_load(member, call)
                    member.loaded = call.bundle.version
                    member.bundle = None if call.dropped else call.bundle
                    continue
                assert call.result is not None
                member.busy_seconds += value["seconds"]
                member.peak_memory_mb = max(member.peak_memory_mb, value["peak_memory_mb"])
                member.served += 1
                self._note(member, self.method, call.key[0], value["seconds"])
                if call.dropped:
                    continue
                finished.append(Finished(call.key, call.result, value, call.states))
        return finished, retry

    def forget(self) -> None:
        """The run is rewound: drop what is under way when it ends, and load weights anew."""
        for member in self.members:
            member.bundle = None
            for call in member.calls:
                call.dropped = True

    def take_spans(self) -> list[Span]:
        """What the members have done since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def _note(self, member: Member, task: str, step: int, seconds: float) -> None:
        """A task that ended just now, in this process's clock: a worker's may differ."""
        now = time.time()
        self._spans.append(Span(member.name, task, step, now - seconds, now))

    def _note_load(self, member: Member, call: Call) -> None:
        task, began = ("load weights", call.started)
        if member.loaded < 0:
            task, began = ("start up", member.launched)
        self._note(member, task, call.bundle.version, time.monotonic() - began)

    def doing(self) -> str:
        """What each member is doing, for progress and for a late message."""
        return ", ".join(f"{m.name}: {self._doing(m)}" for m in self.members)

    def stop(self) -> None:
        for member in self.members:
            ray.kill(member.handle)

    def _doing(self, member: Member) -> str:
        if not member.calls:
            return "idle" if member.loaded >= 0 else "waiting for weights"
        call = member.calls[0]
        seconds = time.monotonic() - call.started
        if call.key is None:
            what = "starting up" if member.loaded < 0 else f"loading version {call.bundle.version}"
        else:
            what = f"{self.method} step {call.key[0]} micro-batch {call.key[1]}"
        return f"{what} for {seconds:.0f} s"

    def _deadline(self, member: Member) -> float:
        deadline = self.config.deadline
        return deadline.start if member.loaded < 0 else deadline.step

    def _late(self, member: Member, call: Call) -> LateError:
        return LateError(
            f"{member.name} is late: {self._doing(member)}, deadline {self._deadline(member):g} s"
        )

    def _restart(self, member: Member, reason: DopsdError) -> list[Key]:
        queued = [call for call in member.calls if call.key is not None]
        keys = [call.key for call in queued if call.key is not None and not call.dropped]
        if member.calls:
            first = queued[0].key if queued else None
            step = first[0] if first else member.calls[0].bundle.version
            self._note(member, "lost", step, time.monotonic() - member.calls[0].started)
        if member.restarts >= self.config.deadline.restarts:
            raise type(reason)(f"{reason}; its {member.restarts} restarts are spent")
        ray.kill(member.handle)
        if self.hop is not None and self.hop.grouped:
            self.hop.close(f"{member.name} was restarted, and its group cannot take it in again")
        member.handle, member.loaded, member.calls = self._launch(), -1, []
        member.bundle = None
        member.launched = time.monotonic()
        member.restarts += 1
        self.events += 1
        return keys
