"""Which samples each optimizer step holds: a pure function of the row groups, seed and sizes.

Per epoch the row groups, the rows within each, and the interleaving of the buckets are shuffled
by seed; the rows of a bucket are then cut into micro-batches, so that every sample occurs exactly
once per epoch and a smaller micro-batch at most once per bucket and epoch. No state: step s is
the same on any cluster and after any restart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dopsd.data.manifest import Manifest, RowGroup
from dopsd.errors import DataError

_GROUPS, _ROWS, _BUCKETS = range(3)
"""Purposes of the shuffles: each has random numbers of its own."""


class RowRef(NamedTuple):
    """One sample: row ``row`` of a row group of a file."""

    file: str
    row_group: int
    row: int


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket that pass through the models together."""

    step: int
    index: int
    """Position within the step."""
    epoch: int
    bucket: str
    """"WxH" in pixels."""
    rows: tuple[RowRef, ...]
    step_samples: int
    """Samples of the whole step."""


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step."""

    step: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]

    @property
    def samples(self) -> int:
        """Samples of the step; fewer than the global batch where remainders fall."""
        return self.micro_batches[0].step_samples


class Plan:
    """Order of all samples over all epochs.

    A step holds ``global_batch / micro_batch`` micro-batches, the last one of an epoch what is
    left. Random access to a step costs one shuffle per epoch touched (two epochs are cached per
    process). Raises DataError when there are no rows.
    """

    def __init__(
        self, row_groups: tuple[RowGroup, ...], seed: int, global_batch: int, micro_batch: int
    ) -> None:
        if not sum(group.rows for group in row_groups):
            raise DataError("the data set holds no samples")
        assert global_batch % micro_batch == 0, "checked by the config"
        self.row_groups = row_groups
        self.seed = seed
        self.micro_batch = micro_batch
        self.micro_batches_per_step = global_batch // micro_batch
        rows: dict[str, int] = {}
        for group in row_groups:
            rows[group.bucket] = rows.get(group.bucket, 0) + group.rows
        self._bucket_rows = rows
        self.samples_per_epoch = sum(rows.values())
        self.micro_batches_per_epoch = sum(-(-count // micro_batch) for count in rows.values())
        self.steps_per_epoch = -(-self.micro_batches_per_epoch // self.micro_batches_per_step)
        table = [[group.file, group.row_group, group.bucket, group.rows] for group in row_groups]
        # Tells one plan from another in the cache of epochs, which must outlive unpickled copies.
        self.key = hashlib.sha256(json.dumps([seed, micro_batch, table]).encode()).hexdigest()

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, seed: int, global_batch: int, micro_batch: int
    ) -> Plan:
        """The plan of a prepared data set."""
        return cls(manifest.row_groups, seed, global_batch, micro_batch)

    def epoch(self, step: int) -> int:
        """Epoch that ``step`` belongs to."""
        return step // self.steps_per_epoch

    def step_size(self, step: int) -> int:
        """Number of micro-batches of ``step``."""
        left = self.micro_batches_per_epoch
        left -= (step % self.steps_per_epoch) * self.micro_batches_per_step
        return min(left, self.micro_batches_per_step)

    def step(self, step: int) -> StepPlan:
        """The micro-batches of one step."""
        epoch = self.epoch(step)
        order = _epoch_order(_Keyed(self.key, self), epoch)
        first = (step % self.steps_per_epoch) * self.micro_batches_per_step
        span = range(first, first + self.step_size(step))
        samples = sum(order.length(number) for number in span)
        return StepPlan(
            step,
            epoch,
            tuple(
                MicroBatch(
                    step,
                    number - first,
                    epoch,
                    order.bucket(number),
                    tuple(self._ref(*row) for row in order.rows(number)),
                    samples,
                )
                for number in span
            ),
        )

    def micro_batches(self, start_step: int, stop_step: int) -> Iterator[MicroBatch]:
        """All micro-batches of the steps [start_step, stop_step), in order."""
        for step in range(start_step, stop_step):
            yield from self.step(step).micro_batches

    def number(self, step: int) -> int:
        """Micro-batches before ``step``: the running number of its first one."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * self.micro_batches_per_epoch + within * self.micro_batches_per_step

    def key_at(self, number: int) -> tuple[int, int]:
        """(step, index) of the micro-batch with that running number."""
        epoch, within = divmod(number, self.micro_batches_per_epoch)
        step, index = divmod(within, self.micro_batches_per_step)
        return epoch * self.steps_per_epoch + step, index

    def micro_batch_at(self, number: int) -> MicroBatch:
        """The micro-batch with that running number."""
        step, index = self.key_at(number)
        return self.step(step).micro_batches[index]

    def _ref(self, group: int, row: int) -> RowRef:
        return RowRef(self.row_groups[group].file, self.row_groups[group].row_group, row)


class _Keyed:
    """A plan as a cache key: equal by content, so that unpickled copies share their epochs."""

    def __init__(self, key: str, plan: Plan) -> None:
        self.key, self.plan = key, plan

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.key == self.key


@dataclass(frozen=True)
class _EpochOrder:
    """Rows in training order per bucket, and where each micro-batch of the epoch begins."""

    names: tuple[str, ...]
    group: np.ndarray
    """[rows] row group of each row, sorted by bucket and then in shuffled order."""
    row: np.ndarray
    """[rows] its row within the group."""
    first: np.ndarray
    """[micro-batches] first row of each micro-batch."""
    stop: np.ndarray
    bucket_of: np.ndarray
    """[micro-batches] index into ``names``."""

    def length(self, number: int) -> int:
        return int(self.stop[number] - self.first[number])

    def bucket(self, number: int) -> str:
        return self.names[int(self.bucket_of[number])]

    def rows(self, number: int) -> Iterator[tuple[int, int]]:
        span = slice(int(self.first[number]), int(self.stop[number]))
        return zip(self.group[span].tolist(), self.row[span].tolist())


@lru_cache(maxsize=2)
def _epoch_order(keyed: _Keyed, epoch: int) -> _EpochOrder:
    plan = keyed.plan
    names = tuple(sorted(plan._bucket_rows))
    index = {name: position for position, name in enumerate(names)}
    sizes = np.array([group.rows for group in plan.row_groups])
    bucket_of_group = np.array([index[group.bucket] for group in plan.row_groups])
    group = np.repeat(np.arange(len(sizes)), sizes)
    row = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    group_key = random_keys(len(sizes), plan.seed, epoch, _GROUPS)
    row_key = random_keys(len(group), plan.seed, epoch, _ROWS)
    # Row groups stay together within their bucket: a reader then meets each of them once.
    order = np.lexsort((row_key, group, group_key[group], bucket_of_group[group]))

    counts = np.array([plan._bucket_rows[name] for name in names])
    starts = np.cumsum(counts) - counts
    pieces = -(-counts // plan.micro_batch)
    label = np.repeat(np.arange(len(names)), pieces)
    nth = np.arange(len(label)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[label] + nth * plan.micro_batch
    stop = np.minimum(first + plan.micro_batch, (starts + counts)[label])
    # Shuffle the labels, then deal each bucket's micro-batches out in their own order.
    dealt = label[np.argsort(random_keys(len(label), plan.seed, epoch, _BUCKETS), kind="stable")]
    turn = np.empty(len(label), dtype=np.int64)
    turn[np.argsort(dealt, kind="stable")] = np.arange(len(label))
    return _EpochOrder(names, group[order], row[order], first[turn], stop[turn], dealt)


def random_keys(count: int, *key: int) -> np.ndarray:
    """[count] uint64 from a counter-based generator keyed by ``key`` (non-negative integers).

    Sorting by them is a shuffle. Raw Philox words are the one stream that numpy keeps the same
    over versions and platforms; ``Generator.permutation`` is not.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
