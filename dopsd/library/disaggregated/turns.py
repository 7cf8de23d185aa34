"""One engine for several concepts: each finds it as it left it, whoever had it meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

State = TypeVar("State")


class Turns:
    """Who may work now: of those that wait the oldest, by ``age``, each until it lets go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._busy = False
        self._began = self._held = 0.0

    @property
    def held_seconds(self) -> float:
        """In which somebody worked."""
        with self._changed:
            return self._held + (time.monotonic() - self._began if self._busy else 0.0)

    def take(self, age: int, waits: Callable[[], None] = lambda: None, every: float = 1.0) -> None:
        """Wait for the turn; ``waits`` is called every so many seconds meanwhile."""
        with self._changed:
            heappush(self._waiting, age)
            told = time.monotonic()
            while self._busy or self._waiting[0] != age:
                # Every give_back wakes: where others take short turns no wait runs out.
                self._changed.wait(max(0.0, told + every - time.monotonic()))
                if time.monotonic() - told >= every:
                    waits()
                    told = time.monotonic()
            heappop(self._waiting)
            self._busy, self._began = True, time.monotonic()

    def give_back(self) -> None:
        with self._changed:
            self._held += time.monotonic() - self._began
            self._busy = False
            self._changed.notify_all()


@dataclass
class Shelf(Generic[State]):
    """Where the state of a concept lies while another one has the engine."""

    save: Callable[[], State]
    """Out of the engine."""
    restore: Callable[[State], None]
    """Into it."""
    state: State | None = None


class SharedEngine(Generic[State]):
    """Whose state is in the engine. To be asked by whoever has the turn alone."""

    def __init__(self) -> None:
        self._inside: Shelf[State] | None = None

    def clear(self) -> None:
        """Put away what is inside: the engine is for a concept that begins."""
        if self._inside is not None:
            self._inside.state = self._inside.save()
        self._inside = None

    def begin(self, shelf: Shelf[State]) -> None:
        """A concept is in the engine for the first time."""
        assert self._inside is None, "clear first"
        self._inside = shelf

    def take_up(self, shelf: Shelf[State]) -> None:
        """Have the concept of ``shelf`` inside, as it was when it was put away."""
        if self._inside is shelf:
            return
        self.clear()
        assert shelf.state is not None, "it was put away before"
        shelf.restore(shelf.state)
        shelf.state, self._inside = None, shelf

    def forget(self, shelf: Shelf[State]) -> None:
        """A concept has ended."""
        if self._inside is shelf:
            self._inside = None
