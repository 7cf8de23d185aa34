"""How many concepts keep a learner busy: a law over what their steps take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from dopsd.config import RunConfig

FIRST, MOST = 2, 8
"""Concepts on a learner that `library.in_flight: auto` takes: until it is known how many keep it
busy, and at most."""
_LATEST = 64
"""Measurements that count, of each kind."""
_ENOUGH = 4
"""Measurements of a kind without which nothing is said."""


def most_in_flight(config: RunConfig) -> int:
    """Concepts that a learner may have in flight."""
    chosen = config.library.in_flight
    return MOST if chosen == "auto" else chosen


def concepts_per_learner(inference: float, rest: float, learner: float) -> int:
    """1 + ceil((D_R + D_T + Z) / D_L): while one concept learns, the others come through roll-out
    and teacher. ``inference``: seconds of a step there, D_R + D_T; ``rest``: Z, what publication,
    binding and changing concepts take; ``learner``: D_L, seconds of a step on the learner."""
    return 1 + math.ceil((inference + rest) / learner) if learner > 0 else 1


@dataclass(frozen=True)
class Shape:
    """Of a step in a role: ``micro_batches`` on ``workers``."""

    micro_batches: int
    workers: int

    @property
    def rounds(self) -> int:
        return math.ceil(self.micro_batches / max(1, self.workers))


@dataclass
class StepTimes:
    """What steps took lately. A median: the first ones compile and warm up."""

    _calls: dict[str, deque[float]] = field(default_factory=dict)
    """Seconds of a micro-batch, by role."""
    _learning: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))
    _rest: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def served(self, role: str, seconds: float) -> None:
        """A worker of a role did a micro-batch, what it bound for that included."""
        self._calls.setdefault(role, deque(maxlen=_LATEST)).append(seconds)

    def learned(self, seconds: float, rest: float) -> None:
        """A learner computed a step, and took ``rest`` to take the concept up and to publish."""
        self._learning.append(seconds)
        self._rest.append(rest)

    def per_learner(self, roles: Mapping[str, Shape]) -> int | None:
        """Concepts that keep a learner busy, ``MOST`` at most; None while too little is known."""
        known = [self._learning, *(self._calls.get(role, ()) for role in roles)]
        if any(len(times) < _ENOUGH for times in known):
            return None
        inference = sum(median(self._calls[r]) * shape.rounds for r, shape in roles.items())
        law = concepts_per_learner(inference, median(self._rest), median(self._learning))
        return min(MOST, law)
