"""One Ray task with a deadline."""

from __future__ import annotations

import time

import pytest

from dopsd.errors import DataError, DeadlineError, WorkerError
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.task import run_task

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROLE = Role("learner", 1, 0.5, 0.0)


def add(*numbers: int) -> int:
    return sum(numbers)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def fail(error: Exception) -> None:
    raise error


def test_what_the_task_returns_or_raises():
    assert run_task("preview", "adding", ROLE, 60, add, 1, 2) == 3
    with pytest.raises(DataError, match=r"^the file$"):
        run_task("preview", "reading", ROLE, 60, fail, DataError("the file"))
    with pytest.raises(WorkerError, match=r"^preview: KeyError: 'x'$"):
        run_task("preview", "reading", ROLE, 60, fail, KeyError("x"))


def test_a_late_task_is_named_and_ended():
    # Two of these do not fit into the cluster's 4 CPUs, of which another test's actor that is not
    # yet gone may still hold one.
    most = Role("learner", 1, 2.5, 0.0)
    with pytest.raises(DeadlineError, match=r"^preflight timed out after 1 s while drawing$"):
        run_task("preflight", "drawing", most, 1, sleep, 600)
    # The next task runs because the late one gave them back.
    assert run_task("preflight", "drawing", most, 120, add, 1, 2) == 3
