"""What a pool of inference actors charges to a worker's budget of restarts."""

from __future__ import annotations

import pytest

from dopsd.coordinator import worker_pool
from dopsd.coordinator.worker_pool import WorkerPool
from dopsd.errors import WorkerError
from dopsd.ray_cluster.placement import Role
from tests.helpers.tiny import make_config

REASON = WorkerError("rollout-0 died")


class Pool(WorkerPool):
    """Its actors are numbers, each on a node of its own."""

    launched = 0

    def _launch(self) -> int:
        self.launched += 1
        return self.launched


@pytest.fixture
def lost(monkeypatch) -> set[str]:
    """Nodes that are gone."""
    nodes: set[str] = set()
    monkeypatch.setattr(worker_pool, "node_of", lambda actor: f"node-{actor}")
    monkeypatch.setattr(
        worker_pool, "on_lost_nodes", lambda died_on: sum(node in nodes for node in died_on)
    )
    monkeypatch.setattr(worker_pool.ray, "kill", lambda actor: None)
    return nodes


def pool_of(restarts: int) -> Pool:
    config = make_config("base", inference={"max_restarts": restarts})
    return Pool(config, Role("rollout", 1, 1.0, 0.0), ("student",), "generate")


def test_a_worker_that_was_lost_with_its_node_is_replaced_for_nothing(lost) -> None:
    pool = pool_of(0)
    (worker,) = pool.workers
    for number in range(1, 4):
        lost.add(f"node-{number}")
        pool._restart(worker, REASON)
    assert worker.restarts == 3 and worker.handle == 4
    with pytest.raises(WorkerError, match=r"exhausted \(inference.max_restarts=0\)"):
        pool._restart(worker, REASON)


def test_a_node_that_is_known_to_be_gone_only_later_is_given_back(lost) -> None:
    pool = pool_of(1)
    (worker,) = pool.workers
    pool._restart(worker, REASON)
    lost.add("node-1")
    pool._restart(worker, REASON)
    with pytest.raises(WorkerError, match=r"exhausted \(inference.max_restarts=1\)"):
        pool._restart(worker, REASON)
