"""A library of concepts that compute nothing, as a command of its own on a cluster that is there:
``python -m tests.library.elastic FOLDER COUNT SECONDS CPUS`` (of a step; of a worker) says, with
times, what its command says."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dopsd.driver.monitoring.progress import Event, Report
from dopsd.library.workers import pool
from dopsd.ray_cluster.connect import connect
from tests.library.test_training import start


def names(count: int) -> list[str]:
    """Of the concepts."""
    return [f"pets/{number:04}" for number in range(count)]


def show(event: Event) -> None:
    for line in event.lines if isinstance(event, Report) else [str(event)]:
        print(f"{time.time():.1f} {line}", flush=True)


def main(folder: str, count: str, seconds: str, cpus: str) -> None:
    pool._NEWS_SECONDS = min(pool._NEWS_SECONDS, 2 * float(seconds))
    connect()
    of_a_step = {"seconds": float(seconds), "cpus": float(cpus)}
    summary = start(Path(folder), names(int(count)), show, **of_a_step)
    print(f"{time.time():.1f} all done: {summary.counts.done}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
