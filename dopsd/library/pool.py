"""The workers of a library as Ray actors: each comes and goes for itself."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from dopsd.errors import DopsdError
from dopsd.library.scheduler import Outcome, process_of, worker_at
from dopsd.library.worker import Job, News, Trained
from dopsd.ray_cluster.connect import node_ids
from dopsd.ray_cluster.failures import error_message, innermost
from dopsd.ray_cluster.placement import Role

TALK = "talk"
"""The thread of a worker that answers while another one trains."""
_WAIT_SECONDS = 0.2
_NEWS_SECONDS = 1.0
"""Between two questions to a worker how far it is."""


@dataclass(frozen=True)
class Joined:
    worker: str


@dataclass(frozen=True)
class Told:
    worker: str
    news: News


@dataclass(frozen=True)
class Finished:
    worker: str
    result: Trained


@dataclass(frozen=True)
class Left:
    """A worker that is no more and did nothing: another place of its process was to blame."""

    worker: str


@dataclass(frozen=True)
class Ended:
    """A worker that is no more, with what it did."""

    worker: str
    outcome: Outcome
    reason: str
    error: BaseException | None = None


Event = Joined | Told | Finished | Left | Ended


class Worker(Protocol):
    """What an actor of the pool is made of: ``worker.py`` has the one that trains."""

    def load(self) -> None: ...

    def train(self, job: Job) -> Trained: ...

    def news(self, concept: str) -> News: ...


class _Actor:
    """A worker, with what only an actor knows."""

    def __init__(self, worker: Callable[..., Worker], *arguments: Any) -> None:
        self._worker = worker(*arguments)
        self._loaded = threading.Event()

    def arrive(self) -> str:
        """Load the base; returns the id of the node."""
        self._worker.load()
        self._loaded.set()
        return str(ray.get_runtime_context().get_node_id())

    def train(self, job: Job) -> Trained:
        self._loaded.wait()  # calls of several threads may overtake each other
        return self._worker.train(job)

    def news(self, concept: str) -> News:
        return self._worker.news(concept)


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
    base. ``start_s``: what the first step of a concept may take; ``step_s``: each later one.
    ``most``: places that an actor may have. One whose concept failed ends with all of its places,
    since nobody knows in which state an error left it.
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
        actor: Any = remote(concurrency_groups={TALK: 1})(_Actor)
        self._actor = actor.options(**role.options, max_restarts=0, max_concurrency=most)
        self._processes: dict[str, _Process] = {}
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count()

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
        """Have ``size`` processes at least, ``role.workers`` at most."""
        while len(self._processes) < min(size, self.role.workers):
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
        process.handle = self._actor.remote(*self._arguments)
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
                yield from self._gone(member, Outcome.DIED, self._hung(member))
        yield from self._widened()

    def _widened(self) -> Iterator[Event]:
        """Workers at the places of processes that have loaded the base, where they are new."""
        for process in self._processes.values():
            while process.loading is None and process.places < self.places:
                name = worker_at(process.name, process.places)
                self._members[name] = _Member(name, process)
                process.places += 1
                yield Joined(name)

    def _ask(self) -> None:
        now = time.monotonic()
        for member in self._members.values():
            if member.job is None or member.asked is not None:
                continue
            if now - member.told >= _NEWS_SECONDS:
                news = member.process.handle.news.options(concurrency_group=TALK)
                member.asked = news.remote(member.concept)

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
        except RayError as error:
            outcome, reason, cause = self._ending(member.process, error)
            yield from self._gone(member, outcome, reason, cause)
            return
        setattr(member, kind, None)
        if kind == "job":
            member.asked = None
            yield Finished(member.name, value)
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

    def _ending(self, process: _Process, error: RayError) -> tuple[Outcome, str, BaseException]:
        """(how, why, by what) a process came to its end."""
        if isinstance(error, RayTaskError):
            failed = innermost(error)
            return Outcome.FAILED, _reason(failed), failed
        taken = getattr(error, "preempted", False)  # its node was drained
        lost = taken or (process.node and process.node not in node_ids())
        outcome = Outcome.LOST if lost else Outcome.DIED
        return outcome, f"its worker died: {error_message(error)}", error

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


def _reason(error: BaseException) -> str:
    text = error_message(error)
    return text if isinstance(error, DopsdError) else " ".join(text.split())[:300]
