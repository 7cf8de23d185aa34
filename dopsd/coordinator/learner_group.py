"""The learners that the coordinator hears: a plain object under its lock."""

from __future__ import annotations

import math
import time
from typing import Any

from dopsd.errors import WorkerError


class LearnerGroup:
    """The group of one attempt at a time; what learners of an older one say is refused."""

    def __init__(self) -> None:
        self.attempt = 0
        """Its number; 0 while the run is rewound."""
        self.attached = False
        """A first group came: the next one takes the place of another."""
        self.handles: dict[int, Any] = {}
        """Actors, by rank."""
        self._step_seconds: float | None = None
        """What the last step took after its last micro-batch was there; None before the first."""
        self.reset("starting")

    def reset(self, doing: str) -> list[Any]:
        """Its learners are gone, or to be: others will start. Returns their actors."""
        handles, self.handles = list(self.handles.values()), {}
        self.doing = doing
        """What they do, in words."""
        self.training = self.waiting = False
        """Whether they have published a version, and whether they wait for micro-batches."""
        self._began: float | None = None
        """When they got what they train now."""
        return handles

    def require(self, attempt: int) -> None:
        """Raises WorkerError for a learner of an attempt that is over."""
        if attempt != self.attempt:
            raise WorkerError(f"stale attempt {attempt} (current: {self.attempt or 'none yet'})")

    def wait_for(self, step: int) -> None:
        """Rank 0 asks for the micro-batches of ``step``."""
        self.waiting, self.doing = True, f"waiting for step {step}"

    def train(self, step: int) -> None:
        """Rank 0 has got them."""
        self.waiting, self.doing = False, f"training step {step}"
        self._began = time.monotonic()

    def published(self) -> None:
        """Rank 0 has published a version."""
        if self._began is not None:
            self._step_seconds = time.monotonic() - self._began
        self.training, self._began = True, None

    def busy_until(self) -> float:
        """Until when they publish no version, by ``time.monotonic()``, if they take as long as for
        the last step; -inf where that is not known."""
        begun = time.monotonic() if self.waiting else self._began
        if self._step_seconds is None or begun is None:
            return -math.inf
        return begun + self._step_seconds
