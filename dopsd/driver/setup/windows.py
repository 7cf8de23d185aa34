"""Is there time to save when somebody asks the run for its end? What Ray and Kubernetes grant is in
the environment; what it takes is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dopsd.coordinator.messages import RunStatus

STOP, DRAIN = "RAY_JOB_STOP_WAIT_TIME_S", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_DEFAULTS = {STOP: 3.0, DRAIN: 30.0}
"""Ray's own, in seconds."""
_WHAT = {STOP: "a job that is stopped or deleted", DRAIN: "a pod that is taken away"}
_LEAST = 30.0
"""Seconds within which nothing of a real size is saved."""
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for the driver of a job."""
_POD = "KUBERNETES_SERVICE_HOST"


@dataclass(frozen=True)
class StopWindows:
    """Seconds between the word and the kill, by the variable that grants them; those alone that
    count here."""

    seconds: Mapping[str, float]

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> StopWindows:
        """Of this process: a job's, a pod's, or none."""
        asked = [name for name, mark in ((STOP, _JOB), (DRAIN, _POD)) if mark in environment]
        return cls({name: _number(environment.get(name), _DEFAULTS[name]) for name in asked})

    def at_start(self) -> list[str]:
        """What is too short whatever the run."""
        return [self._line(name, s, "") for name, s in self.seconds.items() if s < _LEAST]

    def measured(self, status: RunStatus) -> list[str]:
        """What is too short for this run, once it has saved."""
        step = status.latest.get("wall_seconds")
        if step is None or status.save_seconds is None:
            return []
        needed = step + status.save_seconds
        took = f" a step and its checkpoint took {needed:.0f} s;"
        return [self._line(n, s, took) for n, s in self.seconds.items() if s < needed]

    def _line(self, name: str, seconds: float, took: str) -> str:
        return (
            f"WARNING: {_WHAT[name]} is killed after {seconds:g} s ({name});{took} give it more, "
            "or what was trained since the last checkpoint is trained again"
        )


def _number(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:  # Ray says so itself
        return default
