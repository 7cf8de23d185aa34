"""What a pool makes of nodes that go and of processes that cannot be reached; its actors are
played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from dopsd.errors import DataError, WorkerError
from dopsd.library.scheduler import Outcome
from dopsd.library.workers import pool as module
from dopsd.library.workers.events import Ended, Event, Finished, Joined, Left, Told
from dopsd.library.workers.jobs import News, SavedState
from dopsd.library.workers.pool import WorkerPool
from dopsd.ray_cluster.placement import Role
from tests.library.played import Cluster

LOST, STATE = Outcome.LOST, SavedState(7, [], {})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(module, "on_lost_nodes", made.lost)
    monkeypatch.setattr(module, "LeavingNodes", lambda: made)
    monkeypatch.setattr(module, "node_of", lambda handle: None)
    monkeypatch.setattr(module, "_NEWS_SECONDS", 0.0)
    return made


def begun(cluster: Cluster, nodes: str, places: int = 1) -> WorkerPool:
    """A pool with a process on each of ``nodes``, a letter each."""
    role = Role("library", len(nodes), 1.0, 0.0)
    made = WorkerPool(object, (), role, start_s=60, step_s=60, places=places, most=places)
    made.grow(9)
    for handle, node in zip(cluster.actors, nodes, strict=True):
        handle.last("arrive").value = node
    assert {type(event) for event in made.poll()} == {Joined}
    return made


def give(pool: WorkerPool, worker: str, concept: str) -> None:
    pool.train(worker, SimpleNamespace(concept=concept, first=0))  # type: ignore[arg-type]


def ends(pool: WorkerPool) -> list[Event]:
    return list(pool.poll())


def test_a_node_that_is_announced_to_go_gets_nothing_more_and_gives_back(cluster: Cluster) -> None:
    pool = begun(cluster, "abb")
    stays, busy, idle = cluster.actors
    give(pool, "worker-0", "rex")
    give(pool, "worker-1", "aya")
    cluster.leaving = {"b"}
    assert ends(pool) == [Left("worker-2")] and idle.killed
    busy.last("news").value = news = News("aya", 3, None)
    assert ends(pool) == [Told("worker-1", news)] and ends(pool) == []
    assert busy.last("give_back") and not busy.killed
    assert "give_back" not in [ref.method for ref in stays.calls]
    pool.grow(9)
    assert len(cluster.actors) == 3 + 2, "in the places of both"
    busy.last("train").value = STATE
    told, ended = ends(pool)
    assert told == Told("worker-1", News("aya", 7, STATE))
    assert ended == Ended("worker-1", LOST, "its node will be taken away") and busy.killed
    assert not stays.killed and ends(pool) == []


def test_a_concept_that_ends_before_it_is_given_back_is_done(cluster: Cluster) -> None:
    pool = begun(cluster, "a", places=2)
    give(pool, "worker-0", "rex")
    cluster.leaving = {"a"}
    assert ends(pool) == [Left("worker-0/1")] and not cluster.actors[0].killed
    cluster.actors[0].last("train").value = "trained"
    assert ends(pool) == [Finished("worker-0", "trained"), Left("worker-0")]  # type: ignore[arg-type]
    assert cluster.actors[0].killed and pool.size == 0


def test_whether_a_process_or_its_node_is_gone_is_said_when_it_is_known(cluster: Cluster) -> None:
    pool = begun(cluster, "abc")
    for number, concept in enumerate(("rex", "aya", "tom")):
        give(pool, f"worker-{number}", concept)
        cluster.actors[number].last("train").value = ActorUnavailableError("gone", None)
    assert ends(pool) == [], "nobody knows yet"
    cluster.gone = {"a"}
    for handle in cluster.actors[:2]:
        for ref in handle.calls:
            ref.value = ref.value or ActorDiedError()
    cluster.actors[2].last("news").value = News("tom", 3, None)
    told = {event.worker: event.outcome for event in ends(pool) if isinstance(event, Ended)}
    assert told == {"worker-0": LOST, "worker-1": Outcome.DIED, "worker-2": LOST}


def test_a_worker_that_dies_or_hangs_on_a_node_that_goes_is_lost(cluster: Cluster) -> None:
    pool = begun(cluster, "ab")
    give(pool, "worker-0", "rex")
    give(pool, "worker-1", "aya")
    cluster.leaving = {"a", "b"}
    pool._members["worker-1"].limit = 0.0
    cluster.actors[0].last("train").value = ActorDiedError()
    outcomes = [event.outcome for event in ends(pool) if isinstance(event, Ended)]
    assert outcomes == [LOST, LOST]


@pytest.mark.parametrize("node", ["leaving", "gone", "stays"])
@pytest.mark.parametrize(
    ("error", "own"),
    [
        (OSError("a socket is closed"), False),
        (WorkerError("the store is gone"), False),
        (DataError("no picture"), True),
        (WorkerError("step 3: loss or gradients are not finite"), True),
    ],
)
def test_an_error_on_a_node_that_goes_is_charged_only_where_it_is_the_concepts(
    cluster: Cluster, error: Exception, own: bool, node: str
) -> None:
    pool = begun(cluster, "a")
    give(pool, "worker-0", "rex")
    if node != "stays":
        setattr(cluster, node, {"a"})
    cluster.actors[0].last("train").value = RayTaskError("train", "frames", error)
    (ended,) = ends(pool)
    charged = own or node == "stays"
    assert isinstance(ended, Ended)
    assert ended.outcome is (Outcome.FAILED if charged else Outcome.LOST)
