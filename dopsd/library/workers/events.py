"""What the pool of a library's workers tells."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.library.scheduler import Outcome
from dopsd.library.workers.jobs import News, Trained


@dataclass(frozen=True)
class Joined:
    worker: str


@dataclass(frozen=True)
class Told:
    worker: str
    news: News


@dataclass(frozen=True)
class Finished:
    worker: str
    result: Trained


@dataclass(frozen=True)
class Left:
    """A worker that is no more and did nothing: another place of its process was to blame, or its
    node will be taken away."""

    worker: str


@dataclass(frozen=True)
class Ended:
    """A worker that is no more, with what it did."""

    worker: str
    outcome: Outcome
    reason: str
    error: BaseException | None = None


Event = Joined | Told | Finished | Left | Ended
