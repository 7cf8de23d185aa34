"""A library's worker as an actor: one thread trains, another answers meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import ray

from dopsd.library.workers.jobs import Job, News, SavedState, Trained

TALK = "talk"
"""The thread of a worker that answers while another one trains."""


class Worker(Protocol):
    """What an actor is made of: ``worker.py`` has the one that trains."""

    def load(self) -> None: ...

    def train(self, job: Job) -> Trained | SavedState: ...

    def news(self, concept: str) -> News: ...

    def give_back(self, concept: str) -> None: ...


class WorkerActor:
    """A worker, with what only an actor knows."""

    def __init__(self, worker: Callable[..., Worker], *arguments: Any) -> None:
        self._worker = worker(*arguments)
        self._loaded = threading.Event()

    def arrive(self) -> str:
        """Load the base; returns the id of the node."""
        self._worker.load()
        self._loaded.set()
        return str(ray.get_runtime_context().get_node_id())

    def train(self, job: Job) -> Trained | SavedState:
        self._loaded.wait()  # calls of several threads may overtake each other
        return self._worker.train(job)

    def news(self, concept: str) -> News:
        return self._worker.news(concept)

    def give_back(self, concept: str) -> None:
        self._worker.give_back(concept)
