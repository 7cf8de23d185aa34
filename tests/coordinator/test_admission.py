"""Admission: plan order, exact policy versions, conservation of micro-batches."""

import random

import pytest

from dopsd.coordinator.admission import Admission, rank_share
from dopsd.policy.versions import policy_version


def sizes(step: int) -> int:
    return 1 if step % 3 == 2 else 4


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_random_timing_keeps_order_versions_and_conservation(lag, seed):
    """Whatever finishes when, step s is admitted exactly under version max(0, s - L)."""
    rng = random.Random(seed)
    stop = 12
    books = Admission(0, stop, sizes, lag)
    planned = sum(sizes(step) for step in range(stop))
    published, in_flight, finished, admitted = 0, [], [], []
    while books.counts().trained < planned:
        key = books.next_admissible(published)
        choice = rng.random()
        if key is not None and choice < 0.5:
            assert policy_version(key[0], lag) <= published
            books.admit(key)
            admitted.append(key)
            in_flight.append(key)
        elif in_flight and choice < 0.9:
            finished.append(in_flight.pop(rng.randrange(len(in_flight))))
            books.finish(finished[-1])
        elif sum(s == books.trained_steps for s, _ in finished) == sizes(books.trained_steps):
            books.train(books.trained_steps)
            published += 1
        counts = books.counts()
        assert counts.planned == planned
        assert counts.conserved
        # Never further ahead of the learner than the lag allows.
        assert all(step <= published + lag for step, _ in in_flight)
    assert admitted == [(step, index) for step in range(stop) for index in range(sizes(step))]
    assert books.counts().waiting == books.counts().in_flight == books.counts().ready == 0


def test_lag_zero_waits_for_every_update():
    books = Admission(0, 3, lambda step: 1, 0)
    books.admit((0, 0))
    assert books.next_admissible(0) is None
    books.finish((0, 0))
    assert books.next_admissible(0) is None, "ready is not trained"
    books.train(0)
    assert books.next_admissible(1) == (1, 0)


def test_lag_two_runs_exactly_two_steps_ahead():
    books = Admission(0, 9, lambda step: 1, 2)
    for step in range(3):
        assert books.next_admissible(0) == (step, 0)
        books.admit((step, 0))
    assert books.next_admissible(0) is None
    assert books.next_admissible(1) == (3, 0)


def test_out_of_order_and_unready_are_our_own_bugs():
    books = Admission(0, 2, lambda step: 2, 0)
    with pytest.raises(AssertionError, match="next in the plan"):
        books.admit((0, 1))
    books.admit((0, 0))
    books.finish((0, 0))
    with pytest.raises(AssertionError, match="before it was ready"):
        books.train(0)


def test_second_report_of_a_retried_micro_batch_changes_nothing():
    books = Admission(0, 1, lambda step: 1, 0)
    books.admit((0, 0))
    books.finish((0, 0))
    before = books.counts()
    books.finish((0, 0))
    assert books.counts() == before


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("step_size", [1, 2, 3, 4])
def test_ranks_get_equally_many_and_every_real_one_once(world, step_size):
    full = 4
    shares = [rank_share(step_size, full, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-full // world)}
    real = sorted(index for share in shares for index, is_real in share if is_real)
    assert real == list(range(step_size))
