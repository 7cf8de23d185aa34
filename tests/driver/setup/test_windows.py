"""A run says when a stop would leave it no time to save."""

from __future__ import annotations

from dopsd.coordinator.messages import RunStatus
from dopsd.driver.setup.windows import DRAIN, STOP, StopWindows

JOB, POD = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def status(step: float | None, save: float | None) -> RunStatus:
    return RunStatus(1, 8, {} if step is None else {"wall_seconds": step}, save_seconds=save)


def test_without_a_job_there_is_no_window() -> None:
    windows = StopWindows.here({})
    assert windows.at_start() == windows.measured(status(1e6, 1e6)) == []


def test_rays_own_default_is_too_short_for_anything() -> None:
    (line,) = StopWindows.here(JOB).at_start()
    assert line.startswith(
        "WARNING: a job that is stopped or deleted is killed after 3 s (RAY_JOB_STOP_WAIT_TIME_S);"
    )
    assert StopWindows.here({**JOB, STOP: "300", **POD, DRAIN: "120"}).at_start() == []
    assert len(StopWindows.here({**JOB, STOP: "soon"}).at_start()) == 1


def test_a_window_is_held_against_what_was_measured() -> None:
    windows = StopWindows.here({**JOB, STOP: "300", **POD, DRAIN: "120"})
    assert windows.measured(status(9.0, None)) == windows.measured(status(None, 9.0)) == []
    assert windows.measured(status(60.0, 59.0)) == []
    (drain,) = windows.measured(status(60.0, 80.0))
    assert "a pod that is taken away is killed after 120 s" in drain and "took 140 s" in drain
    assert len(windows.measured(status(300.0, 80.0))) == 2
