"""How fast a library gets on: busy share, concepts per minute, time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from dopsd.driver.progress import clock


class Pace:
    """``steps``: of all concepts that are not done yet; ``now``: seconds that only grow."""

    def __init__(self, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._left, self._now = steps, now
        self._began = now()
        self._joined: dict[str, float] = {}
        self._training: dict[str, tuple[float, int, int]] = {}
        """Worker -> when its concept came, at which step it began, and at which it is."""
        self._there = self._worked = 0.0
        self._concepts = self._steps = 0

    def join(self, worker: str) -> None:
        self._joined[worker] = self._now()

    def begin(self, worker: str, step: int) -> None:
        self._training[worker] = (self._now(), step, step)

    def step(self, worker: str, step: int) -> None:
        if worker in self._training:
            since, first, _ = self._training[worker]
            self._training[worker] = (since, first, max(first, step))

    def end(self, worker: str, steps: int) -> None:
        """A concept is done, of which ``steps`` were left when it began."""
        since, _, _ = self._training.pop(worker)
        self._worked += self._now() - since
        self._concepts += 1
        self._steps += steps

    def leave(self, worker: str) -> None:
        """A worker is no more; what it did for its concept counts as work."""
        now = self._now()
        if worker in self._training:
            self._worked += now - self._training.pop(worker)[0]
        if worker in self._joined:
            self._there += now - self._joined.pop(worker)

    @property
    def busy(self) -> float:
        """Share of the time of workers, from when they had loaded the base, that they trained."""
        now = self._now()
        there = self._there + sum(now - since for since in self._joined.values())
        worked = self._worked + sum(now - since for since, _, _ in self._training.values())
        return min(1.0, worked / there) if there else 0.0

    @property
    def per_minute(self) -> float:
        """Concepts done per minute."""
        seconds = self._now() - self._began
        return 60 * self._concepts / seconds if seconds else 0.0

    def told(self) -> str:
        """In a few words."""
        seconds = self._now() - self._began
        trained = self._steps + sum(now - first for _, first, now in self._training.values())
        left = clock(seconds / trained * max(0, self._left - trained)) if trained else "--"
        return f"busy {self.busy:.0%}; {self.per_minute:.1f} concepts/min; ETA {left}"
