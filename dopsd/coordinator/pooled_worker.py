"""What a pool knows of one of its inference actors, and of the calls that are under way to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from dopsd.coordinator.admission import Key
from dopsd.policy.bundle import Bundle


@dataclass
class Call:
    """One call under way: a load of ``bundle``, or a micro-batch with ``key``."""

    key: Key | None
    bundle: Bundle
    done: ray.ObjectRef
    """Ready when the call has ended: an acknowledgement, or the call's stats."""
    result: ray.ObjectRef | None
    started: float
    states: ray.ObjectRef | None = None
    """What was sent beside the result, on its way from device to device."""
    dropped: bool = False
    """Nobody wants its outcome any more: the run was rewound."""


@dataclass
class Drawing:
    """A picture of own prompt ``number`` under ``version``, under way."""

    version: int
    number: int
    done: ray.ObjectRef
    result: ray.ObjectRef
    started: float
    dropped: bool = False
    """As of a call."""


@dataclass
class PooledWorker:
    """One actor of the pool and what it is doing."""

    name: str
    handle: Any
    launched: float = field(default_factory=time.monotonic)
    loaded: int = -1
    """Version it has acknowledged; -1 before the first."""
    bundle: Bundle | None = None
    """The weights it holds; None when they are of an attempt that is over."""
    calls: list[Call] = field(default_factory=list)
    drawing: Drawing | None = None
    """What it draws meanwhile; calls wait behind it."""
    retry_after: float = 0.0
    """It loads nothing before: the weights that it should load were gone."""
    restarts: int = 0
    died_on: list[str | None] = field(default_factory=list)
    """Node of each process of it that was replaced."""
    busy_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    noted_until: float = 0.0
    """End of its last span."""

    @property
    def loading(self) -> Bundle | None:
        """The weights that are on their way to it."""
        return next((call.bundle for call in self.calls if call.key is None), None)

    @property
    def queued(self) -> int:
        """How much there is in front of another call."""
        return len(self.calls) + (self.drawing is not None)


@dataclass
class Finished:
    """A micro-batch that a worker has finished."""

    key: Key
    result: ray.ObjectRef
    states: ray.ObjectRef | None = None
