"""Which workers of a pool load a version; no actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dopsd.coordinator.pooled_worker import Call
from dopsd.coordinator.worker_pool import WorkerPool
from dopsd.models.lora.layers import STUDENT
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import resolve_roles
from tests.helpers.tiny import make_config

WORKERS = 5


def bundle(version: int) -> Bundle:
    return Bundle(version, {STUDENT: f"weights {version}"}, {STUDENT: f"sum {version}"}, 1)


class Pool(WorkerPool):
    """Calls of its workers are words, and over when the test says so."""

    def _launch(self) -> Any:
        load = SimpleNamespace(remote=lambda version, *payloads: f"load {version}")
        return SimpleNamespace(load=load)

    def acknowledge(self) -> list[str]:
        """Loads are over; returns whose."""
        names = []
        for worker in self.workers:
            if (loaded := worker.loading) is not None:
                worker.calls = [call for call in worker.calls if call.key is not None]
                worker.bundle, worker.loaded = loaded, loaded.version
                names.append(worker.name)
        return names

    def work(self, number: int, calls: int = 1) -> None:
        worker = self.workers[number]
        assert worker.bundle is not None
        worker.calls += [Call((0, at), worker.bundle, "done", None, 0.0) for at in range(calls)]


@pytest.fixture
def pool():
    config = make_config("base", rollout={"workers": WORKERS})
    rollout = resolve_roles(config, 0.0).rollout
    assert rollout is not None
    return Pool(config, rollout, (STUDENT,), "generate")


def test_no_more_workers_load_than_the_step_can_use(pool):
    first = bundle(0)
    for _ in range(3):  # asked for again and again, as the coordinator does
        pool.load(first, 2)
        assert pool.free_worker(first) is None, "they have not acknowledged it"
    assert pool.acknowledge() == ["rollout-0", "rollout-1"]
    pool.load(first, 2)
    assert pool.acknowledge() == [] and pool.free_worker(first) is pool.workers[0]
    pool.load(first, 100)
    assert pool.acknowledge() == ["rollout-2", "rollout-3", "rollout-4"]


def test_those_that_are_idle_and_up_load_the_next_version(pool):
    first, second = bundle(0), bundle(1)
    pool.load(first, 3)
    pool.acknowledge()
    pool.work(0, 2), pool.work(1)
    pool.load(second, 1)
    assert pool.acknowledge() == ["rollout-2"], "rather than one that has not loaded its model"
    assert pool.free_worker(first) is pool.workers[1], "the others go on with their version"
    pool.load(second, 4)
    assert pool.acknowledge() == ["rollout-1", "rollout-3", "rollout-4"]
    assert [call.key for call in pool.workers[1].calls] == [(0, 0)], "its weights change behind it"


def test_idle_workers_without_weights_are_no_sign_of_a_start(pool):
    assert pool.starting(), "nobody has any"
    pool.load(bundle(0), 2)
    assert pool.starting()
    pool.acknowledge()
    assert not pool.starting(), "the step needs no more than these two"
    pool.load(bundle(1), 3)
    assert pool.starting(), "a third one loads its model"
