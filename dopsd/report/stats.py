"""`dopsd stats`: medians of a run's metrics, side by side with other runs."""

from __future__ import annotations

import statistics
from typing import Any

from dopsd import shown
from dopsd.errors import DataError
from dopsd.readers import read_json
from dopsd.report.records import SummaryRecord, numbers
from dopsd.run_folder.files import METRICS_FILE, SUMMARY_FILE, RunFolder
from dopsd.run_folder.log import read_metric_lines

_ROLES = ("encoder", "rollout", "teacher", "learner")
_WARM_UP = 3
"""Steps left out of the medians: caches fill, and the first wait covers the start."""


def read_run(folder: str) -> tuple[SummaryRecord, list[dict[str, Any]]]:
    """(summary, metric lines) of a run folder.

    Raises DataError when it is none, when the run is not finished, or when no metrics are left.
    """
    run = RunFolder(folder)
    for name in (SUMMARY_FILE, METRICS_FILE):
        if not run.has(name):
            raise DataError(f"{run.file(name)}: missing; allowed: the folder of a finished run")
    if not (lines := numbers(read_metric_lines(folder))):
        raise DataError(f"{run.file(METRICS_FILE)}: no step's metrics are in it")
    return read_json(run.file(SUMMARY_FILE), SummaryRecord), lines


def stats_table(folders: list[str]) -> str:
    """A Markdown table with one column per run."""
    columns = [_column(*read_run(folder)) for folder in folders]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    lines = [
        f"| | {' | '.join(map(shown.cell, folders))} |",
        f"| --- |{' ---: |' * len(folders)}",
        *(f"| {key} | {' | '.join(column.get(key, '') for column in columns)} |" for key in keys),
    ]
    return "\n".join(lines)


def _column(summary: SummaryRecord, lines: list[dict[str, Any]]) -> dict[str, str]:
    warm = lines[_WARM_UP:] or lines

    def median(key: str) -> float | None:
        values = [line[key] for line in warm if key in line]
        return statistics.median(values) if values else None

    column = {
        "seconds to the first step": f"{summary.seconds_to_first_step:.0f}",
        "seconds to the end": f"{summary.seconds:.0f}",
        "steps": str(summary.steps),
        "max_policy_lag": str(summary.max_policy_lag),
    }
    if (wall := median("wall_seconds")) is not None:
        column["seconds per step"] = f"{wall:.2f}"
    for role in _ROLES:
        if (seconds := median(f"{role}_seconds")) is not None:
            column[f"{role}: busy seconds per step"] = f"{seconds:.2f}"
        if (idle := median(f"{role}_idle_fraction")) is not None:
            column[f"{role}: idle fraction"] = f"{idle:.2f}"
        if peak := max(line.get(f"{role}_peak_memory_mb", 0.0) for line in lines):
            column[f"{role}: peak memory, MB per process"] = f"{peak:.0f}"
    return column
