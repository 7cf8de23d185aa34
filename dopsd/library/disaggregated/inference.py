"""The workers of roll-out and teacher that all concepts in flight share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from dopsd.errors import AcknowledgementError
from dopsd.policy.bundle import Bundle, check_acknowledgement
from dopsd.rollout.worker import InferenceWorker, Stats


@dataclass(frozen=True)
class Settings:
    """Of a concept, where they differ from the library's."""

    weighting: str


@dataclass(frozen=True)
class Task:
    """What a worker is asked for: one micro-batch under one version of one concept."""

    method: str
    """Of :class:`InferenceWorker`."""
    version: int
    checksums: Mapping[str, str]
    """Of that version's adapters: they tell one concept's from another's."""
    modules: int
    settings: Settings


class ConceptWorker(InferenceWorker):
    """Serves any concept: each call brings the adapters that it wants.

    What is bound already is not bound again. The payloads of a call that is queued come into the
    object store of its node while the worker computes for another: that is its second slot.
    """

    def arrive(self) -> str:
        """Says that the base is loaded, which is done before any call; returns the node's id."""
        return str(ray.get_runtime_context().get_node_id())

    def serve(self, task: Task, *values: Any) -> tuple[bytes, Stats]:
        """``values``: a payload for each of the worker's adapters, then what the method takes.
        Raises AcknowledgementError for a payload that is not what was published."""
        began, count = time.perf_counter(), len(self.adapters)
        self._bind(task, values[:count])
        # What a concept may have of its own, of all that inference reads of a config.
        self.config.method.weighting = task.settings.weighting  # type: ignore[assignment]
        bound = time.perf_counter() - began
        result, stats = getattr(self, task.method)(task.version, *values[count:])
        return result, {**stats, "seconds": bound + stats["seconds"]}

    def _bind(self, task: Task, payloads: tuple[Any, ...]) -> None:
        wanted = {adapter: task.checksums[adapter] for adapter in self.adapters}
        if self.version == task.version and self._bound == wanted:
            return
        new = [
            None if self._bound.get(adapter) == wanted[adapter] else payload
            for adapter, payload in zip(self.adapters, payloads, strict=True)
        ]
        bundle = Bundle(task.version, {}, dict(wanted), task.modules)
        try:
            check_acknowledgement(bundle, self.load(task.version, *new), "an inference worker")
        except AcknowledgementError:
            self._bound = {}  # nothing of it serves anybody
            raise


def task_of(method: str, bundle: Bundle, settings: Settings) -> Task:
    """What a call under ``bundle`` asks for; its payloads go beside it."""
    return Task(method, bundle.version, bundle.checksums, bundle.modules, settings)
