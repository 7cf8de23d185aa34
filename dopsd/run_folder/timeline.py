"""What every worker did and when: the spans of a run, bounded whatever its length.

``timeline.jsonl`` in the run folder holds one span per line; time in which a lane has no span is
idle time. Past a limit neighbouring spans of a lane are merged in pairs, so that old times become
coarser while ``busy`` keeps the exact sum.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dopsd.run_folder.lines import is_count, is_number

LIMIT = 20_000
"""Spans that are kept: about 2 MB of JSON."""
_LONGEST_RUN = 1e9
"""Seconds (thirty years): a time beyond is damage."""
_FIELDS = {"lane", "task", "step", "start", "end"}


@dataclass(frozen=True)
class Span:
    """One task of one worker; ``start`` and ``end`` in seconds since the epoch.

    ``lane``: ``<role>-<number>``; ``<role>:<id>`` stands for the number that this id was given
    when it first appeared (Ray Data's encoder actors have no numbers).
    """

    lane: str
    task: str
    step: int
    start: float
    end: float
    busy: float = -1.0
    """Seconds of work between start and end; negative stands for all of them."""
    count: int = 1

    @property
    def work(self) -> float:
        return self.end - self.start if self.busy < 0 else self.busy

    def join(self, other: Span) -> Span:
        """Both as one, named after the longer."""
        longer = max(self, other, key=lambda span: span.work)
        return Span(
            self.lane,
            longer.task,
            self.step,
            self.start,
            max(self.end, other.end),
            self.work + other.work,
            self.count + other.count,
        )


def is_span(entry: dict[str, Any]) -> bool:
    """Whether an entry is a line of the file."""
    times = (entry["start"], entry["end"])
    return (
        _FIELDS <= entry.keys() <= _FIELDS | {"busy", "count"}
        and isinstance(entry["lane"], str)
        and isinstance(entry["task"], str)
        and is_count(entry["step"], -1)
        and all(is_number(time, -_LONGEST_RUN, _LONGEST_RUN) for time in times)
        and is_number(entry.get("busy", 0.0), 0.0)
        and is_count(entry.get("count", 1), 1)
    )


class Timeline:
    """Collects spans from any thread. ``origin``: seconds since the epoch that are written as 0."""

    def __init__(self, origin: float, limit: int = LIMIT) -> None:
        self.origin, self._limit = origin, limit
        self._spans: list[Span] = []
        self._numbers: dict[str, dict[str, int]] = defaultdict(dict)
        self._lock = threading.Lock()

    @classmethod
    def continued(cls, entries: Sequence[dict[str, Any]], now: float) -> Timeline:
        """Continuing after the spans of an earlier file: what lay between is cut out."""
        origin = now - max((entry["end"] for entry in entries), default=0.0)
        timeline = cls(origin)
        shifted = [{**e, "start": e["start"] + origin, "end": e["end"] + origin} for e in entries]
        timeline.add([Span(**entry) for entry in shifted])
        return timeline

    def add(self, spans: list[Span]) -> None:
        """Take spans in; they may come in any order."""
        with self._lock:
            self._spans += [self._numbered(span) for span in spans]
            while len(self._spans) > self._limit:
                self._merge()

    def to_bytes(self) -> bytes:
        """The file: JSON lines in order of start, times in seconds since ``origin``."""
        with self._lock:
            spans = sorted(self._spans, key=lambda span: (span.start, span.lane))
        return "".join(self._line(span) + "\n" for span in spans).encode()

    def _line(self, span: Span) -> str:
        line = {
            "lane": span.lane,
            "task": span.task,
            "step": span.step,
            "start": round(span.start - self.origin, 3),
            "end": round(span.end - self.origin, 3),
        }
        if span.count > 1:
            line |= {"busy": round(span.work, 3), "count": span.count}
        return json.dumps(line, separators=(",", ":"))

    def _numbered(self, span: Span) -> Span:
        role, colon, name = span.lane.partition(":")
        if not colon:
            return span
        number = self._numbers[role].setdefault(name, len(self._numbers[role]))
        return replace(span, lane=f"{role}-{number}")

    def _merge(self) -> None:
        lanes: dict[str, list[Span]] = defaultdict(list)
        for span in sorted(self._spans, key=lambda span: span.start):
            lanes[span.lane].append(span)
        self._spans = [
            pair[0].join(pair[1]) if len(pair) == 2 else pair[0]
            for spans in lanes.values()
            for pair in (spans[i : i + 2] for i in range(0, len(spans), 2))
        ]
