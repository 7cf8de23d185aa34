"""The laws of the shared pools, whatever takes how long and whoever dies."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from dopsd.errors import WorkerError
from dopsd.library.disaggregated.flow import Flow, Ticket
from dopsd.library.disaggregated.in_flight import MOST, Shape, StepTimes, concepts_per_learner


@dataclass
class _Concept:
    """A learner's side of one: what it has published and trained."""

    lane: int
    sizes: list[int]
    version: int = 0
    served: Counter[Ticket] = field(default_factory=Counter)


def test_each_step_is_rolled_out_by_its_own_version_and_trained_once_the_oldest_first() -> None:
    """Two stages of three workers, four concepts in flight, random times, deaths and losses."""
    chance, flow = random.Random(5), Flow(2)
    left = [f"concept {number}" for number in range(40)]
    going: dict[str, _Concept] = {}
    busy: list[dict[int, Ticket]] = [{}, {}]
    done = 0

    def publish(own: _Concept) -> None:
        size = own.sizes[own.version] if own.version < len(own.sizes) else 0
        blocks = [f"block {own.lane} {own.version} {index}" for index in range(size)]
        flow.publish(own.lane, own.version, f"version {own.version}", blocks)

    while left or going:
        while left and len(going) < 4:  # one is admitted when one ends
            sizes = [chance.randint(1, 4) for _ in range(chance.randint(1, 6))]
            own = _Concept(flow.open(name := left.pop(0), 0, sizes), sizes)
            going[name] = own
            publish(own)
        for stage in (0, 1):
            for worker in range(3):
                if worker in busy[stage] or (oldest := flow.oldest(stage)) is None:
                    continue
                item = flow.take(stage)
                assert item is oldest
                busy[stage][worker] = item.ticket
                lane = next(own for own in going.values() if own.lane == item.ticket.lane)
                assert (
                    item.bundle == f"version {item.ticket.step}"
                    and item.ticket.step == lane.version
                )
                assert item.block == "block {} {} {}".format(*item.ticket)
                assert item.inputs == (("rolled out", item.ticket),) * stage
            # No worker is without work while something waits for its stage.
            assert len(busy[stage]) == 3 or flow.oldest(stage) is None
        working = [(stage, worker) for stage in (0, 1) for worker in busy[stage]]
        assert working or any(flow.results(c.lane, c.version) for c in going.values())
        if working:
            stage, worker = chance.choice(working)
            ticket = busy[stage].pop(worker)
            if chance.random() < 0.1:
                flow.again(ticket, "its node went away", blamed=False)
            else:
                flow.passed(ticket, ("scored" if stage else "rolled out", ticket))
        for name, own in list(going.items()):
            items = flow.results(own.lane, own.version)
            if items is None or chance.random() < 0.5:
                continue
            assert [item.ticket for item in items] == [
                Ticket(own.lane, own.version, index) for index in range(own.sizes[own.version])
            ]
            if chance.random() < 0.1:  # a scored object is lost
                flow.lose(items[0].ticket, items[0].lost)
                flow.lose(items[0].ticket, items[0].lost - 1)  # told once more, late
                assert flow.results(own.lane, own.version) is None
                continue
            own.served.update(item.ticket for item in items)
            own.version += 1
            if own.version < len(own.sizes):
                publish(own)
            else:
                assert set(own.served.values()) == {1} and own.served.total() == sum(own.sizes)
                flow.close(own.lane)
                del going[name]
                done += 1
        assert all(lane.books.counts().conserved for lane in flow._lanes.values())
    assert done == 40 and busy == [{}, {}]


def test_the_oldest_concept_goes_first_whatever_came_first() -> None:
    flow = Flow(1)
    old, young = flow.open("old", 0, [1, 1]), flow.open("young", 0, [2])
    flow.publish(young, 0, "young 0", ["a", "b"])
    flow.publish(old, 0, "old 0", ["c"])
    taken = [flow.take(0).ticket for _ in range(3)]
    assert taken == [Ticket(old, 0, 0), Ticket(young, 0, 0), Ticket(young, 0, 1)]
    assert flow.oldest(0) is None
    flow.passed(taken[0], "scored")
    assert flow.results(old, 1) is None, "version 1 is not there"
    flow.publish(old, 1, "old 1", ["d"])
    assert flow.take(0).ticket == Ticket(old, 1, 0)


def test_a_concept_that_fails_or_whose_learner_died_costs_the_others_nothing() -> None:
    flow = Flow(2)
    bad, good = flow.open("bad", 0, [2]), flow.open("good", 0, [1])
    flow.publish(bad, 0, "v", ["a", "b"])
    flow.publish(good, 0, "v", ["c"])
    first, second = flow.take(0).ticket, flow.take(0).ticket
    flow.again(first, "killed", blamed=True)
    assert flow.take(0).ticket == first, "once it may be the machine"
    flow.again(first, "killed", blamed=True)
    with pytest.raises(WorkerError, match="step 0 micro-batch 0: 2 workers ended at it: killed"):
        flow.results(bad, 0)
    flow.passed(second, "too late")
    assert flow.take(0).ticket.lane == good and flow.oldest(1) is None
    again = flow.open("bad", 0, [1])
    with pytest.raises(WorkerError, match="another learner"):
        flow.results(bad, 0)
    flow.publish(bad, 0, "v", ["x", "y"])  # by the learner that is given up
    assert flow.oldest(0) is None and again > good
    flow.drop("bad")
    flow.publish(again, 0, "v", ["a"])
    assert flow.oldest(0) is None


def test_what_is_lost_again_and_again_fails_its_concept() -> None:
    flow = Flow(1)
    lane = flow.open("a", 3, [1] * 5)
    flow.publish(lane, 3, "v", ["block"])
    for _ in range(21):
        flow.again(flow.take(0).ticket, "gone", blamed=False)
    with pytest.raises(WorkerError, match="step 3 micro-batch 0: lost 20 times"):
        flow.results(lane, 3)


def test_as_many_concepts_as_keep_a_learner_busy() -> None:
    assert concepts_per_learner(26.0, 0.0, 38.0) == 2
    assert concepts_per_learner(26.0, 13.0, 38.0) == 3
    assert concepts_per_learner(0.0, 0.0, 1.0) == 1
    times, roles = StepTimes(), {"rollout": Shape(4, 2), "teacher": Shape(4, 3)}
    assert times.per_learner(roles) is None
    for _ in range(9):
        times.served("rollout", 1.0)
        times.served("teacher", 2.0)
        times.learned(4.0, 0.5)
    # 2 rounds of 1 s, 2 of 2 s, and 0.5 s, beside steps of 4 s.
    assert times.per_learner(roles) == 1 + 2
    for _ in range(99):
        times.learned(0.01, 0.0)
    assert times.per_learner(roles) == MOST
