"""A few equal actors that work through a list of jobs, with restarts and deadlines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dopsd.errors import DeadlineError, DopsdError, WorkerError
from dopsd.ray_cluster.failures import error_message, unwrap_error
from dopsd.ray_cluster.placement import Role


@dataclass(frozen=True, eq=False)
class Job:
    """One call of an actor's method. ``what`` tells the user what it is."""

    what: str
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Worker:
    name: str
    handle: Any
    answered: bool = False
    job: Job | None = None
    reference: Any = None
    since: float = 0.0


class JobPool:
    """``role.workers`` actors of the class ``worker``, stopped at the end of the ``with`` block.

    ``worker`` loads its models in its methods: of an error in a constructor Ray keeps the text
    alone, so that the user would not get it as the one line that it is.
    ``start_s``: deadline of an actor's first answer, models loaded; ``step_s``: of each later one.
    An actor that dies or times out is replaced and its job done again, ``restarts`` times in all.
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
        self._actor: Any = ray.remote(worker).options(**role.options, max_restarts=0)
        self._workers: list[_Worker] = []
        self._numbers = itertools.count()

    def __enter__(self) -> JobPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop(list(self._workers))

    def put(self, value: Any) -> Any:
        """Store what several jobs take as an argument; returns a reference to hand them."""
        return ray.put(value)

    def run(self, jobs: Iterable[Job], done: Callable[[Job, Any], None]) -> None:
        """Do every job; ``done`` takes each result as it comes.

        Raises the DopsdError of a job, WorkerError for any other failure, and DeadlineError or
        WorkerError when the restart budget is exhausted.
        """
        try:
            self._run(iter(jobs), done)
        except BaseException:
            # What the others were doing belongs to this call: the next one gets fresh ones.
            self._stop([worker for worker in self._workers if worker.job])
            raise

    def _run(self, waiting: Iterator[Job], done: Callable[[Job, Any], None]) -> None:
        upcoming = next(waiting, None)
        while True:
            while upcoming is not None and (worker := self._free()) is not None:
                self._assign(worker, upcoming)
                upcoming = next(waiting, None)
            busy = {worker.reference: worker for worker in self._workers if worker.job}
            if not busy:
                return
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=0.5)
            for reference in ready:
                self._collect(busy[reference], done)
            for worker in self._workers:
                late = time.monotonic() - worker.since > self._limit(worker)
                if worker.job is not None and late:
                    self._replace(worker, self._timed_out(worker))

    def _free(self) -> _Worker | None:
        """A worker without a job; a new one while the role has room."""
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == self.role.workers:
            return None
        worker = _Worker(f"{self.role.name}-{next(self._numbers)}", self._launch())
        self._workers.append(worker)
        return worker

    def _stop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            ray.kill(worker.handle)
            self._workers.remove(worker)

    def _launch(self) -> Any:
        return self._actor.remote(*self._arguments)

    def _assign(self, worker: _Worker, job: Job) -> None:
        worker.job, worker.since = job, time.monotonic()
        worker.reference = getattr(worker.handle, job.method).remote(*job.arguments)

    def _collect(self, worker: _Worker, done: Callable[[Job, Any], None]) -> None:
        job = worker.job
        assert job is not None
        try:
            value = ray.get(worker.reference)
        except RayTaskError as error:
            worker.answered, worker.job = True, None
            raise unwrap_error(error, f"{worker.name}, {job.what}") from None
        except RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise unwrap_error(error, worker.name) from None
            died = WorkerError(f"{worker.name} died at {job.what}: {error_message(error)}")
            self._replace(worker, died)
            return
        worker.answered, worker.job = True, None
        done(job, value)

    def _replace(self, worker: _Worker, reason: DopsdError) -> None:
        if not self.restarts:
            raise type(reason)(f"{reason}; restart budget exhausted")
        self.restarts -= 1
        ray.kill(worker.handle)
        worker.handle, worker.answered = self._launch(), False
        assert worker.job is not None
        self._assign(worker, worker.job)

    def _limit(self, worker: _Worker) -> float:
        return self.step_s if worker.answered else self.start_s

    def _timed_out(self, worker: _Worker) -> DeadlineError:
        assert worker.job is not None
        doing = worker.job.what if worker.answered else f"starting up for {worker.job.what}"
        return DeadlineError(
            f"{worker.name} timed out after {self._limit(worker):g} s while {doing}"
        )
