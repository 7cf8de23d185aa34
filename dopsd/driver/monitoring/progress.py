"""What a person sees while a run lasts: a live panel in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dopsd.coordinator.messages import RunStatus
from dopsd.terminal import plain, say


@dataclass(frozen=True)
class Report:
    """Lines for people to keep, which stay in sight."""

    lines: Sequence[str]
    once: bool = False
    """Of these lines each is printed only once, however often it is shown."""


Event = str | Report | RunStatus
"""What is being done now, lines to keep, or where a training is."""
Show = Callable[[str, Event], None]
"""Called with a phase (`prepare`, `preflight`, `start`, `train`, `preview`) and what is new."""
_LOG_INTERVAL = 10.0
"""Seconds between lines where there is no terminal."""
_PHASES = {
    "prepare": "preparing data",
    "preflight": "checking that the teacher can draw the concept",
    "start": "starting: models are loading",
    "train": "training",
    "library": "library",
    "preview": "drawing the contact sheet",
    "trials": "training",
    "fetch": "fetching models",
    "prompts": "writing prompts",
    "caption": "writing captions",
    "draw": "drawing",
    "score": "scoring",
    "metrics": "scoring",
    "diversity": "drawing for diversity",
}


_BEFORE = ("prepare", "preflight", "start")
"""Phases in which no line is news a second time."""


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A context manager whose ``show`` is what ``train`` and other commands call."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._logged = float("-inf")
        self._phase = ""
        self._printed: set[str] = set()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, phase: str, event: Event) -> None:
        """Update the panel, or log a line now and then; reports and notices stay in sight."""
        if isinstance(event, RunStatus):
            self._print(Report(event.notices, once=True))
        if isinstance(event, Report):
            once = event.once or phase in _BEFORE  # where several parts of a command say the same
            self._print(Report(event.lines, once))
            return
        if self.console.is_terminal:
            self._live.update(self.panel(phase, event))
            return
        now = time.monotonic()
        if phase != self._phase or now - self._logged >= _LOG_INTERVAL:
            self._phase, self._logged = phase, now
            self._print(Report([self._line(phase, event)]))

    def _print(self, report: Report) -> None:
        for line in report.lines:
            if not (report.once and line in self._printed):
                say(line, self.console)
            self._printed.add(line)

    def eta(self, step: int, steps: int) -> str:
        """Remaining time, from the pace since the first finished step."""
        now = time.monotonic()
        if self._first is None and step:
            self._first = (step, now)
        if self._first is None or step <= self._first[0]:
            return "--"
        pace = (now - self._first[1]) / (step - self._first[0])
        return clock(pace * (steps - step))

    def _line(self, phase: str, event: str | RunStatus) -> str:
        head = f"[{clock(time.monotonic() - self._began)}] {_PHASES[phase]}"
        if isinstance(event, str):
            return f"{head}: {event}"
        if phase == "start":
            return (
                f"{head} ({'; '.join(f'{role}: {doing}' for role, doing in event.roles.items())})"
            )
        loss = f"{event.latest['loss']:.5f}" if "loss" in event.latest else "--"
        return (
            f"{head}: step {event.step}/{event.steps} loss {loss} "
            f"lag {event.latest.get('student_lag', 0)} ETA {self.eta(event.step, event.steps)}"
            + _pictures(event)
        )

    def panel(self, phase: str, event: str | RunStatus) -> Panel:
        """What is shown in ``phase``: a message, or how the run stands."""
        title = f"dopsd · {_PHASES[phase]} · {clock(time.monotonic() - self._began)}"
        if isinstance(event, str):
            return Panel(plain(event), title=title)
        latest, counts = event.latest, event.counts
        facts = Table.grid(padding=(0, 2))
        facts.add_row(
            f"step {event.step}/{event.steps}",
            f"loss {latest['loss']:.5f}" if "loss" in latest else "loss --",
            f"lag student {latest.get('student_lag', 0)} teacher {latest.get('teacher_lag', 0)}",
            f"{latest.get('samples_per_second', 0.0):.2f} samples/s",
            f"ETA {self.eta(event.step, event.steps)}",
        )
        roles = Table.grid(padding=(0, 2))
        for role, doing in event.roles.items():
            idle = latest.get(f"{role}_idle_fraction")
            roles.add_row(
                plain(role), f"idle {idle:4.0%}" if idle is not None else "", plain(doing)
            )
        micro_batches = (
            f"micro-batches: {counts.trained} trained, {counts.ready} ready, "
            f"{counts.in_flight} in flight, {counts.waiting} waiting" + _pictures(event)
        )
        bar = ProgressBar(total=event.steps, completed=event.step)
        return Panel(Group(bar, facts, roles, Text(micro_batches, style="dim")), title=title)


def _pictures(status: RunStatus) -> str:
    """How many of the pictures that are drawn while it trains are there; nothing once all are."""
    done, total = status.pictures
    return f"; drawing: {done} of {total} pictures" if done < total else ""
