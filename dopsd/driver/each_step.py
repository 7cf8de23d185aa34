"""Every trained step, once and in order, to whoever trains from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from dopsd.coordinator.messages import RunStatus
from dopsd.driver.progress import Event, Show
from dopsd.errors import StorageError
from dopsd.run_folder.log import read_metric_lines

OnStep = Callable[[dict[str, Any]], None]
"""Called with the metrics of a step, which are a line of metrics.jsonl."""


class EachStep:
    """A ``show`` that passes everything on, and tells ``on_step`` of each step that this process
    trains. Steps that are trained again after a restart are the same ones, and told once.

    Of steps that follow each other faster than the run is looked at, those between are read in the
    run ``folder``; on S3, which is behind, some of them may be missing.
    """

    def __init__(self, show: Show, on_step: OnStep, folder: str) -> None:
        self._show, self._on_step, self._folder = show, on_step, folder
        self._next: int | None = None

    def __call__(self, phase: str, event: Event) -> None:
        self._show(phase, event)
        if isinstance(event, RunStatus):
            self._tell(event)

    def _tell(self, status: RunStatus) -> None:
        first = status.step if self._next is None else self._next
        self._next = max(first, status.step)
        lines = {}
        if status.step - first > 1:
            with contextlib.suppress(OSError, StorageError):
                lines = {line["step"]: line for line in read_metric_lines(self._folder)}
        if status.latest:
            lines[status.latest["step"]] = status.latest
        for step in range(first, status.step):
            if step in lines:
                self._on_step(dict(lines[step]))
