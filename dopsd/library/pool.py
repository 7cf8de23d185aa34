"""The workers of a library as Ray actors: each comes and goes for itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from dopsd.errors import DopsdError
from dopsd.library.scheduler import Outcome
from dopsd.library.worker import Job, News, Trained
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
class Ended:
    """A worker that is no more, with what it did."""

    worker: str
    outcome: Outcome
    reason: str
    error: BaseException | None = None


Event = Joined | Told | Finished | Ended


class Worker(Protocol):
    """What an actor of the pool is made of: ``worker.py`` has the one that trains."""

    def load(self) -> None: ...

    def train(self, job: Job) -> Trained: ...

    def news(self) -> News: ...


class _Actor:
    """A worker, with what only an actor knows."""

    def __init__(self, worker: Callable[..., Worker], *arguments: Any) -> None:
        self._worker = worker(*arguments)

    def arrive(self) -> str:
        """Load the base; returns the id of the node."""
        self._worker.load()
        return str(ray.get_runtime_context().get_node_id())

    def train(self, job: Job) -> Trained:
        return self._worker.train(job)

    def news(self) -> News:
        return self._worker.news()


@dataclass
class _Member:
    name: str
    handle: Any
    loading: Any
    """Its first answer, until that is there."""
    node: str = ""
    renewed: bool = False
    """It is known by name already."""
    job: Any = None
    """The reference of what it trains, if anything."""
    concept: str = ""
    asked: Any = None
    since: float = 0.0
    """When it was last seen to get on."""
    step: int = 0
    told: float = 0.0
    limit: float = 0.0
    """Seconds without a step after which it hangs."""


class WorkerPool:
    """Up to ``role.workers`` actors of the class ``worker``, ended with the ``with`` block.

    All are asked for at once; one that finds no room waits for it, and joins when it has loaded the
    base. ``start_s``: what the first step of a concept may take; ``step_s``: each later one.
    """

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        role: Role,
        *,
        start_s: float,
        step_s: float,
    ) -> None:
        self.role, self._arguments = role, tuple(map(ray.put, (worker, *arguments)))
        self._start_s, self._step_s = start_s, step_s
        remote: Any = ray.remote  # whose types do not know of concurrency groups
        actor: Any = remote(concurrency_groups={TALK: 1})(_Actor)
        self._actor = actor.options(**role.options, max_restarts=0)
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._members):
            self.dismiss(name)

    @property
    def size(self) -> int:
        """Workers that are there or on their way."""
        return len(self._members)

    def grow(self, size: int) -> None:
        """Have ``size`` workers at least, ``role.workers`` at most."""
        while len(self._members) < min(size, self.role.workers):
            name = f"worker-{next(self._numbers)}"
            handle = self._actor.remote(*self._arguments)
            self._members[name] = _Member(name, handle, handle.arrive.remote())

    def dismiss(self, worker: str) -> None:
        """End a worker."""
        ray.kill(self._members.pop(worker).handle)

    def renew(self, worker: str) -> None:
        """Put a fresh process in the place of a worker, which goes on by its name."""
        member = self._members[worker]
        ray.kill(member.handle)
        member.handle = self._actor.remote(*self._arguments)
        member.loading, member.asked, member.renewed = member.handle.arrive.remote(), None, True

    def train(self, worker: str, job: Job) -> None:
        """Give a worker a concept."""
        member = self._members[worker]
        member.job, member.concept = member.handle.train.remote(job), job.concept
        member.since = member.told = time.monotonic()
        member.step, member.limit = job.first, self._start_s

    def poll(self) -> Iterator[Event]:
        """What happened; waits a little where nothing did. A worker of which an end is told is no
        member any more."""
        self._ask()
        waiting = {
            ref: (member, kind)
            for member in self._members.values()
            for kind in ("loading", "job", "asked")
            if (ref := getattr(member, kind)) is not None
        }
        if waiting:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            if not ready:
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_WAIT_SECONDS)
            # What a worker told before its job ended is heard before the end.
            for ref in sorted(ready, key=lambda ref: waiting[ref][1] == "job"):
                member, kind = waiting[ref]
                if member.name in self._members:
                    yield from self._event(member, kind, ref)
        for member in list(self._members.values()):
            if member.job is not None and time.monotonic() - member.since > member.limit:
                yield self._gone(member, Outcome.DIED, self._hung(member))

    def _ask(self) -> None:
        now = time.monotonic()
        for member in self._members.values():
            if member.job is None or member.asked is not None:
                continue
            if now - member.told >= _NEWS_SECONDS:
                member.asked = member.handle.news.options(concurrency_group=TALK).remote()

    def _event(self, member: _Member, kind: str, ref: Any) -> Iterator[Event]:
        try:
            value = ray.get(ref)
        except RayTaskError as error:
            failed = innermost(error)
            yield self._gone(member, Outcome.FAILED, _reason(failed), failed)
            return
        except RayError as error:
            taken = getattr(error, "preempted", False)  # its node was drained
            lost = taken or (member.node and member.node not in _nodes())
            outcome = Outcome.LOST if lost else Outcome.DIED
            yield self._gone(member, outcome, f"its worker died: {error_message(error)}", error)
            return
        setattr(member, kind, None)
        if kind == "loading":
            member.node = value
            if not member.renewed:
                yield Joined(member.name)
        elif kind == "job":
            member.asked = None
            yield Finished(member.name, value)
        else:
            member.told = time.monotonic()
            if value.concept != member.concept:  # asked before it began with this one
                return
            if value.step > member.step:
                member.since, member.step = member.told, value.step
                member.limit = self._step_s
            yield Told(member.name, value)

    def _gone(
        self, member: _Member, outcome: Outcome, reason: str, error: BaseException | None = None
    ) -> Ended:
        self.dismiss(member.name)
        return Ended(member.name, outcome, reason, error)

    def _hung(self, member: _Member) -> str:
        key = "step" if member.limit == self._step_s else "startup"
        return (
            f"no step within {member.limit:g} s (timeouts.{key}), at step {member.step}; "
            "its worker was ended"
        )


def _reason(error: BaseException) -> str:
    text = error_message(error)
    return text if isinstance(error, DopsdError) else " ".join(text.split())[:300]


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
