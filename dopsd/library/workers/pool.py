"""The workers of a library as Ray actors: each comes and goes for itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from dopsd.errors import DataError, DopsdError
from dopsd.library.scheduler import Outcome, process_of, worker_at
from dopsd.library.workers.actor import TALK, Worker, WorkerActor
from dopsd.library.workers.events import Ended, Event, Finished, Joined, Left, Told
from dopsd.library.workers.jobs import Job, News, SavedState, Trained
from dopsd.ray_cluster.failures import error_message, innermost
from dopsd.ray_cluster.lost_nodes import LeavingNodes, node_of, on_lost_nodes
from dopsd.ray_cluster.placement import Role

_WAIT_SECONDS = 0.2
_NEWS_SECONDS = 1.0
"""Between two questions to a worker how far it is."""


@dataclass
class _Process:
    """An actor, with a worker at each of its places."""

    name: str
    handle: Any
    loading: Any
    """Its first answer, until that is there."""
    node: str = ""
    places: int = 0
    """That are known by name."""
    leaving: bool = False
    """Its node will be taken away: what it trains is wanted back, and it gets nothing more."""


@dataclass
class _Member:
    """A worker."""

    name: str
    process: _Process
    job: Any = None
    """The reference of what it trains, if anything."""
    concept: str = ""
    asked: Any = None
    since: float = 0.0
    """When it was last seen to get on."""
    step: int = 0
    waits: int = 0
    told: float = 0.0
    limit: float = 0.0
    """Seconds without a step after which it hangs."""


class WorkerPool:
    """Up to ``role.workers`` actors of the class ``worker``, ended with the ``with`` block.

    All are asked for at once; one that finds no room waits for it, and joins when it has loaded the
    base. One whose concept failed ends with all of its places, since nobody knows in which state an
    error left it. Those whose nodes will be taken away give back what they train after the step
    under way, and others are asked for in their places.

    ``start_s``: what the first step of a concept may take; ``step_s``: each later one. ``most``:
    places that an actor may have.
    """

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        role: Role,
        *,
        start_s: float,
        step_s: float,
        places: int = 1,
        most: int = 1,
    ) -> None:
        self.role, self._arguments = role, tuple(map(ray.put, (worker, *arguments)))
        self._start_s, self._step_s = start_s, step_s
        self.places = places
        """Concepts that each process trains at a time."""
        remote: Any = ray.remote  # whose types do not know of concurrency groups
        actor: Any = remote(concurrency_groups={TALK: 1})(WorkerActor)
        self._actor = actor.options(**role.options, max_restarts=0, max_concurrency=most)
        self._processes: dict[str, _Process] = {}
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count()
        self._leaving = LeavingNodes()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._processes):
            self.dismiss(name)

    @property
    def size(self) -> int:
        """Processes that are there or on their way."""
        return len(self._processes)

    def grow(self, size: int) -> None:
        """Have ``size`` processes at least, ``role.workers`` at most, beside those that leave."""
        staying = sum(not process.leaving for process in self._processes.values())
        for _ in range(staying, min(size, self.role.workers)):
            name = f"worker-{next(self._numbers)}"
            handle = self._actor.remote(*self._arguments)
            self._processes[name] = _Process(name, handle, handle.arrive.remote())

    def dismiss(self, worker: str) -> list[_Member]:
        """End a worker's process; returns the workers that were there."""
        process = self._processes.pop(process_of(worker))
        ray.kill(process.handle)
        gone = [member for member in self._members.values() if member.process is process]
        for member in gone:
            del self._members[member.name]
        return gone

    def renew(self, worker: str) -> None:
        """Put a fresh process, whose other places are free, in the place of a worker's; its workers
        go on by their names."""
        process = self._members[worker].process
        ray.kill(process.handle)
        process.handle, process.node = self._actor.remote(*self._arguments), ""
        process.loading = process.handle.arrive.remote()

    def train(self, worker: str, job: Job) -> None:
        """Give a worker a concept."""
        member = self._members[worker]
        member.job, member.concept = member.process.handle.train.remote(job), job.concept
        member.since = member.told = time.monotonic()
        member.step, member.waits, member.limit = job.first, 0, self._start_s
        member.asked = None

    def poll(self) -> Iterator[Event]:
        """What happened; waits a little where nothing did. A worker of which an end is told is no
        member any more."""
        self._ask()
        arriving = {p.loading: p for p in self._processes.values() if p.loading is not None}
        waiting = {
            ref: (member, kind)
            for member in self._members.values()
            for kind in ("job", "asked")
            if (ref := getattr(member, kind)) is not None
        }
        if refs := [*arriving, *waiting]:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            if not ready:
                ready, _ = ray.wait(refs, num_returns=1, timeout=_WAIT_SECONDS)
            # What a worker told before its job ended is heard before the end.
            for ref in sorted(ready, key=lambda ref: ref in waiting and waiting[ref][1] == "job"):
                if ref in arriving:
                    if arriving[ref].name in self._processes:
                        yield from self._arrived(arriving[ref])
                    continue
                member, kind = waiting[ref]
                if member.name in self._members:
                    yield from self._event(member, kind, ref)
        for member in list(self._members.values()):
            hangs = member.job is not None and time.monotonic() - member.since > member.limit
            if hangs and member.name in self._members:
                lost = on_lost_nodes([member.process.node or None])
                how = Outcome.LOST if lost else Outcome.DIED
                yield from self._gone(member, how, self._hung(member))
        yield from self._left()
        yield from self._widened()

    def _left(self) -> Iterator[Event]:
        """Workers that have nothing to do on nodes that will be taken away."""
        nodes = self._leaving.look()
        for process in list(self._processes.values()):
            process.leaving |= process.node in nodes
            if not process.leaving:
                continue
            own = [member for member in self._members.values() if member.process is process]
            for member in own:
                if member.job is None:
                    del self._members[member.name]
                    yield Left(member.name)
            if all(member.job is None for member in own):
                self.dismiss(process.name)

    def _widened(self) -> Iterator[Event]:
        """Workers at the places of processes that have loaded the base, where they are new."""
        for process in self._processes.values():
            while self._is_open(process) and process.places < self.places:
                name = worker_at(process.name, process.places)
                self._members[name] = _Member(name, process)
                process.places += 1
                yield Joined(name)

    @staticmethod
    def _is_open(process: _Process) -> bool:
        """Whether it may get one more worker."""
        return process.loading is None and not process.leaving

    def _ask(self) -> None:
        now = time.monotonic()
        for member in self._members.values():
            if member.job is None or member.asked is not None:
                continue
            if now - member.told >= _NEWS_SECONDS:
                if member.process.leaving:  # again and again: it may not have begun
                    _talk(member, "give_back")
                member.asked = _talk(member, "news")

    def _arrived(self, process: _Process) -> Iterator[Event]:
        try:
            process.node, process.loading = ray.get(process.loading), None
        except RayError as error:
            first = next((m for m in self._members.values() if m.process is process), None)
            # Where nobody is known by name yet the process is told by its own.
            member = first or _Member(process.name, process)
            outcome, reason, cause = self._ending(process, error)
            yield from self._gone(member, outcome, reason, cause)

    def _event(self, member: _Member, kind: str, ref: Any) -> Iterator[Event]:
        try:
            value = ray.get(ref)
        except ActorUnavailableError:
            # Ray does not know yet whether the process is gone, or its node: it will say so to
            # whoever asks next, and with the answer the call is lost.
            member.told, member.asked = time.monotonic(), None
            if kind == "job":
                member.job = _talk(member, "news")
            return
        except RayError as error:
            outcome, reason, cause = self._ending(member.process, error)
            yield from self._gone(member, outcome, reason, cause)
            return
        setattr(member, kind, None)
        if kind == "job":
            member.asked = None
            yield from self._over(member, value)
            return
        member.told = time.monotonic()
        if value.concept != member.concept:  # asked before it began with this one
            return
        if value.step > member.step:
            member.since, member.step = member.told, value.step
            member.limit = self._step_s
        if value.waits > member.waits:
            member.since, member.waits = member.told, value.waits
        yield Told(member.name, value)

    def _over(self, member: _Member, value: Trained | SavedState | News) -> Iterator[Event]:
        """A worker's job has ended, with a value."""
        if isinstance(value, News):
            yield from self._gone(member, Outcome.LOST, "its worker could not be reached")
        elif isinstance(value, SavedState):
            yield Told(member.name, News(member.concept, value.step, value))
            del self._members[member.name]
            yield Ended(member.name, Outcome.LOST, "its node will be taken away")
        else:
            yield Finished(member.name, value)

    def _ending(self, process: _Process, error: RayError) -> tuple[Outcome, str, BaseException]:
        """(how, why, by what) a process came to its end."""
        if isinstance(error, RayTaskError):
            failed = innermost(error)
            # What is taken away under a worker fails it in many ways.
            lost = not _of_the_concept(failed) and self._is_lost(process)
            return Outcome.LOST if lost else Outcome.FAILED, _reason(failed), failed
        lost = isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False)
        lost = lost or self._is_lost(process)
        outcome = Outcome.LOST if lost else Outcome.DIED
        return outcome, f"its worker died: {error_message(error)}", error

    @staticmethod
    def _is_lost(process: _Process) -> bool:
        """Whether its node is gone, or is being taken away."""
        node = process.node or node_of(process.handle)
        return process.leaving or bool(on_lost_nodes([node]))

    def _gone(
        self,
        member: _Member,
        outcome: Outcome,
        reason: str,
        error: BaseException | None = None,
    ) -> Iterator[Event]:
        """The end of a worker, and of all others on its process. An error is of its own concept
        alone; of which concept a process died nobody knows."""
        gone = self.dismiss(member.name)
        yield Ended(member.name, outcome, reason, error)
        for other in gone:
            if other is member:
                continue
            if other.job is None:
                yield Left(other.name)
            elif outcome is Outcome.FAILED:
                why = f"{member.concept} failed on its worker"
                yield Ended(other.name, Outcome.LOST, why)
            else:
                yield Ended(other.name, outcome, reason, error)

    def _hung(self, member: _Member) -> str:
        key = "step" if member.limit == self._step_s else "startup"
        return (
            f"no step within {member.limit:g} s (timeouts.{key}), at step {member.step}; "
            "its worker was ended"
        )


def _talk(member: _Member, method: str) -> Any:
    """Ask a worker, or tell it, something of its concept while it trains."""
    call = getattr(member.process.handle, method).options(concurrency_group=TALK)
    return call.remote(member.concept)


def _of_the_concept(error: BaseException) -> bool:
    """Whether it would come on any other node as well: of its data, or a loss without end."""
    return isinstance(error, DataError) or "not finite" in str(error)


def _reason(error: BaseException) -> str:
    text = error_message(error)
    return text if isinstance(error, DopsdError) else " ".join(text.split())[:300]
