"""The learners that the coordinator hears: a plain object under its lock."""

from __future__ import annotations

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
        self.reset("starting")

    def reset(self, doing: str) -> list[Any]:
        """Its learners are gone, or to be: others will start. Returns their actors."""
        handles, self.handles = list(self.handles.values()), {}
        self.doing = doing
        """What they do, in words."""
        self.training = self.waiting = False
        """Whether they have published a version, and whether they wait for micro-batches."""
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
