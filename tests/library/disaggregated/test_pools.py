"""The thread that drives the pools: whatever fails in it is told to everybody who waits for it."""

from __future__ import annotations

import time

import pytest

from dopsd.errors import WorkerError
from dopsd.library.disaggregated import pools
from dopsd.ray_cluster.placement import Role, Roles
from tests.library.catalogue.test_catalogue import config


class Broken:
    """A pool that fails where no worker's end is looked at."""

    def __init__(self, *arguments: object) -> None: ...

    def move(self, nodes: object) -> None: ...

    def pending(self) -> list[object]:
        raise OSError("no route to host\nmore of it")


def test_a_failure_anywhere_in_the_thread_reaches_the_learners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "InferencePool", Broken)
    role = Role("rollout", 1, 0.1, 0.0)
    shared = pools.SharedPools(config("source=disaggregated"), Roles(None, role, None, role))
    until = time.monotonic() + 10
    while shared._error is None and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(WorkerError, match="no route to host"):
        shared.fetch(0, 0, 10.0)
