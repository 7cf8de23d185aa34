"""Runs on one cluster wait for each other instead of holding half of what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from dopsd.errors import ResourceError
from dopsd.ray_cluster.cluster_queue import BEAT_SECONDS, LAPSE_SECONDS, Claim, ClusterQueue
from dopsd.ray_cluster.packing import Node
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.to_come import MOST, most_resources

FOUR = [Node("a", 8, 4.0)]


@dataclass
class Runs:
    """Owners of one queue, and its clock."""

    nodes: list[Node] = field(default_factory=lambda: list(FOUR))
    clock: float = 1000.0

    def __post_init__(self) -> None:
        self.claims: dict[str, Claim] = {}
        self.queue = self.new()

    def new(self, lost: bool = False) -> ClusterQueue:
        return ClusterQueue(lambda: self.nodes, lost, lambda: self.clock, lambda: self.clock)

    def beat(self, owner: str, *roles: Role, **more) -> list[str]:
        """Of one owner; returns whom it waits for."""
        claim = self.claims.get(owner) or Claim(owner, f"run {owner}", roles, **more)
        answer = self.queue.beat(claim.to_message())
        self.claims[owner] = replace(claim, holds=answer["holds"], since=answer["since"])
        self.missing = answer["missing"]
        return answer["ahead"]

    def spend(self, seconds: float, *owners: str) -> None:
        """Time passes, in which the ``owners`` beat."""
        for _ in range(round(seconds / BEAT_SECONDS)):
            self.clock += BEAT_SECONDS
            for owner in owners:
                self.beat(owner)

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
    runs.beat("b", learners(3))
    runs.spend(LAPSE_SECONDS - BEAT_SECONDS, "b")
    assert not runs.holds("b")
    runs.spend(2 * BEAT_SECONDS, "b")
    assert runs.holds("b")


def test_a_queue_that_stood_still_forgets_nobody() -> None:
    runs = Runs()
    runs.beat("a", learners(3))
    runs.beat("b", learners(3))
    runs.clock += 3600  # its host was paused: the first to be heard is not the only one alive
    runs.beat("b")
    assert not runs.holds("b")
    runs.spend(20, "b", "a")
    assert not runs.holds("b") and runs.holds("a")
    runs.spend(2 * LAPSE_SECONDS, "b")
    assert runs.holds("b"), "the other one died since"


def test_an_elastic_run_keeps_what_it_grew_to() -> None:
    runs = Runs()
    runs.beat("a", learners(64, min_workers=1))
    assert runs.beat("b", learners(1))
    runs.nodes = [*FOUR, Node("b", 80, 62.0)]
    assert runs.beat("b") == []


def test_an_elastic_run_begins_beside_another_only_where_it_may_grow_to_its_most() -> None:
    runs = Runs()
    runs.beat("a", learners(2))
    (line,) = runs.beat("b", learners(3, min_workers=1))
    assert line.startswith("run a holds learner 2 x ")
    assert runs.beat("c", learners(2))[1].startswith("run b waits for learner 1 to 3 x (1 CPU")
    runs.queue.leave("b")
    runs.queue.leave("c")
    assert runs.beat("d", learners(2, min_workers=1)) == []


def test_what_a_run_needs_later_counts_beside_others() -> None:
    encoder = Role("encoder", 2, 1.0, 1.0)
    runs = Runs()
    runs.beat("a", learners(2), later=(encoder,))
    assert runs.beat("b", learners(1)), "the encoders will need the other two"
    tight = Runs()
    tight.beat("a", learners(1))
    tight.beat("b", learners(4), later=(encoder,))
    assert tight.missing is None, "not at the same time"


def test_a_claim_larger_than_the_cluster_keeps_nobody_waiting() -> None:
    runs = Runs()
    runs.beat("a", learners(2))
    runs.clock += 1
    assert runs.beat("huge", learners(5))
    assert runs.missing == "learner 5 of 5: needs 1 CPU and 1 GPU"
    runs.clock += 1
    assert runs.beat("small", learners(2)) == [] and runs.missing is None
    assert "run huge waits" in " ".join(runs.beat("huger", learners(6))), "in their order"
    runs.queue.leave("a")
    runs.queue.leave("small")
    assert runs.beat("huge") == [] and runs.holds("huge"), "alone it waits for nodes"


def test_a_claim_that_an_autoscaler_may_bring_is_not_too_large() -> None:
    runs = Runs()
    runs.beat("a", learners(2))
    runs.clock += 1
    runs.beat("large", learners(5), most={"CPU": 8.0, "GPU": 6.0})
    assert not runs.holds("large") and runs.missing is None
    runs.clock += 1
    assert len(runs.beat("small", learners(1))) == 2


def test_of_another_version_a_claim_says_what_is_known() -> None:
    claim = Claim("a", "run a", (learners(2, labels={"market": "spot"}),), later=(learners(1),))
    message = claim.to_message() | {"new": 1}
    message["roles"] = [{**role, "new": 1} for role in message["roles"]]
    assert Claim.of_message(message) == claim
    del message["later"]
    assert Claim.of_message(message) == replace(claim, later=())


def test_labels_count() -> None:
    kept, spot = {"market": "kept"}, {"market": "spot"}
    runs = Runs([Node("a", 8, 4.0, kept), Node("b", 8, 4.0, spot)])
    runs.beat("a", learners(4, labels=kept))
    assert runs.beat("b", learners(1, labels=kept))
    assert runs.beat("c", learners(1, labels=spot)), "first come, first served"
    runs.queue.leave("b")
    assert runs.beat("c") == []


def test_what_an_autoscaler_may_bring_counts() -> None:
    runs, most = Runs(), {"CPU": 16.0, "GPU": 6.0}
    runs.beat("a", learners(4, min_workers=2))
    assert runs.beat("b", learners(3), most=most)
    runs.queue.leave("b")
    assert runs.beat("c", learners(2)), "its driver was not told"
    runs.queue.leave("c")
    assert runs.beat("d", learners(2), most=most) == []


def test_where_all_nodes_have_come_only_their_pieces_count() -> None:
    halves = [Node("a", 8, 2.0), Node("b", 8, 2.0)]
    whole = Role("learner", 1, 1.0, 2.0)
    runs, most = Runs(halves), {"CPU": 16.0, "GPU": 4.0}
    runs.beat("a", learners(1), learners(1), most=most)
    runs.nodes = halves[:1]
    assert runs.beat("b", whole, most=most) == [], "the other half may come"
    runs.queue.leave("b")
    runs.nodes = [Node("a", 8, 1.0), Node("b", 8, 3.0)]
    assert runs.beat("c", Role("learner", 2, 1.0, 2.0), most=most)
    assert runs.missing == "learner 2 of 2: needs 1 CPU and 2 GPU"


def test_who_runs_the_cluster_says_what_it_may_grow_to(monkeypatch) -> None:
    monkeypatch.delenv(MOST, raising=False)
    assert most_resources() is None
    monkeypatch.setenv(MOST, "CPU=256, GPU=64")
    assert most_resources() == {"CPU": 256.0, "GPU": 64.0}
    for none in ("CPU=8", "CPU=8,GPU=0"):  # what is said is all
        monkeypatch.setenv(MOST, none)
        assert most_resources() == {"CPU": 8.0, "GPU": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        *("64", "CPU=1,GPU=-1", "CPU=1,GPU=1,TPU=2", "CPU=1,GPU=1,GPU=2", "CPU=1,GPU=1,"),
        *("GPU=8", "CPU=0,GPU=8", "CPU=٨", "CPU=1e3", "CPU=inf", " "),
    ],
)
def test_what_says_nothing_is_refused(monkeypatch, text) -> None:
    monkeypatch.setenv(MOST, text)
    with pytest.raises(ResourceError, match=f"^{MOST}: '{text}', allowed: .*CPU=256,GPU=64$"):
        most_resources()


def test_more_than_any_cluster_has_is_refused_and_not_repeated(monkeypatch) -> None:
    monkeypatch.setenv(MOST, "CPU=" + "9" * 400)
    with pytest.raises(ResourceError, match=r"^DOPSD_CLUSTER_MOST: .*allowed: ") as refused:
        most_resources()
    assert len(str(refused.value)) < 250


def test_a_queue_that_was_lost_asks_everybody_before_it_lets_anybody_begin() -> None:
    runs = Runs()
    runs.beat("a", learners(3))
    runs.clock += 1
    runs.beat("b", learners(3))
    runs.queue = runs.new(lost=True)
    runs.beat("b")
    assert not runs.holds("b")
    runs.beat("a")
    runs.spend(LAPSE_SECONDS + BEAT_SECONDS, "a")
    (line,) = runs.beat("b")
    assert line.startswith("run a holds") and line.endswith("00:16:40 UTC")


def test_the_last_one_ends_it() -> None:
    runs = Runs()
    runs.beat("a", learners(1))
    runs.beat("b", learners(1))
    assert not runs.queue.leave("a")
    assert runs.queue.leave("b")
