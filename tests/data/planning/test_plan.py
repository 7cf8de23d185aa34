from __future__ import annotations

import pickle
from collections import Counter

import pytest

from dopsd.data.manifest import RowGroup
from dopsd.data.planning.plan import MicroBatch, Plan, RowRef
from dopsd.errors import DataError


def groups(*sizes: tuple[str, int]) -> tuple[RowGroup, ...]:
    return tuple(
        RowGroup(
            file=f"shard-{at // 3:05}.parquet",
            row_group=at % 3,
            bucket=bucket,
            rows=rows,
            concepts=(("", rows),),
        )
        for at, (bucket, rows) in enumerate(sizes)
    )


MIXED = groups(("32x32", 5), ("40x28", 4), ("32x32", 6), ("28x40", 3), ("40x28", 5), ("32x32", 2))


WEIGHED = tuple(
    group.model_copy(update={"concepts": runs})
    for group, runs in zip(
        MIXED,
        [
            (("cat", 3), ("dog", 2)),
            (("dog", 4),),
            (("cat", 6),),
            (("prior", 3),),
            (("prior", 5),),
            (("dog", 2),),
        ],
    )
)


def concepts_of(rows: list[RowRef]) -> Counter[str]:
    named: dict[tuple[str, int], list[str]] = {
        (group.file, group.row_group): [name for name, n in group.concepts for _ in range(n)]
        for group in WEIGHED
    }
    return Counter(named[row.file, row.row_group][row.row] for row in rows)


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


def test_a_weight_says_how_often_a_concept_comes_per_epoch() -> None:
    # cat 9 samples, all in 32x32; dog 2 + 4 + 2; prior 3 + 5.
    plan = Plan(WEIGHED, 0, 4, 2, {"cat": 3, "prior": 0.5})
    for epoch in range(4):
        rows = [row for batch in epoch_of(plan, epoch) for row in batch.rows]
        assert len(rows) == plan.samples_per_epoch
        # Each bucket's share of a weight is rounded: 3 and 5 at 0.5 give 2 and 2.
        assert concepts_of(rows) == {"cat": 27, "dog": 8, "prior": 4}


def test_no_sample_of_a_weight_comes_more_than_once_more_often_than_another() -> None:
    plan = Plan(WEIGHED, 5, 4, 2, {"cat": 0.4, "dog": 2.5, "prior": 0})
    seen: Counter[RowRef] = Counter()
    for epoch in range(7):
        for batch in epoch_of(plan, epoch):
            for row, turn in zip(batch.rows, batch.turns):
                assert turn <= seen[row] <= turn + 1
                seen[row] += 1
        for name in ("cat", "dog"):
            for bucket in ("32x32", "40x28"):
                counts = [
                    seen[RowRef(group.file, group.row_group, at)]
                    for group in WEIGHED
                    if group.bucket == bucket
                    for at, each in enumerate([n for n, k in group.concepts for _ in range(k)])
                    if each == name
                ]
                assert not counts or max(counts) - min(counts) <= 1
    assert concepts_of(list(seen)).keys() == {"cat", "dog"}


def test_weights_are_mixed_over_the_epoch() -> None:
    many = groups(*[("32x32", 8)] * 32)
    named = [(("data" if at % 4 else "prior", 8),) for at in range(32)]
    data = tuple(g.model_copy(update={"concepts": c}) for g, c in zip(many, named))
    plan = Plan(data, 1, 8, 8, {"prior": 3})
    whose = {(g.file, g.row_group): g.concepts[0][0] for g in data}
    batches = [Counter(whose[r.file, r.row_group] for r in b.rows) for b in epoch_of(plan, 0)]
    assert sum((b for b in batches), Counter()) == {"data": 192, "prior": 192}
    half = sum((b for b in batches[: len(batches) // 2]), Counter())
    assert 70 < half["prior"] < 122


def test_a_weight_of_one_is_no_weight() -> None:
    assert list(Plan(WEIGHED, 3, 4, 2, {"cat": 1}).micro_batches(0, 9)) == list(
        Plan(WEIGHED, 3, 4, 2).micro_batches(0, 9)
    )


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        (
            WEIGHED,
            {"fox": 2},
            "data.concept_weights: 'fox' is no concept of the data, allowed: 'cat', ",
        ),
        (
            WEIGHED,
            {"cat": 0, "dog": 0, "prior": 0},
            "data.concept_weights: every sample has the weight 0",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(data, weights, message) -> None:
    with pytest.raises(DataError, match=message):
        Plan(data, 0, 4, 2, weights)


def test_a_sample_that_comes_again_in_a_step_is_told_apart() -> None:
    """Its noise is drawn by the count: without it two draws of one step would be equal."""
    plan = Plan(WEIGHED, 2, 8, 2, {"prior": 9})
    again = 0
    for step in range(2 * plan.steps_per_epoch):
        batches = plan.step(step).micro_batches
        drawn = [(row, k) for batch in batches for row, k in zip(batch.rows, batch.repeats)]
        assert len(set(drawn)) == len(drawn)
        again += sum(k > 0 for _, k in drawn)
    assert again
    plain = Plan(WEIGHED, 2, 8, 2)
    assert not any(any(b.repeats) for b in plain.micro_batches(0, 2 * plain.steps_per_epoch))
