"""Micro-batches of many concepts on their way through pools that all of them share: a pure state
machine, without Ray, clock or disk.

Each concept in flight has a lane with books of its own: step s of it is rolled out by version s and
by no other (``Admission`` at lag 0). A stage takes the oldest micro-batch that waits for it, by the
lane's age first and then by step. A lane's work depends on its concept alone; when and by whom it
is done changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple

from dopsd.coordinator.admission import Admission
from dopsd.errors import DopsdError, WorkerError

BLAMED = 2
"""Workers that may die of a micro-batch before its concept has failed."""
_LOST = 20
"""Times that a micro-batch may be lost with whoever held it."""


class Ticket(NamedTuple):
    """A micro-batch; the older one is less."""

    lane: int
    step: int
    part: int
    """Its index within the step."""


@dataclass
class Item:
    """A micro-batch, from its admission until it is trained."""

    ticket: Ticket
    bundle: Any
    """The version that generates it."""
    block: Any
    """What was encoded of it."""
    settings: Any
    """The lane's."""
    stage: int = 0
    inputs: tuple[Any, ...] = ()
    """What earlier stages gave."""
    result: Any = None
    lost: int = 0
    """How often it was generated again."""
    blamed: int = 0
    """How often a worker died of it."""


@dataclass
class _Lane:
    concept: str
    settings: Any
    books: Admission
    items: dict[tuple[int, int], Item] = field(default_factory=dict)
    error: DopsdError | None = None


class Flow:
    """``stages`` in the order in which a micro-batch passes them."""

    def __init__(self, stages: int) -> None:
        self._waiting: list[list[Ticket]] = [[] for _ in range(stages)]
        self._lanes: dict[int, _Lane] = {}
        self._opened = 0

    # -- learners --------------------------------------------------------------------------

    def open(self, concept: str, first: int, sizes: Sequence[int], settings: Any = None) -> int:
        """Take a concept in, whose next step is ``first``; ``sizes[s]``: micro-batches of step s.
        Returns the number of its lane, which only grows. Whatever is left of an earlier lane of
        the concept is dropped."""
        self.drop(concept)
        books = Admission(first, len(sizes), sizes.__getitem__, max_lag=0)
        self._lanes[self._opened] = _Lane(concept, settings, books)
        self._opened += 1
        return self._opened - 1

    def publish(self, number: int, version: int, bundle: Any, blocks: Sequence[Any]) -> None:
        """Version v of a lane's weights is there, and with it the ``blocks`` of step v; step v - 1
        is trained. Nothing, where the lane is closed."""
        if (lane := self._lanes.get(number)) is None:
            return
        if version > lane.books.start:
            lane.books.train(version - 1)
            lane.items.clear()
        while (key := lane.books.next_admissible(version)) is not None:
            lane.books.admit(key)
            ticket = Ticket(number, *key)
            lane.items[key] = Item(ticket, bundle, blocks[key[1]], lane.settings)
            heappush(self._waiting[0], ticket)

    def results(self, number: int, step: int) -> list[Item] | None:
        """The micro-batches of a step when all of them are ready, by index. Raises the lane's
        error, and WorkerError for a lane that is closed."""
        if (lane := self._lanes.get(number)) is None:
            raise WorkerError(f"step {step}: the concept was given to another learner")
        if lane.error is not None:
            raise lane.error
        items = [item for key, item in sorted(lane.items.items()) if key[0] == step]
        return items if items and all(item.result is not None for item in items) else None

    def lose(self, ticket: Ticket, lost: int) -> None:
        """The result of a micro-batch is gone, which had been generated ``lost`` times again."""
        item = self._item(ticket)
        if item is None or item.result is None or item.lost != lost:
            return
        item.result = None
        self._lanes[ticket.lane].books.unfinish(ticket[1:])
        self._again(item)

    def close(self, number: int) -> None:
        """A lane is done, or its learner is no more."""
        self._lanes.pop(number, None)

    def drop(self, concept: str) -> None:
        """Close whatever lane a concept has."""
        for number in [n for n, lane in self._lanes.items() if lane.concept == concept]:
            self.close(number)

    # -- pools -----------------------------------------------------------------------------

    def oldest(self, stage: int) -> Item | None:
        """What the next free worker of a stage should do; it waits until it is taken."""
        waiting = self._waiting[stage]
        while waiting:
            item = self._item(waiting[0])
            if item is not None and item.stage == stage and item.result is None:
                return item
            heappop(waiting)  # of a lane that is closed or has failed
        return None

    def take(self, stage: int) -> Item:
        """A worker does :meth:`oldest`."""
        item = self.oldest(stage)
        assert item is not None, f"nothing waits for stage {stage}"
        heappop(self._waiting[stage])
        return item

    def passed(self, ticket: Ticket, result: Any) -> None:
        """A stage has done a micro-batch. Nothing, where nobody wants it any more."""
        if (item := self._item(ticket)) is None:
            return
        item.stage += 1
        if item.stage < len(self._waiting):
            item.inputs = (*item.inputs, result)
            heappush(self._waiting[item.stage], ticket)
            return
        item.result, item.inputs = result, ()
        self._lanes[ticket.lane].books.finish(ticket[1:])

    def again(self, ticket: Ticket, why: str, blamed: bool) -> None:
        """What was under way of a micro-batch is lost: it is generated once more. ``blamed``: its
        worker may have died of it, which ends the concept's attempt the second time."""
        if (item := self._item(ticket)) is None:
            return
        item.blamed += blamed
        if item.blamed >= BLAMED:
            self.fail(ticket, f"{BLAMED} workers ended at it: {why}")
        else:
            self._again(item)

    def fail(self, ticket: Ticket, why: str) -> None:
        """A worker failed at a micro-batch by an error of its own: so does the concept."""
        if (lane := self._lanes.get(ticket.lane)) is not None and lane.error is None:
            where = f"step {ticket.step} micro-batch {ticket.part}"
            lane.error = WorkerError(f"{where}: {why}")
            lane.items.clear()

    # -- books -----------------------------------------------------------------------------

    def _again(self, item: Item) -> None:
        item.lost += 1
        if item.lost > _LOST:
            self.fail(item.ticket, f"lost {_LOST} times with whoever held it")
            return
        item.stage, item.inputs = 0, ()
        heappush(self._waiting[0], item.ticket)

    def _item(self, ticket: Ticket) -> Item | None:
        lane = self._lanes.get(ticket.lane)
        return None if lane is None else lane.items.get((ticket.step, ticket.part))
