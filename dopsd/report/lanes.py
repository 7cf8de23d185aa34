"""The timeline of the run page: every worker one lane, idle time left blank."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from markupsafe import Markup

from dopsd.report.templates import fill

TASKS = (
    "encode",
    "generate",
    "score",
    "train",
    "publish",
    "load weights",
    "start up",
    "lost",
    "generate_and_score",
    "teach",
)
"""The tasks in a run's timeline; the position decides the colour. Any other comes after them."""
_ROLES = ("encoder", "rollout", "teacher", "learner")
_BINS = 240

Span = dict[str, Any]


def timeline(spans: list[Span]) -> Markup:
    """The whole run at a glance, and a close-up that a script of the page moves about."""
    if not spans:
        return Markup()
    lanes: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        lanes[span["lane"]].append(span)
    names = sorted(lanes, key=_order)
    used = {span["task"] for span in spans}
    tasks = [*TASKS, *sorted(used - set(TASKS))]
    end = max(span["end"] for span in spans)
    training = [span for span in spans if span["task"] == "train"] or spans
    began, ended = min(s["start"] for s in training), max(s["end"] for s in training)
    rows = [
        (name, _strip(lanes[name], end, tasks), _busy(lanes[name], began, ended)) for name in names
    ]
    key = [(number, task.replace("_", " ")) for number, task in enumerate(tasks) if task in used]
    data = {
        "lanes": names,
        "tasks": tasks,
        "spans": [
            [
                names.index(s["lane"]),
                tasks.index(s["task"]),
                s["step"],
                s["start"],
                s["end"],
                round(_work(s), 3),
            ]
            for s in spans
        ],
        "at": round((began + ended) / 2, 3),
        "end": end,
        "width": _window(training),
    }
    return fill("timeline", key=key, rows=rows, bins=_BINS, end=end, data=data)


def _order(name: str) -> tuple[int, str, int]:
    role, _, number = name.rpartition("-")
    position = _ROLES.index(role) if role in _ROLES else len(_ROLES)
    return position, role, int(number) if number.isdigit() else 0


def _work(span: Span) -> float:
    return float(span.get("busy", span["end"] - span["start"]))


def _busy(spans: list[Span], start: float, end: float) -> float:
    """Share of [start, end] that the lane worked."""
    work = 0.0
    for span in spans:
        inside = min(span["end"], end) - max(span["start"], start)
        if inside > 0:
            work += _work(span) * inside / max(span["end"] - span["start"], 1e-9)
    return min(1.0, work / max(end - start, 1e-9))


def _window(training: list[Span]) -> float:
    """Seconds of about four steps."""
    steps = len({span["step"] for span in training})
    whole = max(s["end"] for s in training) - min(s["start"] for s in training)
    return round(max(0.05, 4 * whole / max(1, steps)), 3)


def _strip(spans: list[Span], end: float, names: list[str]) -> list[tuple[int, int, int, str]]:
    """A lane over the whole run in bins, as (first bin, bins, colour of the longest task, opacity:
    the busy share)."""
    width = end / _BINS or 1.0
    work: list[dict[str, float]] = [defaultdict(float) for _ in range(_BINS)]
    for span in spans:
        length = max(span["end"] - span["start"], 1e-9)
        first, last = int(span["start"] / width), int(span["end"] / width)
        for bin in range(max(0, first), min(_BINS - 1, last) + 1):
            inside = min(span["end"], (bin + 1) * width) - max(span["start"], bin * width)
            work[bin][span["task"]] += max(0.0, inside) * _work(span) / length
    rects: list[tuple[int, int, int, str]] = []
    for bin, tasks in enumerate(work):
        share = min(1.0, sum(tasks.values()) / width)
        if share < 0.02:
            continue
        colour = names.index(max(tasks, key=lambda name: tasks[name]))
        opacity = f"{0.15 + 0.85 * share:.1f}"
        if rects and sum(rects[-1][:2]) == bin and rects[-1][2:] == (colour, opacity):
            bin, count = rects.pop()[:2]
            rects.append((bin, count + 1, colour, opacity))
        else:
            rects.append((bin, 1, colour, opacity))
    return rects
