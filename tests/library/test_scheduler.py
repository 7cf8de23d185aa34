"""The laws of the scheduler, whatever happens to workers and concepts."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from dopsd.library.scheduler import (
    DEATHS,
    Assignment,
    Outcome,
    Scheduler,
    Tries,
    process_of,
    worker_at,
)


def make(names, retries: int = 2, max_parked: float = 1.0, **earlier) -> Scheduler:
    return Scheduler(names, retries, max_parked, **earlier)


def test_ten_thousand_concepts_and_whatever_may_happen() -> None:
    chance, began = random.Random(7), time.perf_counter()
    names = [f"concept {number}" for number in range(10_000)]
    age = {name: number for number, name in enumerate(names)}
    skipped = {name: "too few pictures" for name in names[::97]}
    scheduler = make(names, skipped=skipped)
    bad = {name: chance.choice(list(Outcome)[:2]) for name in names[::31]}
    working: dict[str, Assignment] = {}
    failures, deaths, done = Counter[str](), Counter[str](), Counter[str]()
    there, joined = set[str](), 0
    while not scheduler.finished:
        if len(there) < 40 or (len(there) < 64 and chance.random() < 0.1):
            scheduler.join(worker := f"worker-{joined}")
            there.add(worker)
            joined += 1
        given = scheduler.assign()
        counts = scheduler.counts
        assert counts.conserved
        # No worker idles while anything waits, and the oldest goes first.
        assert not counts.waiting or counts.in_flight == len(there)
        assert [age[a.concept] for a in given] == sorted(age[a.concept] for a in given)
        for assignment in given:
            assert assignment.concept not in skipped and not done[assignment.concept]
            assert assignment.attempt == failures[assignment.concept] + 1
            working[assignment.worker] = assignment
        assert len({a.concept for a in working.values()}) == len(working)
        worker = chance.choice(list(working))
        name = working.pop(worker).concept
        fate = chance.random()
        if fate < 0.02:  # its node is gone
            scheduler.leave(worker)
            there.remove(worker)
        elif fate < 0.04:  # its node will be: the concept is given back
            assert scheduler.end(worker, Outcome.LOST, "drained") is None
            there.remove(worker)
        elif fate < 0.06 and name not in bad:  # it ends its concept, and leaves
            assert scheduler.finish(worker) == name
            scheduler.leave(worker)
            there.remove(worker)
            done[name] += 1
        elif name in bad:
            failures[name] += 1
            deaths[name] += bad[name] is Outcome.DIED
            parked = scheduler.end(worker, bad[name], "it is bad")
            there.remove(worker)
            assert (parked is not None) == (failures[name] == 3 or deaths[name] == DEATHS)
        else:
            assert scheduler.finish(worker) == name
            done[name] += 1
        assert scheduler.counts.conserved
    assert set(done.values()) == {1}
    assert scheduler.parked.keys() == bad.keys() - skipped.keys()
    assert len(done) + len(scheduler.parked) + len(skipped) == len(names)
    assert time.perf_counter() - began < 30, "about 1 s on an idle core"


def test_a_lost_worker_is_nobodys_attempt_and_its_concept_is_next() -> None:
    scheduler = make(["a", "b", "c"])
    for worker in ("one", "two"):
        scheduler.join(worker)
    assert [a.concept for a in scheduler.assign()] == ["a", "b"]
    for _ in range(9):
        scheduler.end("one", Outcome.LOST, "")
        scheduler.join("one")
        (given,) = scheduler.assign()
        assert given == Assignment("a", "one", 1, fresh=False)
    assert not scheduler.tries


def test_workers_join_and_are_drained_while_it_runs() -> None:
    scheduler = make(["a", "b", "c", "d"])
    scheduler.join("one")
    assert [a.concept for a in scheduler.assign()] == ["a"]
    scheduler.join("two")
    assert [(a.concept, a.worker) for a in scheduler.assign()] == [("b", "two")]
    scheduler.join("three")
    scheduler.leave("three")  # its node is drained before it got anything
    assert not scheduler.assign() and scheduler.counts.waiting == 2
    scheduler.end("one", Outcome.LOST, "drained")  # which gave its concept back
    scheduler.finish("two")
    scheduler.leave("two")  # which was drained, and ended its own
    assert not scheduler.assign() and scheduler.counts.in_flight == 0
    scheduler.join("four")
    scheduler.join("five")
    given = scheduler.assign()
    assert [(a.concept, a.worker, a.attempt) for a in given] == [("a", "four", 1), ("c", "five", 1)]
    assert scheduler.counts.conserved and not scheduler.tries


def test_the_last_attempt_is_on_a_worker_that_trained_nothing() -> None:
    scheduler = make(["a", "b", "c"], retries=1)
    scheduler.join("one")
    scheduler.assign()
    scheduler.join("two")
    scheduler.assign()
    scheduler.finish("two")  # b: the worker has trained
    scheduler.end("one", Outcome.FAILED, "broken")
    assert scheduler.assign() == [Assignment("a", "two", 2, fresh=True)]
    scheduler.join("three")
    scheduler.end("two", Outcome.LOST, "")
    assert scheduler.assign() == [Assignment("a", "three", 2, fresh=False)]
    assert scheduler.end("three", Outcome.FAILED, "broken") == "broken, attempt 2"
    assert scheduler.parked == {"a": "broken, attempt 2"} and scheduler.counts.waiting == 1


def test_two_dead_workers_are_enough_whatever_the_retries() -> None:
    scheduler = make(["killer"], retries=50)
    for number in range(DEATHS):
        scheduler.join(f"{number}")
        (given,) = scheduler.assign()
        reason = scheduler.end(given.worker, Outcome.DIED, "its worker died")
    assert reason == "its worker died, attempt 2" and scheduler.finished


@pytest.mark.parametrize(
    ("concepts", "share", "most"), [(1000, 0.05, 50), (10, 0.05, 3), (10, 0.5, 5), (10, 0.0, 0)]
)
def test_too_many_parked_stop_the_library_with_the_commonest_reason(
    concepts: int, share: float, most: int
) -> None:
    scheduler = make([f"c{n:04}" for n in range(concepts)], retries=0, max_parked=share)
    for number in range(most + 1):
        assert scheduler.stopped is None
        scheduler.join(worker := f"w{number}")
        scheduler.assign()
        odd = number == 1 and most > 1
        scheduler.end(worker, Outcome.FAILED, "odd" if odd else f"loss nan at step {number * 111}")
    assert scheduler.stopped is not None
    told = f"{most + 1} of {concepts} concepts are parked (library.max_parked: {share:g}), "
    assert (
        scheduler.stopped.startswith(told) and "loss nan at step N; e.g. c0000" in scheduler.stopped
    )
    scheduler.join("another")
    assert not scheduler.assign()


def test_what_an_earlier_start_parked_stays_so_and_stops_nothing() -> None:
    parked = {f"p{n}": "broken, attempt 3" for n in range(9)}
    tries = {"b": Tries(failures=2, deaths=0)}
    scheduler = make(
        ["a", "b", *parked], max_parked=0.05, done={"a"}, parked=dict(parked), tries=tries
    )
    assert scheduler.counts.conserved and scheduler.counts.waiting == 1
    scheduler.join("one")
    assert scheduler.assign() == [Assignment("b", "one", 3, fresh=False)]


def test_places_of_a_process_and_last_attempts_that_are_alone_on_one() -> None:
    """Three processes of four places; of which concept one died nobody knows."""
    chance = random.Random(3)
    names = [f"c{number:03}" for number in range(300)]
    killers, bad = set(names[5::50]), set(names[7::60])
    scheduler, joined = make(names, retries=5), 0
    while not scheduler.finished:
        there = {process_of(worker) for worker in (*scheduler.in_flight, *scheduler._free)}
        while len(there) < 3:
            for place in range(4):
                scheduler.join(worker_at(f"process-{joined}", place))
            there.add(f"process-{joined}")
            joined += 1
        given = scheduler.assign()
        beside = Counter(process_of(worker) for worker in scheduler.in_flight)
        for assignment in scheduler.in_flight.values():
            if scheduler.tries.get(assignment.concept, Tries()).deaths:
                assert beside[process_of(assignment.worker)] == 1, "it is not alone"
        assert scheduler.counts.conserved and scheduler.in_flight
        assert all(a.worker in scheduler.in_flight for a in given)
        worker = chance.choice(list(scheduler.in_flight))
        process, name = process_of(worker), scheduler.in_flight[worker].concept
        if name not in killers | bad:
            scheduler.finish(worker)
            continue
        others = [w for w in (*scheduler.in_flight, *scheduler._free) if process_of(w) == process]
        how = Outcome.DIED if name in killers else Outcome.FAILED
        scheduler.end(worker, how, "bad")
        for other in others:
            if other in scheduler.in_flight:
                scheduler.end(other, how if how is Outcome.DIED else Outcome.LOST, "its neighbour")
            elif other != worker:
                scheduler.leave(other)
    assert scheduler.parked.keys() == killers | bad, "no neighbour is parked for them"
    assert len(scheduler.done) == len(names) - len(killers | bad)


def test_a_last_attempt_gets_the_process_that_is_kept_free_for_it() -> None:
    scheduler = make(["a", "b", "c", "d"], retries=9, tries={"b": Tries(1, 1, "died")})
    for place in range(3):
        scheduler.join(worker_at("one", place))
    assert [a.concept for a in scheduler.assign()] == ["a"], "then the process is to become empty"
    scheduler.finish("one")
    assert scheduler.assign() == [Assignment("b", "one/1", 2, fresh=True)]
    assert scheduler.assign() == []
    scheduler.finish("one/1")
    assert [a.concept for a in scheduler.assign()] == ["c", "d"]
