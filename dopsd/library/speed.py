"""How fast a library gets on: busy share, concepts per minute, time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from dopsd.driver.monitoring.progress import clock
from dopsd.library.scheduler import process_of

LEARNER = "learner"
"""The role whose share is a library's."""


class Pace:
    """``steps``: of all concepts that are not done yet; ``now``: seconds that only grow."""

    def __init__(self, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._left, self._now = steps, now
        self._began = now()
        self._joined: dict[str, float] = {}
        self._training: dict[str, tuple[float, int, int]] = {}
        """Worker -> when its concept came, at which step it began, and at which it is."""
        self._there = self._worked = 0.0
        self.shares: dict[str, float] = {}
        """Of the time of each role's workers in which they computed, where a library has roles."""
        self._concepts = self._steps = 0

    def join(self, worker: str) -> None:
        self._joined[worker] = self._now()

    @property
    def there(self) -> float:
        """Seconds of processes, from when they had loaded the base."""
        now = self._now()
        first = (since for name, since in self._joined.items() if name == process_of(name))
        return self._there + sum(now - since for since in first)

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
        since = self._joined.pop(worker, now)
        if worker == process_of(worker):  # its other places are there for no time of their own
            self._there += now - since

    @property
    def busy(self) -> float:
        """Share of the time of workers, from when they had loaded the base, that they trained."""
        if self.shares:
            return self.shares[LEARNER]
        now, there = self._now(), self.there
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
        busy = f"{self.busy:.0%}"
        if self.shares:
            busy = ", ".join(f"{role} {share:.0%}" for role, share in self.shares.items())
        return f"busy {busy}; {self.per_minute:.1f} concepts/min; ETA {left}"
