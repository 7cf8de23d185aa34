"""Inference workers on nodes that go; its actors are played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from dopsd.errors import WorkerError
from dopsd.library.disaggregated import inference_pool as module
from dopsd.library.disaggregated.flow import Item, Ticket
from dopsd.library.disaggregated.inference import Settings
from dopsd.library.disaggregated.inference_pool import Dropped, InferencePool
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import Role
from tests.library.catalogue.test_catalogue import config
from tests.library.played import Cluster

POLICY = (0, 0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(module, "on_lost_nodes", made.lost)
    monkeypatch.setattr(module, "node_of", lambda handle: None)
    return made


def arrived(cluster: Cluster, nodes: str) -> InferencePool:
    """A pool with a worker on each of ``nodes``, a letter each."""
    role = Role("rollout", len(nodes), 1.0, 0.0)
    run = config("source=disaggregated", "inference.max_inflight=1")
    pool = InferencePool(SimpleNamespace, run, role, ("student",), "generate")
    for handle, node in zip(cluster.actors, nodes, strict=True):
        handle.last("arrive").value = node
    assert list(pool.collect()) == [] and pool.here == len(nodes)
    return pool


def submit(pool: InferencePool) -> None:
    worker = pool.free(POLICY)
    assert worker is not None
    bundle = Bundle(0, {"student": "payload"}, {"student": "checksum"}, 1)
    pool.submit(worker, Item(Ticket(0, 0, 0), bundle, "block", Settings("x0")))


def test_who_leaves_serves_until_another_has_loaded_the_base(cluster: Cluster) -> None:
    pool = arrived(cluster, "ab")
    pool.move({"b"})
    pool.move({"b"})
    _, leaving, successor = cluster.actors
    submit(pool)
    submit(pool)
    assert leaving.last("serve") and pool.free(POLICY) is None, "it serves while nobody else does"
    successor.last("arrive").value = "c"
    assert list(pool.collect()) == []
    pool.move({"b"})
    assert not leaving.killed, "its call goes on"
    leaving.last("serve").value = {"seconds": 1.0}
    assert [event.seconds for event in pool.collect()] == [1.0]  # type: ignore[union-attr]
    pool.move({"b"})
    assert leaving.killed and pool.here == 2
    submit(pool)
    assert successor.last("serve")


def test_the_successor_of_one_that_died_on_its_way_is_the_next(cluster: Cluster) -> None:
    pool = arrived(cluster, "a")
    pool.move({"a"})
    cluster.gone = {"b"}
    cluster.actors[1].last("arrive").value = ActorUnavailableError("gone", None)
    assert list(pool.collect()) == []
    cluster.actors[2].last("arrive").value = "c"
    assert list(pool.collect()) == []
    pool.move({"a"})
    assert cluster.actors[0].killed and len(cluster.actors) == 3 and pool.here == 1


@pytest.mark.parametrize(
    ("error", "gone", "blamed"),
    [
        (ActorDiedError(), "", True),
        (ActorDiedError(), "a", False),
        (ActorUnavailableError("gone", None), "", False),
    ],
)
def test_a_micro_batch_is_blamed_for_no_node(
    cluster: Cluster, error: Exception, gone: str, blamed: bool
) -> None:
    pool = arrived(cluster, "a")
    submit(pool)
    cluster.gone = set(gone)
    cluster.actors[0].last("serve").value = error
    (event,) = pool.collect()
    assert isinstance(event, Dropped) and event.blamed is blamed
    assert cluster.actors[0].killed and len(cluster.actors) == 2


@pytest.mark.parametrize(("gone", "blamed"), [("", [False, False, True]), ("a", [False] * 3)])
def test_one_at_which_workers_are_unavailable_each_time_is_blamed(
    cluster: Cluster, gone: str, blamed: list[bool]
) -> None:
    pool = arrived(cluster, "a")
    cluster.gone = set(gone)
    said = []
    for _ in blamed:
        submit(pool)
        cluster.actors[-1].last("serve").value = ActorUnavailableError("gone", None)
        (event,) = pool.collect()
        assert isinstance(event, Dropped)
        said.append(event.blamed)
        cluster.actors[-1].last("arrive").value = "a"
        assert list(pool.collect()) == []
    assert said == blamed


def test_workers_that_are_unavailable_before_they_arrive_end_the_run(cluster: Cluster) -> None:
    pool = arrived(cluster, "a")
    submit(pool)
    cluster.actors[0].last("serve").value = ActorDiedError()
    assert len(list(pool.collect())) == 1
    with pytest.raises(WorkerError, match="3 rollout workers in a row ended before they had"):
        for _ in range(3):
            cluster.actors[-1].last("arrive").value = ActorUnavailableError("gone", None)
            assert list(pool.collect()) == []
