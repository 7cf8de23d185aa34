"""Which concept trains where, what becomes of one that fails, and when to stop: a pure state
machine, without Ray, clock or disk.

At every moment

    planned = waiting + in flight + done + skipped + parked

A free worker always gets the oldest waiting concept. One whose worker was lost goes back to the
head of the queue; of a worker's death by the concept itself it is an attempt, of a node's it is
nobody's. The last attempt takes place on a fresh worker.

A worker is a place on a process, which may have several (``PROCESS/2``): then nobody knows which
concept a process died of. So the last attempt also is alone on its process.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heappush

DEATHS = 2
"""Workers that die of a concept before it is parked, whatever ``library.retries`` allows."""
_ALWAYS_PARKED = 3
"""Parked concepts that stop no library: a share of few is less than one."""
_REASON = 120
"""Characters by which reasons are told apart."""


def process_of(worker: str) -> str:
    """The process on which a worker has its place."""
    return worker.partition("/")[0]


def worker_at(process: str, place: int) -> str:
    """The worker at a place of a process; the first is called as the process."""
    return f"{process}/{place}" if place else process


class Outcome(Enum):
    """How an attempt that gave no adapter ended."""

    FAILED = "failed"
    """With an error of its own."""
    DIED = "died"
    """Its worker died, the node lives."""
    LOST = "lost"
    """Its node went away, or the worker was taken: no fault of the concept."""


@dataclass(frozen=True)
class Assignment:
    concept: str
    worker: str
    attempt: int
    """Counted from 1; an attempt that was lost is not counted."""
    fresh: bool
    """To be trained by a process that trained nothing before: it is the last attempt."""


@dataclass(frozen=True)
class Counts:
    planned: int
    waiting: int
    in_flight: int
    done: int
    skipped: int
    parked: int

    @property
    def conserved(self) -> bool:
        parts = self.waiting, self.in_flight, self.done, self.skipped, self.parked
        return self.planned == sum(parts)


@dataclass
class Tries:
    """What a concept has been through."""

    failures: int = 0
    deaths: int = 0
    """Those of the failures that took the worker along."""
    reason: str = ""
    """Of the last one."""


@dataclass
class Scheduler:
    """``concepts`` in the order in which they are to train; ``skipped`` and ``done`` are among the
    planned beside them. ``tries``: of earlier starts; ``parked``: name -> reason."""

    concepts: Iterable[str]
    retries: int
    max_parked: float
    done: set[str] = field(default_factory=set)
    skipped: Mapping[str, str] = field(default_factory=dict)
    parked: dict[str, str] = field(default_factory=dict)
    tries: dict[str, Tries] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = list(self.concepts)
        self._age = {name: age for age, name in enumerate(names)}
        gone = self.done | self.parked.keys() | self.skipped.keys()
        self._waiting = [(age, name) for name, age in self._age.items() if name not in gone]
        heapify(self._waiting)
        self.in_flight: dict[str, Assignment] = {}
        """By worker."""
        self._free: dict[str, None] = {}
        """Workers, in the order in which they became free."""
        self._used: set[str] = set()
        """Processes that have trained something."""
        self._alone: str | None = None
        """A process that gets nothing more until it is empty, for a last attempt that waits."""
        self.planned = len(self._age.keys() | gone)
        self._parked_before = len(self.parked)

    @property
    def counts(self) -> Counts:
        return Counts(
            self.planned,
            len(self._waiting),
            len(self.in_flight),
            len(self.done),
            len(self.skipped),
            len(self.parked),
        )

    @property
    def finished(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self._waiting and not self.in_flight

    def join(self, worker: str) -> None:
        """A worker that has trained nothing yet is there, or one more place on its process."""
        assert worker not in self._free and worker not in self.in_flight, worker
        self._free[worker] = None

    def leave(self, worker: str) -> None:
        """A worker goes away; what it trains is lost, which is no attempt."""
        if worker in self.in_flight:
            self.end(worker, Outcome.LOST, "")
        self._free.pop(worker, None)
        self._forget(worker)

    def assign(self) -> list[Assignment]:
        """What free workers begin now. Until their ends are told they are in flight."""
        given, passed = [], []
        while self._waiting and self._free and self.stopped is None:
            age, name = heappop(self._waiting)
            failures = self.tries.get(name, Tries()).failures
            last = failures > 0 and self._is_last(name)
            worker = self._empty_process() if last else self._open_place()
            if worker is None:
                passed.append((age, name))
                if last:  # the others need not wait for the process that becomes empty
                    continue
                break
            del self._free[worker]
            new = process_of(worker) not in self._used
            self._used.add(process_of(worker))
            given.append(Assignment(name, worker, failures + 1, fresh=last and not new))
            self.in_flight[worker] = given[-1]
        for entry in passed:
            heappush(self._waiting, entry)
        return given

    def _open_place(self) -> str | None:
        """A free worker for any concept; one that trained before, if there is one: those that
        trained nothing need no replacing for a last attempt."""
        closed = {self._alone} | {
            process_of(worker) for worker, given in self.in_flight.items() if self._ends(given)
        }
        free = [worker for worker in self._free if process_of(worker) not in closed]
        used = (worker for worker in free if process_of(worker) in self._used)
        return next(used, None) or next(iter(free), None)

    def _empty_process(self) -> str | None:
        """A free worker on a process with nothing else in flight, rather on one that trained
        nothing; where there is none, a process is kept free from now on until it is empty."""
        full = Counter(map(process_of, self.in_flight))
        free = [worker for worker in self._free if not full[process_of(worker)]]
        worker = next((w for w in free if process_of(w) not in self._used), None)
        worker = worker or next(iter(free), None)
        if worker is not None:
            self._alone = None  # whoever else waits for one asks again
            return worker
        if self._alone is None:
            open_ = [process_of(worker) for worker in self._free]
            self._alone = min(open_, key=lambda process: full[process], default=None)
        return None

    def _ends(self, given: Assignment) -> bool:
        """Whether it is a concept's last attempt, of which there may be a first already."""
        return given.attempt > 1 and self._is_last(given.concept)

    def _forget(self, worker: str) -> None:
        """A worker is no more; its process is once none of its places is known."""
        process = process_of(worker)
        if any(process_of(other) == process for other in (*self._free, *self.in_flight)):
            return
        self._used.discard(process)
        if self._alone == process:
            self._alone = None

    def finish(self, worker: str) -> str:
        """The worker's concept is done, and the worker free. Returns the concept."""
        name = self.in_flight.pop(worker).concept
        self.done.add(name)
        self._free[worker] = None
        return name

    def end(self, worker: str, outcome: Outcome, reason: str) -> str | None:
        """The worker's attempt ended without an adapter; returns why the concept is parked, if it
        is. The worker is no more: nobody knows in which state an error left it.
        """
        name = self.in_flight.pop(worker).concept
        self._forget(worker)
        if outcome is not Outcome.LOST:
            tries = self.tries.setdefault(name, Tries())
            tries.failures += 1
            tries.deaths += outcome is Outcome.DIED
            tries.reason = reason
            if tries.deaths >= DEATHS or tries.failures > self.retries:
                self.parked[name] = f"{reason}, attempt {tries.failures}"
                return self.parked[name]
        heappush(self._waiting, (self._age[name], name))
        return None

    def _is_last(self, name: str) -> bool:
        tries = self.tries[name]
        return tries.failures >= self.retries or tries.deaths >= DEATHS - 1

    @property
    def stopped(self) -> str | None:
        """Why nothing more is begun, if so: too many concepts are parked, of those that this start
        has tried."""
        own = list(self.parked.items())[self._parked_before :]
        most = max(_ALWAYS_PARKED, math.floor(self.max_parked * self.planned))
        if len(own) <= (most if self.max_parked else 0):
            return None
        reasons = Counter(_kind(reason) for _, reason in own)
        commonest, count = reasons.most_common(1)[0]
        examples = [name for name, reason in own if _kind(reason) == commonest][:3]
        return (
            f"{len(own)} of {self.planned} concepts are parked (library.max_parked: "
            f"{self.max_parked:g}), {count} of them: {commonest}; e.g. {', '.join(examples)}"
        )


def _kind(reason: str) -> str:
    """A reason without what differs from one concept to the next."""
    words = reason.rpartition(", attempt ")[0] or reason
    return re.sub(r"\d+(\.\d+)?", "N", words)[:_REASON]
