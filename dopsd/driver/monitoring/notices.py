"""What a run told people, kept in its folder for whoever looks later."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from dopsd import shown, signals
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Event, Report, Show
from dopsd.errors import DopsdError
from dopsd.files import storage
from dopsd.run_folder.best_effort import BestEffortWriter
from dopsd.run_folder.files import NOTICES_FILE

_MOST = 200
"""Lines that are kept, the newest."""
_END_SECONDS = 10.0
"""What writing the last ones may take."""


class Notices:
    """A ``show`` that passes everything on, and keeps reports and notices in ``notices.txt`` of the
    run ``folder``, each line with its time. A file that is there already goes on.

    As a context manager it keeps why the block ended, too. Nobody waits for a storage.
    """

    def __init__(self, folder: str, show: Show) -> None:
        self._show, self._writer = show, BestEffortWriter(folder)
        self._lines = _earlier(storage.join(folder, NOTICES_FILE))
        self._told: set[str] = set()

    def __call__(self, phase: str, event: Event) -> None:
        if isinstance(event, RunStatus):
            self._keep(event.notices)
        elif isinstance(event, Report):
            self._keep(event.lines)
        self._show(phase, event)

    def __enter__(self) -> Notices:
        return self

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        if isinstance(error, DopsdError):
            self._keep([f"ended: {error}"])
        elif number := signals.asked_to_end():
            self._keep([f"interrupted by {number}"])
        self._writer.wait(_END_SECONDS)

    def _keep(self, lines: Sequence[str]) -> None:
        new = [line for line in dict.fromkeys(lines) if line not in self._told]
        if not new:
            return
        self._told.update(new)
        now = time.strftime("%Y-%m-%d %H:%M:%S%z")
        self._lines = [*self._lines, *(f"{now}  {shown.line(line)}" for line in new)][-_MOST:]
        self._writer.write(NOTICES_FILE, "".join(f"{line}\n" for line in self._lines).encode())


def _earlier(path: str) -> list[str]:
    with contextlib.suppress(OSError, DopsdError, ValueError):
        return storage.read_bytes(path).decode().splitlines()
    return []
