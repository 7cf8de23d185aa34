"""Every trained step, once and in order, to whoever trains from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Event, Show
from dopsd.errors import StorageError
from dopsd.run_folder.log import read_metric_lines

OnStep = Callable[[dict[str, Any]], None]
"""Called with the metrics of a step, which are a line of metrics.jsonl."""


class EachStep:
    """A ``show`` that passes everything on, and tells ``on_step`` of each step that this process
    trains. Steps that are trained again after a restart are the same ones, and told once.

    What is looked at is behind: a step that was not seen as the newest is read in the run
    ``folder``, now or, where its line is not there yet, at a later look, the last of which is
    :meth:`finish`. ``first``: the first step; None, of a run that is resumed: that of the first
    look.
    """

    def __init__(self, show: Show, on_step: OnStep, folder: str, first: int | None = 0) -> None:
        self._show, self._on_step, self._folder = show, on_step, folder
        self._next = first

    def __call__(self, phase: str, event: Event) -> None:
        self._show(phase, event)
        if not isinstance(event, RunStatus):
            return
        if self._next is None:
            self._next = event.step
        if event.latest:
            self._tell(event.latest["step"] + 1, {event.latest["step"]: event.latest})

    def finish(self) -> None:
        """What is left, once the run has written all of its lines."""
        if self._next is not None:
            lines = self._read()
            self._tell(max(lines, default=-1) + 1, lines)

    def _tell(self, stop: int, lines: dict[int, dict[str, Any]]) -> None:
        """Up to ``stop``, or to the first step whose line is not there yet."""
        assert self._next is not None
        if self._next < stop and self._next not in lines:
            lines = {**self._read(), **lines}
        while self._next < stop and self._next in lines:
            self._next += 1
            self._on_step(dict(lines[self._next - 1]))

    def _read(self) -> dict[int, dict[str, Any]]:
        with contextlib.suppress(OSError, StorageError):
            return {line["step"]: line for line in read_metric_lines(self._folder)}
        return {}
