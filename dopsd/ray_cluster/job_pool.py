"""A few equal actors that work through a list of jobs, with restarts and deadlines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dopsd.errors import DopsdError, LateError, WorkerError
from dopsd.ray_cluster.failures import own_error, own_message
from dopsd.ray_cluster.placement import Role


@dataclass(frozen=True, eq=False)
class Job:
    """One call of an actor's method. ``what`` tells the user what it is."""

    what: str
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Member:
    name: str
    handle: Any
    answered: bool = False
    job: Job | None = None
    reference: Any = None
    since: float = 0.0


class Crew:
    """``role.workers`` actors of the class ``worker``, stopped at the end of the ``with`` block.

    ``worker`` loads its models in its methods: of an error in a constructor Ray keeps the text
    alone, so that the user would not get it as the one line that it is.
    ``start_s``: deadline of an actor's first answer, models loaded; ``step_s``: of each later one.
    An actor that dies or is late is replaced and its job is done again, ``restarts`` times in all.
    """

    def __init__(
        self,
        worker: type,
        arguments: tuple[Any, ...],
        role: Role,
        *,
        start_s: float,
        step_s: float,
        restarts: int,
    ) -> None:
        self.role, self.start_s, self.step_s, self.restarts = role, start_s, step_s, restarts
        self._arguments = arguments
        self._actor: Any = ray.remote(worker).options(
            num_cpus=role.cpus, num_gpus=role.gpus, max_restarts=0
        )
        self._members: list[_Member] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._dismiss(list(self._members))

    def run(self, jobs: Iterable[Job], done: Callable[[Job, Any], None]) -> None:
        """Do every job; ``done`` takes each result as it comes.

        Raises the DopsdError of a job, WorkerError for any other failure, and LateError or
        WorkerError when the restarts are spent.
        """
        try:
            self._run(iter(jobs), done)
        except BaseException:
            # What the others were doing belongs to this call: the next one gets fresh ones.
            self._dismiss([member for member in self._members if member.job])
            raise

    def _run(self, waiting: Iterator[Job], done: Callable[[Job, Any], None]) -> None:
        upcoming = next(waiting, None)
        while True:
            while upcoming is not None and (member := self._free()) is not None:
                self._give(member, upcoming)
                upcoming = next(waiting, None)
            busy = {member.reference: member for member in self._members if member.job}
            if not busy:
                return
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=0.5)
            for reference in ready:
                self._take(busy[reference], done)
            for member in self._members:
                if member.job is not None and self._seconds(member) > self._limit(member):
                    self._replace(member, self._late(member))

    def _free(self) -> _Member | None:
        """A member without a job; a new one while the role has room."""
        for member in self._members:
            if member.job is None:
                return member
        if len(self._members) == self.role.workers:
            return None
        member = _Member(f"{self.role.name}-{next(self._numbers)}", self._launch())
        self._members.append(member)
        return member

    def _dismiss(self, members: list[_Member]) -> None:
        for member in members:
            ray.kill(member.handle)
            self._members.remove(member)

    def _launch(self) -> Any:
        return self._actor.remote(*self._arguments)

    def _give(self, member: _Member, job: Job) -> None:
        member.job, member.since = job, time.monotonic()
        member.reference = getattr(member.handle, job.method).remote(*job.arguments)

    def _take(self, member: _Member, done: Callable[[Job, Any], None]) -> None:
        job = member.job
        assert job is not None
        try:
            value = ray.get(member.reference)
        except RayTaskError as error:
            member.answered, member.job = True, None
            raise own_error(error, f"{member.name}, {job.what}") from None
        except RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise own_error(error, member.name) from None
            died = WorkerError(f"{member.name} died at {job.what}: {own_message(error)}")
            self._replace(member, died)
            return
        member.answered, member.job = True, None
        done(job, value)

    def _replace(self, member: _Member, reason: DopsdError) -> None:
        if not self.restarts:
            raise type(reason)(f"{reason}; no restarts are left")
        self.restarts -= 1
        ray.kill(member.handle)
        member.handle, member.answered = self._launch(), False
        assert member.job is not None
        self._give(member, member.job)

    def _seconds(self, member: _Member) -> float:
        return time.monotonic() - member.since

    def _limit(self, member: _Member) -> float:
        return self.step_s if member.answered else self.start_s

    def _late(self, member: _Member) -> LateError:
        assert member.job is not None
        doing = member.job.what if member.answered else f"starting up for {member.job.what}"
        return LateError(
            f"{member.name} is late: {doing} for {self._seconds(member):.0f} s, deadline "
            f"{self._limit(member):g} s"
        )
