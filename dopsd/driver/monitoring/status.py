"""How a run stands, from its folder alone, local or on S3: `dopsd status`."""

from __future__ import annotations

import contextlib
import shlex
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from dopsd.checkpoint.folder import complete_steps, folder_of, read_manifest
from dopsd.config.load import as_override
from dopsd.driver.monitoring.progress import clock
from dopsd.errors import CheckpointError, ConfigError
from dopsd.files import storage
from dopsd.ownership.lease import CLOCK, EXPIRY_SECONDS, holder
from dopsd.run_folder.files import CONFIG_FILE, LEDGER_FILE, LOGS, NOTICES_FILE, RunFolder
from dopsd.run_folder.jsonl import read_lines
from dopsd.run_folder.ledger import is_ledger_line
from dopsd.run_folder.log import read_metric_lines

_RECENT = 20
"""Steps whose median is the rate."""
_SHOWN = 5
"""Notices, the newest, and logs."""


@dataclass(frozen=True)
class Writer:
    """The process that has claimed the folder."""

    process: str
    since: str
    beat_age: float | None
    """Seconds since its last heart-beat, by the clocks of both machines; None without one."""
    lives: bool | None
    """None where that cannot be told."""


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint."""

    step: int
    age: float
    """Seconds, by the clocks of both machines."""


@dataclass(frozen=True)
class RunState:
    """A run, as its folder tells."""

    folder: str
    state: Literal["preparing", "training", "finished", "not running"]
    step: int
    """Trained steps."""
    steps: int | None
    """Of the whole run; None while it is being prepared."""
    seconds_per_step: float | None
    samples_per_second: float | None
    seconds_left: float | None
    loss: float | None
    restarts: int
    """Groups of learners after the first, whatever ended the one before."""
    saved: Saved | None
    writer: Writer | None
    notices: list[str]
    logs: list[str]
    """Ends of the logs of processes that died."""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        of = f" of {self.steps}" if self.steps else ""
        yield f"{self.folder}: {self.state}, step {self.step}{of}"
        if self.seconds_per_step is not None:
            left = "" if self.seconds_left is None else f", {clock(self.seconds_left)} left"
            samples = f", {self.samples_per_second or 0:.2f} samples/s"
            yield f"  rate        {self.seconds_per_step:.2f} s a step{samples}{left}"
        if self.loss is not None:
            yield f"  loss        {self.loss:.5f}"
        yield f"  restarts    {self.restarts} of the learners"
        saved = "none" if self.saved is None else f"step {self.saved.step}, {_ago(self.saved.age)}"
        yield f"  checkpoint  {saved}"
        yield f"  written by  {self._written_by()}"
        for line in self.notices:
            yield f"  notice      {line}"
        for path in self.logs:
            yield f"  log         {path}"
        if way := self.way_on():
            yield f"  next        {way}"

    def way_on(self) -> str | None:
        """The command that goes on with a run that has stopped; None where there is none."""
        if self.state != "not running" or self.steps is None:
            return None
        if self.saved is not None:
            return shlex.join(["dopsd", "train", "--resume", self.folder])
        config = storage.join(self.folder, CONFIG_FILE)
        words = ["dopsd", "train", config, as_override("run.folder", self.folder), "--overwrite"]
        return f"{shlex.join(words)} (no checkpoint is saved: it begins again)"

    def _written_by(self) -> str:
        writer = self.writer
        if writer is None:
            return "nobody"
        beat = "no heart-beat" if writer.beat_age is None else f"beat {_ago(writer.beat_age)}"
        dead = ", dead" if writer.lives is False else ""
        return f"{writer.process} since {writer.since}, {beat}{dead}"


def run_state(folder: str) -> RunState:
    """Raises ConfigError for a folder that holds no run, LeaseHeld for a claim that is none, and
    StorageError."""
    run, now = RunFolder(folder), time.time()
    writer = _writer(folder, now)
    if not run.exists and writer is None:
        raise ConfigError(f"{folder}: holds no run; allowed: a run folder, local or s3://")
    steps = run.config().learner.steps if run.exists else None
    metrics = read_metric_lines(folder)
    latest: dict[str, Any] = metrics[-1] if metrics else {}
    step = latest.get("step", -1) + 1
    rate = _median(metrics[-_RECENT:])
    runs = writer is not None and writer.lives is not False
    left = rate * (steps - step) if runs and rate is not None and steps is not None else None
    attempts = {line["attempt"] for line in read_lines(run.file(LEDGER_FILE), is_ledger_line)}
    logs = sorted(storage.join(LOGS, name) for name in storage.names(run.file(LOGS)))
    return RunState(
        folder=folder,
        state=_state(run, runs, bool(metrics)),
        step=step,
        steps=steps,
        seconds_per_step=rate,
        samples_per_second=_samples_per_second(metrics[-_RECENT:]),
        seconds_left=left,
        loss=latest.get("loss"),
        restarts=max(0, len(attempts) - 1),
        saved=_newest(run, now),
        writer=writer,
        notices=_notices(run)[-_SHOWN:],
        logs=[run.file(name) for name in logs[-_SHOWN:]],
    )


def _state(
    run: RunFolder, runs: bool, trained: bool
) -> Literal["preparing", "training", "finished", "not running"]:
    if run.is_finished:
        return "finished"
    if not runs:
        return "not running"
    return "training" if trained else "preparing"


def _writer(folder: str, now: float) -> Writer | None:
    if (found := holder(folder)) is None:
        return None
    owner, beat = found
    age = None
    if beat is not None:
        with contextlib.suppress(ValueError):
            age = max(0.0, now - datetime.strptime(beat, CLOCK).timestamp())
    lives = owner.lives
    if lives is None and (age is None or age > EXPIRY_SECONDS[storage.is_remote(folder)]):
        lives = False
    return Writer(str(owner), owner.since, age, lives)


def _newest(run: RunFolder, now: float) -> Saved | None:
    for step in reversed(complete_steps(run.checkpoints)):
        # It may be pruned meanwhile, or be another dopsd's.
        with contextlib.suppress(CheckpointError, FileNotFoundError):
            written = read_manifest(folder_of(run.checkpoints, step)).written
            return Saved(step, max(0.0, now - written))
    return None


def _notices(run: RunFolder) -> list[str]:
    try:
        return run.read(NOTICES_FILE).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _median(lines: list[dict[str, Any]]) -> float | None:
    seconds = [line["wall_seconds"] for line in lines if "wall_seconds" in line]
    return statistics.median(seconds) if seconds else None


def _samples_per_second(lines: list[dict[str, Any]]) -> float | None:
    """Of the steps whose seconds are the rate, waiting for trajectories included."""
    rates = [line["samples"] / line["wall_seconds"] for line in lines if line.get("wall_seconds")]
    return statistics.median(rates) if rates else None


def _ago(seconds: float) -> str:
    return f"{clock(seconds)} ago"
