"""The actors of one role of inference: who is free, what ended, who is replaced."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError

from dopsd.config import RunConfig
from dopsd.errors import WorkerError
from dopsd.library.disaggregated.flow import Item, Ticket
from dopsd.library.disaggregated.inference import Task, task_of
from dopsd.ray_cluster.failures import error_message
from dopsd.ray_cluster.lost_nodes import node_of, on_lost_nodes
from dopsd.ray_cluster.placement import Role

_LOADS = 3
"""Workers in a row that may end before they have loaded the base."""


_UNAVAILABLE = 3
"""Times that a worker may be unavailable at a micro-batch before it is blamed."""


@dataclass(frozen=True)
class Served:
    ticket: Ticket
    result: Any
    seconds: float


@dataclass(frozen=True)
class Dropped:
    """A micro-batch that has to be generated again. ``blamed``: the worker may have died of it."""

    ticket: Ticket
    why: str
    blamed: bool


@dataclass(frozen=True)
class Failed:
    """A micro-batch at which a worker raised an error of its own."""

    ticket: Ticket
    why: str


Event = Served | Dropped | Failed


@dataclass
class _Call:
    ticket: Ticket
    result: Any
    stats: Any
    policy: tuple[int, int]
    """Lane and version."""
    began: float


@dataclass(eq=False)
class _Worker:
    name: str
    handle: Any
    arriving: Any
    """Its first answer, until that is there."""
    launched: float = field(default_factory=time.monotonic)
    node: str = ""
    arrived: float = 0.0
    calls: list[_Call] = field(default_factory=list)
    policy: tuple[int, int] | None = None
    """What it has bound once its calls are done."""
    successor: _Worker | None = None
    """That takes its place, since its node will be taken away."""

    @property
    def serves(self) -> bool:
        """Whether it takes calls: until its successor does."""
        return bool(self.arrived) and not (self.successor and self.successor.arrived)


class InferencePool:
    """``role.workers`` actors of the class ``worker``, each with up to ``inference.max_inflight``
    calls of ``method``. One that ends is replaced, and one whose node is announced to be taken away
    as soon as another has loaded the base; driven by whoever holds the flow's lock."""

    def __init__(
        self,
        worker: type,
        config: RunConfig,
        role: Role,
        adapters: tuple[str, ...],
        method: str,
    ) -> None:
        self.config, self.role, self.adapters, self.method = config, role, adapters, method
        self._arguments = tuple(map(ray.put, (config, role.device, adapters)))
        named: Any = type(f"{role.name.capitalize()}Worker", (worker,), {})
        actor: Any = ray.remote(named)
        self._actor = actor.options(**role.options, max_restarts=0)
        self.busy_seconds = 0.0
        """In which workers computed."""
        self._there = 0.0
        """Seconds of workers that are no more, from when they had arrived."""
        self._unborn = 0
        """Workers in a row that ended before they had arrived."""
        self._unavailable: Counter[Ticket] = Counter()
        """Times that a worker was, with its node still there, by what it had to do."""
        self._workers = [self._launch(f"{role.name}-{n}") for n in range(role.workers)]

    def _launch(self, name: str) -> _Worker:
        handle = self._actor.remote(*self._arguments)
        return _Worker(name, handle, handle.arrive.remote())

    @property
    def there_seconds(self) -> float:
        """In which workers were there, busy or not."""
        now = time.monotonic()
        return self._there + sum(now - w.arrived for w in self._workers if w.arrived)

    @property
    def here(self) -> int:
        """Workers that have loaded the base."""
        return sum(bool(worker.arrived) for worker in self._workers)

    def pending(self) -> list[Any]:
        """References of which one becomes ready when there is something to collect."""
        arriving = [w.arriving for w in self._workers if w.arriving is not None]
        return arriving + [call.stats for w in self._workers for call in w.calls]

    def free(self, policy: tuple[int, int]) -> _Worker | None:
        """The worker to take a micro-batch of ``policy``: one without calls before one with some,
        one that has bound it before another."""
        room = self.config.inference.max_inflight
        workers = [w for w in self._workers if w.serves and len(w.calls) < room]
        return min(workers, key=lambda w: (len(w.calls), w.policy != policy), default=None)

    def submit(self, worker: _Worker, item: Item) -> None:
        """Queue a micro-batch. What it needs travels by reference."""
        policy = item.ticket.lane, item.bundle.version
        task: Task = task_of(self.method, item.bundle, item.settings)
        payloads = [item.bundle.refs[adapter] for adapter in self.adapters]
        serve = worker.handle.serve.options(num_returns=2)
        result, stats = serve.remote(task, *payloads, item.block, *item.inputs)
        worker.calls.append(_Call(item.ticket, result, stats, policy, time.monotonic()))
        worker.policy = policy

    def move(self, nodes: Collection[str]) -> None:
        """Have others in the places of workers on ``nodes``, which will be taken away."""
        for worker in list(self._workers):
            if worker.node in nodes and worker.successor is None:
                worker.successor = self._launch(worker.name)
                self._workers.append(worker.successor)
            if worker.successor is not None and not worker.serves and not worker.calls:
                self._end(worker)

    def collect(self) -> Iterator[Event]:
        """What ended. Raises WorkerError when workers end again and again before they have loaded
        the base."""
        pending = self.pending()
        if not pending:
            return
        ready = set(ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)[0])
        for worker in list(self._workers):
            try:
                yield from self._collected(worker, ready)
            except (RayError, TimeoutError) as error:
                yield from self._replace(worker, error)

    def _collected(self, worker: _Worker, ready: set[Any]) -> Iterator[Event]:
        now, timeouts = time.monotonic(), self.config.timeouts
        if worker.arriving is not None:
            if worker.arriving in ready:
                worker.node, worker.arriving, worker.arrived = ray.get(worker.arriving), None, now
                self._unborn = 0
            elif now - worker.launched > timeouts.startup and not self.here:
                raise TimeoutError(f"no base after {timeouts.startup:g} s (timeouts.startup)")
            return
        while worker.calls:
            call = worker.calls[0]
            if call.stats not in ready:
                if now - call.began > timeouts.step:
                    raise TimeoutError(f"timed out after {timeouts.step:g} s (timeouts.step)")
                return
            try:
                seconds = ray.get(call.stats)["seconds"]
            except RayTaskError as error:
                if not isinstance(error.cause, RayError):
                    raise
                # Inputs that are gone with their learner or with the worker that made them: this
                # one has not even begun.
                self._next(worker)
                yield Dropped(call.ticket, error_message(error), blamed=False)
                continue
            except ObjectLostError as error:
                self._next(worker)
                yield Dropped(call.ticket, error_message(error), blamed=False)
                continue
            self._next(worker)
            self._unavailable.pop(call.ticket, None)
            self.busy_seconds += seconds
            yield Served(call.ticket, call.result, seconds)

    def _next(self, worker: _Worker) -> None:
        """The first call is over, the next one began with its end."""
        worker.calls.pop(0)
        if worker.calls:
            worker.calls[0].began = time.monotonic()

    def _replace(self, worker: _Worker, error: Exception) -> Iterator[Event]:
        own = isinstance(error, RayTaskError)
        why = str(error) if isinstance(error, TimeoutError) else error_message(error)
        lost = bool(on_lost_nodes([worker.node or node_of(worker.handle)]))
        if not worker.arrived and not lost:
            self._unborn += 1
            if self._unborn >= _LOADS:
                raise WorkerError(
                    f"{self._unborn} {self.role.name} workers in a row ended before they had "
                    f"loaded the base: {why}"
                )
        at = self._workers.index(worker)
        self._end(worker)
        if worker.successor is None:
            self._workers.insert(at, fresh := self._launch(worker.name))
            for other in self._workers:
                if other.successor is worker:
                    other.successor = fresh
        if worker.calls and not lost and isinstance(error, ActorUnavailableError):
            # Ray may not know yet that a node is gone: then its workers are told to be unavailable.
            # Not each time, though: then they end at what they do.
            ticket = worker.calls[0].ticket
            self._unavailable[ticket] += 1
            lost = self._unavailable[ticket] < _UNAVAILABLE
        for number, call in enumerate(worker.calls):
            if number == 0 and own:
                yield Failed(call.ticket, f"{worker.name}: {why}")
            else:
                yield Dropped(call.ticket, f"{worker.name}: {why}", number == 0 and not lost)

    def _end(self, worker: _Worker) -> None:
        ray.kill(worker.handle)
        if worker.arrived:
            self._there += time.monotonic() - worker.arrived
        self._workers.remove(worker)

    def stop(self) -> None:
        for worker in self._workers:
            ray.kill(worker.handle)
