"""A worker that computes nothing, and fails as the name of a concept says."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

from dopsd.errors import DataError, WorkerError
from dopsd.library.workers.jobs import Job, News, SavedState, Trained

EVERY, SECONDS = 4, 0.01
"""Steps between two states, and what a step takes."""


def adapter(concept: str, steps: int) -> str:
    """What training a concept gives, whoever trains it how often."""
    value = concept
    for step in range(steps):
        value = after(value, step)
    return value


def after(value: str, step: int) -> str:
    return hashlib.sha256(f"{value}/{step}".encode()).hexdigest()


class FakeWorker:
    """``folder``: where each process writes what it trains, under its id; ``seconds``: of a
    step."""

    def __init__(self, folder: str, seconds: float = SECONDS) -> None:
        self._file, self._seconds = Path(folder) / str(os.getpid()), seconds
        self._back = ""
        self._lock = threading.Lock()
        self._news = News("", 0, None)

    def load(self) -> None:
        self._trained = 0

    def train(self, job: Job) -> Trained | SavedState:
        self._file.write_text(job.concept)
        value = job.files["student"].decode() if job.files else job.concept
        self._tell(job.concept, job.first, None)
        for step in range(job.first, job.config.learner.steps):
            time.sleep(self._seconds)
            value = after(value, step)
            self._fail(job.concept, step)
            losses = [(number, 1.0) for number in range(step + 1)]
            state = SavedState(step + 1, losses, {"student": value.encode()})
            if self._back == job.concept and step + 1 < job.config.learner.steps:
                return state
            self._tell(job.concept, step + 1, None if (step + 1) % EVERY else state)
        self._file.unlink()
        self._trained += 1
        steps = job.config.learner.steps
        return Trained(value.encode(), None, steps, "", (1.0, 0.5), value, 0.1, 0.0)

    def give_back(self, concept: str) -> None:
        self._back = concept

    def news(self, concept: str) -> News:
        with self._lock:
            news = self._news
            self._news = News(news.concept, news.step, None)
            return news

    def _tell(self, concept: str, step: int, state: SavedState | None) -> None:
        with self._lock:
            before = self._news.state if self._news.concept == concept else None
            self._news = News(concept, step, state or before)

    def _fail(self, concept: str, step: int) -> None:
        kind = concept.partition(" ")[0]
        if kind == "nan" and step == 5:
            raise WorkerError(f"step {step}: loss or gradients are not finite, 6 steps in a row")
        if kind == "oom" and step == 2:
            raise MemoryError("80 GiB")
        if kind == "corrupt" and step == 3:
            raise DataError("shard-00001.parquet: row group 3 is damaged")
        if kind == "killer" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "warm" and self._trained:
            raise RuntimeError("only a fresh process can do it")
        if kind == "hang" and step == 3:
            time.sleep(600)
