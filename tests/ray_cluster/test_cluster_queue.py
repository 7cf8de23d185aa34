"""Runs on one cluster wait for each other instead of holding half of what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from dopsd.ray_cluster.cluster_queue import BEAT_SECONDS, LAPSE_SECONDS, Claim, ClusterQueue
from dopsd.ray_cluster.packing import Node
from dopsd.ray_cluster.placement import Role

FOUR = [Node("a", 8, 4.0)]


@dataclass
class Runs:
    """Owners of one queue, and its clock."""

    nodes: list[Node] = field(default_factory=lambda: list(FOUR))
    most: dict[str, float] | None = None
    clock: float = 1000.0

    def __post_init__(self) -> None:
        self.claims: dict[str, Claim] = {}
        self.queue = self.new()

    def new(self, lost: bool = False) -> ClusterQueue:
        return ClusterQueue(lambda: self.nodes, lambda: self.most, lost, lambda: self.clock)

    def beat(self, owner: str, *roles: Role) -> list[str]:
        """Of one owner; returns whom it waits for."""
        claim = self.claims.get(owner) or Claim(owner, f"run {owner}", roles)
        answer = self.queue.beat(claim.to_message())
        holds, since = answer["holds"], answer["since"]
        self.claims[owner] = Claim(owner, claim.what, claim.roles, holds, since)
        return answer["ahead"]

    def holds(self, owner: str) -> bool:
        return self.claims[owner].holds


def learners(workers: int, **more) -> Role:
    return Role("learner", workers, 1.0, 1.0, **more)


def test_a_run_that_does_not_fit_beside_another_waits_and_names_it() -> None:
    runs = Runs()
    assert runs.beat("a", learners(2), Role("rollout", 1, 1.0, 1.0)) == []
    (line,) = runs.beat("b", learners(2))
    assert line == (
        "run a holds learner 2 x (1 CPU, 1 GPU) + rollout 1 x (1 CPU, 1 GPU) since "
        "1970-01-01 00:16:40 UTC"
    )
    runs.queue.leave("a")
    assert runs.beat("b") == [] and runs.holds("b")


def test_runs_that_fit_together_do_not_wait() -> None:
    runs = Runs()
    runs.beat("a", learners(2))
    assert runs.beat("b", learners(2)) == [] and runs.holds("b")


def test_each_of_them_keeps_a_cpu_for_reading() -> None:
    runs = Runs([Node("a", 4, 4.0)])
    runs.beat("a", learners(1))
    assert runs.beat("b", learners(2)) and not runs.holds("b")
    alone = Runs([Node("a", 4, 4.0)])
    assert alone.beat("a", learners(4)) == [] and alone.holds("a")


def test_first_come_first_served() -> None:
    runs = Runs()
    runs.beat("a", learners(3))
    runs.clock += 1
    runs.beat("large", learners(4))
    runs.clock += 1
    ahead = runs.beat("small", learners(1))
    assert [line.split(" since ")[0] for line in ahead] == [
        "run a holds learner 3 x (1 CPU, 1 GPU)",
        "run large waits for learner 4 x (1 CPU, 1 GPU)",
    ]
    runs.queue.leave("a")
    runs.beat("small")
    assert not runs.holds("small")
    runs.beat("large")
    assert runs.holds("large")


def test_a_dead_owners_claim_runs_out_by_itself() -> None:
    runs = Runs()
    runs.beat("a", learners(3))
    runs.clock += LAPSE_SECONDS
    runs.beat("b", learners(3))
    assert not runs.holds("b")
    runs.clock += BEAT_SECONDS
    runs.beat("b")
    assert runs.holds("b")


def test_an_elastic_run_keeps_what_it_grew_to() -> None:
    runs = Runs()
    runs.beat("a", learners(64, min_workers=1))
    assert runs.beat("b", learners(1))
    runs.nodes = [*FOUR, Node("b", 80, 62.0)]
    assert runs.beat("b") == []


def test_labels_count() -> None:
    kept, spot = {"market": "kept"}, {"market": "spot"}
    runs = Runs([Node("a", 8, 4.0, kept), Node("b", 8, 4.0, spot)])
    runs.beat("a", learners(4, labels=kept))
    assert runs.beat("b", learners(1, labels=kept))
    assert runs.beat("c", learners(1, labels=spot)), "first come, first served"
    runs.queue.leave("b")
    assert runs.beat("c") == []


def test_what_an_autoscaler_may_bring_counts() -> None:
    runs = Runs(most={"CPU": 16.0, "GPU": 6.0})
    runs.beat("a", learners(4))
    assert runs.beat("b", learners(3))
    runs.queue.leave("b")
    assert runs.beat("c", learners(2)) == []


def test_a_queue_that_was_lost_asks_everybody_before_it_lets_anybody_begin() -> None:
    runs = Runs()
    runs.beat("a", learners(3))
    runs.clock += 1
    runs.beat("b", learners(3))
    runs.queue = runs.new(lost=True)
    runs.beat("b")
    assert not runs.holds("b")
    runs.beat("a")
    runs.clock += LAPSE_SECONDS
    runs.beat("a")
    (line,) = runs.beat("b")
    assert line.startswith("run a holds") and line.endswith("00:16:40 UTC")


def test_the_last_one_ends_it() -> None:
    runs = Runs()
    runs.beat("a", learners(1))
    runs.beat("b", learners(1))
    assert not runs.queue.leave("a")
    assert runs.queue.leave("b")
