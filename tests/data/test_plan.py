from __future__ import annotations

import pickle
from collections import Counter

import pytest

from dopsd.data.manifest import RowGroup
from dopsd.data.plan import MicroBatch, Plan, RowRef
from dopsd.errors import DataError


def groups(*sizes: tuple[str, int]) -> tuple[RowGroup, ...]:
    return tuple(
        RowGroup(file=f"shard-{at // 3:05}.parquet", row_group=at % 3, bucket=bucket, rows=rows)
        for at, (bucket, rows) in enumerate(sizes)
    )


MIXED = groups(("32x32", 5), ("40x28", 4), ("32x32", 6), ("28x40", 3), ("40x28", 5), ("32x32", 2))


def epoch_of(plan: Plan, epoch: int) -> list[MicroBatch]:
    return list(
        plan.micro_batches(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    )


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
@pytest.mark.parametrize("per_step", [1, 2, 5])
def test_every_sample_exactly_once_per_epoch(micro: int, per_step: int) -> None:
    plan = Plan(MIXED, 7, micro * per_step, micro)
    every = {
        RowRef(group.file, group.row_group, row) for group in MIXED for row in range(group.rows)
    }
    for epoch in range(4):
        seen = [row for batch in epoch_of(plan, epoch) for row in batch.rows]
        assert len(seen) == len(every) == plan.samples_per_epoch
        assert set(seen) == every


def test_micro_batches_hold_one_bucket_and_remainders_are_trained_once() -> None:
    bucket = {(group.file, group.row_group): group.bucket for group in MIXED}
    plan = Plan(MIXED, 0, 8, 4)
    for epoch in range(3):
        batches = epoch_of(plan, epoch)
        for batch in batches:
            assert {bucket[row.file, row.row_group] for row in batch.rows} == {batch.bucket}
        short = Counter(batch.bucket for batch in batches if len(batch.rows) < 4)
        assert short == {"32x32": 1, "40x28": 1, "28x40": 1}  # 13 = 3x4+1, 9 = 2x4+1, 3


def test_steps_number_themselves_and_count_their_samples() -> None:
    plan = Plan(MIXED, 0, 6, 2)
    for step in range(3 * plan.steps_per_epoch):
        planned = plan.step(step)
        assert planned.step == step and planned.epoch == plan.epoch(step)
        assert [batch.index for batch in planned.micro_batches] == list(range(plan.step_size(step)))
        assert planned.samples == sum(len(batch.rows) for batch in planned.micro_batches)
        assert {batch.step_samples for batch in planned.micro_batches} == {planned.samples}
        assert {batch.step for batch in planned.micro_batches} == {step}


def test_only_the_last_step_of_an_epoch_has_fewer_micro_batches() -> None:
    plan = Plan(MIXED, 0, 10, 2)  # 7 + 5 + 2 = 14 micro-batches in steps of 5
    assert plan.steps_per_epoch == 3
    assert [plan.step_size(step) for step in range(6)] == [5, 5, 4, 5, 5, 4]


def test_same_step_same_samples_in_any_order_of_asking() -> None:
    forwards = Plan(MIXED, 3, 4, 2)
    steps = [forwards.step(step) for step in range(40)]
    backwards = Plan(MIXED, 3, 4, 2)
    assert [backwards.step(step) for step in reversed(range(40))] == steps[::-1]
    copy = pickle.loads(pickle.dumps(forwards))
    assert copy.step(17) == steps[17]


def test_resumable_anywhere() -> None:
    plan = Plan(MIXED, 3, 6, 2)
    whole = list(plan.micro_batches(0, 20))
    for start in range(20):
        rest = [batch for batch in whole if batch.step >= start]
        assert list(plan.micro_batches(start, 20)) == rest


def test_running_numbers_agree_with_the_iteration() -> None:
    plan = Plan(MIXED, 3, 6, 2)
    for number, batch in enumerate(plan.micro_batches(0, 15)):
        assert plan.key_at(number) == (batch.step, batch.index)
        assert plan.micro_batch_at(number) == batch
    assert plan.number(15) == number + 1


def test_epochs_and_seeds_differ() -> None:
    plan = Plan(MIXED, 0, 4, 2)
    orders = [[batch.rows for batch in epoch_of(plan, epoch)] for epoch in range(3)]
    orders.append([batch.rows for batch in epoch_of(Plan(MIXED, 1, 4, 2), 0)])
    assert len({str(order) for order in orders}) == 4


def test_another_step_size_keeps_the_order_of_the_micro_batches() -> None:
    one = [batch.rows for batch in epoch_of(Plan(MIXED, 0, 2, 2), 1)]
    five = [batch.rows for batch in epoch_of(Plan(MIXED, 0, 10, 2), 1)]
    assert one == five


def test_order_is_pinned() -> None:
    """A change here changes what every interrupted run does after its resumption."""
    plan = Plan(groups(("32x32", 5), ("40x28", 3), ("32x32", 3)), 0, 2, 2)
    rows = [
        (batch.bucket, [(row.row_group, row.row) for row in batch.rows])
        for batch in epoch_of(plan, 2)
    ]
    assert rows == [
        ("32x32", [(2, 0), (2, 2)]),
        ("32x32", [(2, 1), (0, 0)]),
        ("40x28", [(1, 1), (1, 2)]),
        ("32x32", [(0, 4), (0, 2)]),
        ("32x32", [(0, 1), (0, 3)]),
        ("40x28", [(1, 0)]),
    ]


def test_buckets_are_mixed_over_the_epoch() -> None:
    plan = Plan(groups(*[("32x32", 32), ("40x28", 32)] * 8), 0, 4, 1)
    halves = [Counter(), Counter()]
    for step in range(plan.steps_per_epoch):
        half = halves[step * 2 // plan.steps_per_epoch]
        half.update(batch.bucket for batch in plan.step(step).micro_batches)
    for half in halves:
        assert 96 < half["32x32"] < 160


def test_a_row_group_is_read_in_one_stretch() -> None:
    plan = Plan(groups(*[("32x32", 8)] * 9), 0, 2, 2)
    order = [row[:2] for batch in epoch_of(plan, 0) for row in batch.rows]
    changes = sum(before != after for before, after in zip(order, order[1:]))
    assert changes == 8


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        Plan((), 0, 4, 1)
