"""The one writer of a run's metrics and timeline: JSON lines in the run folder, local or S3."""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.run_folder.best_effort import BEST_EFFORT_FOLDERS as EXTRAS
from dopsd.run_folder.best_effort import BestEffortWriter
from dopsd.run_folder.files import METRICS_FILE, TIMELINE_FILE
from dopsd.run_folder.jsonl import JsonLines, read_lines, read_or_set_aside
from dopsd.run_folder.lines import is_count, is_number
from dopsd.run_folder.timeline import Timeline, is_span
from dopsd.run_folder.tracked_pictures import StoredPicture, TrackedPicture
from dopsd.run_folder.trackers import TrackerThread

_TIMELINE_INTERVAL = 30.0
"""Seconds between rewrites of the timeline."""
_EXTRAS_SECONDS = 60.0
"""What extras that are not yet on S3 are given at the end."""


class RunLog:
    """Writes ``metrics.jsonl``, one line per optimizer step, and ``timeline.jsonl`` in ``folder``.

    Each step also goes to ``trackers``. Files that exist already are continued.
    """

    def __init__(self, folder: str, trackers: Sequence[TrackerThread] = ()) -> None:
        self.folder, self._trackers = folder, trackers
        _, spans, damage = read_or_set_aside(storage.join(folder, TIMELINE_FILE), is_span)
        self._damage = [damage] if damage else []
        self.timeline = Timeline.continued(spans.entries, time.time())
        self.latest: dict[str, Any] = {}
        self._metrics = JsonLines(storage.join(folder, METRICS_FILE), is_metrics)
        self._losses: list[tuple[int, float]] = []
        self._timeline_written = time.monotonic()
        self._timeline_writing = threading.Lock()
        self._last_step = time.monotonic()
        self._busy: dict[str, float] = {}
        self._extras = BestEffortWriter(folder)

    def step(self, step: int, metrics: dict[str, Any], workers: dict[str, int]) -> None:
        """Add one line. ``<role>_busy_seconds`` are totals; the line holds this step's share.

        ``workers``: number of workers of each role whose idle fraction is wanted; a role has
        either a total or, from the learners, ``<role>_seconds`` of this step.
        """
        now = time.monotonic()
        wall = now - self._last_step
        self._last_step = now
        line: dict[str, Any] = {"step": step, "wall_seconds": wall, **metrics}
        for role, count in workers.items():
            if f"{role}_busy_seconds" in line:
                total = line.pop(f"{role}_busy_seconds")
                line[f"{role}_seconds"] = total - self._busy.get(role, 0.0)
                self._busy[role] = total
            busy = line[f"{role}_seconds"]
            line[f"{role}_idle_fraction"] = max(0.0, 1.0 - busy / max(wall * count, 1e-9))
        self._take(line)
        self._metrics.append(line)
        for tracker in self._trackers:
            tracker.step(step, line)
        old = now - self._timeline_written > _TIMELINE_INTERVAL
        if old and not self._timeline_writing.locked():
            self._timeline_written = now
            # A thread of its own: whoever trains does not wait for a storage.
            threading.Thread(target=self._write_timeline_quietly, daemon=True).start()

    def picture(self, picture: TrackedPicture) -> None:
        """Send a picture to the trackers."""
        for tracker in self._trackers:
            tracker.pictures([picture])

    def kept_pictures(self, pictures: Sequence[StoredPicture]) -> None:
        """After a rewind: these were drawn before it and stay; trackers that lack them get them."""
        for tracker in self._trackers:
            tracker.kept(pictures)

    def rewind(self, step: int) -> None:
        """Forget ``step`` and whatever follows it: the run resumes from it."""
        sent = self._losses[-1][0] if self._losses else -1
        self._losses, self.latest = [], {}
        for line in self._metrics.keep(lambda line: line["step"] < step):
            self._take(line)
        self._last_step = time.monotonic()
        for tracker in self._trackers:
            tracker.rewind(step, sent)

    def _take(self, line: dict[str, Any]) -> None:
        self.latest = line
        if "loss" in line:
            self._losses.append((line["step"], float(line["loss"])))

    @property
    def notices(self) -> list[str]:
        """What a person should know: damaged files, trackers that were given up, extras that are
        missing."""
        given_up = [tracker.problem for tracker in self._trackers if tracker.problem]
        return self._damage + self._metrics.notices + given_up + self._extras.notices

    def losses(self) -> tuple[float, float]:
        """Mean loss of the first and of the last steps, each :func:`loss_steps`; nan before the
        first."""
        return _ends([loss for _, loss in self._losses])

    def write(self, name: str, payload: bytes) -> None:
        """Write another file of the run. Raises whatever the storage raises, but for extras:
        what is missing of those is told among the notices."""
        if name.partition("/")[0] in EXTRAS:
            self._extras.write(name, payload)
        else:
            storage.write_bytes(storage.join(self.folder, name), payload)

    def flush(self) -> None:
        """Bring the files up to date. Raises whatever the storage raises."""
        self._metrics.flush()
        self._write_timeline()

    def close(self) -> None:
        """Write what is left. Raises whatever the storage raises."""
        for tracker in self._trackers:
            tracker.close()
        self._extras.wait(_EXTRAS_SECONDS)
        self.flush()

    def _write_timeline_quietly(self) -> None:
        with contextlib.suppress(OSError, StorageError):
            self._write_timeline()

    def _write_timeline(self) -> None:
        with self._timeline_writing:
            self.write(TIMELINE_FILE, self.timeline.to_bytes())


def read_metrics(folder: str) -> tuple[dict[str, Any], tuple[float, float]]:
    """(metrics of the last step, mean loss of the first and of the last steps) of a run folder."""
    lines = read_metric_lines(folder)
    losses = _ends([float(line["loss"]) for line in lines if "loss" in line])
    return (lines[-1] if lines else {}), losses


def is_metrics(entry: dict[str, Any]) -> bool:
    """Whether an entry is a step's metrics: all but a few words are numbers."""
    return is_count(entry["step"]) and all(
        is_number(value) or isinstance(value, bool | str) for value in entry.values()
    )


def read_metric_lines(folder: str) -> list[dict[str, Any]]:
    """Metrics of every step of a run folder, damaged lines left out."""
    return read_lines(storage.join(folder, METRICS_FILE), is_metrics)


def _ends(losses: list[float]) -> tuple[float, float]:
    if not losses:
        return math.nan, math.nan
    count = loss_steps(len(losses))
    return statistics.fmean(losses[:count]), statistics.fmean(losses[-count:])


def loss_steps(steps: int) -> int:
    """How many steps at either end of a run its mean losses are of: never the same ones."""
    return max(1, min(10, steps // 2))
