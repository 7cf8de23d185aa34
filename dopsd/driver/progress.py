"""What a person sees while a run goes on: a live panel in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dopsd.coordinator.messages import RunStatus

Show = Callable[[str, dict[str, Any] | RunStatus], None]
"""Called with a phase (`prepare`, `preflight`, `start`, `train`, `preview`) and its status, that of
the run in `start` and `train`; lines under ``report`` are for people to keep."""


_LOG_INTERVAL = 10.0
"""Seconds between lines where there is no terminal."""

_PHASES = {
    "prepare": "preparing data",
    "preflight": "checking that the teacher can draw the concept",
    "start": "starting: models are loading",
    "train": "training",
    "preview": "drawing the contact sheet",
    "trials": "training",
    "prompts": "writing prompts",
    "draw": "drawing",
    "score": "scoring",
}


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A context manager whose ``show(phase, status)`` is what ``launch.train`` calls."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._logged = float("-inf")
        self._phase = ""
        self._told: set[str] = set()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, phase: str, status: dict[str, Any] | RunStatus) -> None:
        """Update the panel, or log a line now and then. Lines of a ``report`` and notices, each
        printed once, stay in sight."""
        if isinstance(status, RunStatus):
            notices = status.notices
        elif "report" in status:
            for line in status["report"]:
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        else:
            notices = status.get("notices", [])
        for notice in notices:
            if notice not in self._told:
                self._told.add(notice)
                self.console.print(notice, highlight=False, markup=False, soft_wrap=True)
        if self.console.is_terminal:
            self._live.update(self._panel(phase, status))
            return
        now = time.monotonic()
        if phase != self._phase or now - self._logged >= _LOG_INTERVAL:
            self._phase, self._logged = phase, now
            self.console.print(self._line(phase, status), highlight=False, soft_wrap=True)

    def eta(self, step: int, steps: int) -> str:
        """Remaining time, from the pace since the first finished step."""
        now = time.monotonic()
        if self._first is None and step:
            self._first = (step, now)
        if self._first is None or step <= self._first[0]:
            return "--"
        pace = (now - self._first[1]) / (step - self._first[0])
        return clock(pace * (steps - step))

    def _line(self, phase: str, status: dict[str, Any] | RunStatus) -> str:
        head = f"[{clock(time.monotonic() - self._began)}] {_PHASES[phase]}"
        if not isinstance(status, RunStatus):
            return ": ".join(filter(None, (head, status.get("message"))))
        if phase == "train":
            latest = status.latest
            return (
                f"{head}: step {status.step}/{status.steps} "
                f"loss {latest.get('loss', float('nan')):.5f} "
                f"lag {latest.get('student_lag', 0)} ETA {self.eta(status.step, status.steps)}"
            )
        return f"{head} ({'; '.join(f'{k}: {v}' for k, v in status.roles.items())})"

    def _panel(self, phase: str, status: dict[str, Any] | RunStatus) -> Panel:
        title = f"dopsd · {_PHASES[phase]} · {clock(time.monotonic() - self._began)}"
        if not isinstance(status, RunStatus):
            return Panel(Text(str(status.get("message", "")) or "..."), title=title)
        latest = status.latest
        facts = Table.grid(padding=(0, 2))
        facts.add_row(
            f"step {status.step}/{status.steps}",
            f"loss {latest['loss']:.5f}" if "loss" in latest else "loss --",
            f"lag student {latest.get('student_lag', 0)} teacher {latest.get('teacher_lag', 0)}",
            f"{latest.get('samples_per_second', 0.0):.2f} samples/s",
            f"ETA {self.eta(status.step, status.steps)}",
        )
        roles = Table.grid(padding=(0, 2))
        for role, doing in status.roles.items():
            idle = latest.get(f"{role}_idle_fraction")
            roles.add_row(role, f"idle {idle:4.0%}" if idle is not None else "", doing)
        counts = status.counts
        books = (
            f"micro-batches: {counts.trained} trained, {counts.ready} ready, "
            f"{counts.in_flight} in flight, {counts.waiting} waiting"
        )
        bar = ProgressBar(total=status.steps, completed=status.step)
        return Panel(Group(bar, facts, roles, Text(books, style="dim")), title=title)
