"""Which samples each optimizer step holds: a pure function of the row groups, seed and sizes.

Per epoch the row groups, the rows within each, and the interleaving of the buckets are shuffled
by seed; the rows of a bucket are then cut into micro-batches, so that every sample occurs exactly
once per epoch (or as often as its concept's weight says) and a smaller micro-batch at most once per
bucket and epoch. No state: step s is the same on any cluster and after any restart.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dopsd.data.manifest import RowRef as RowRef
from dopsd.data.planning.order import EpochOrder, PlannedGroup, Rows, check_concepts, epoch_order
from dopsd.errors import DataError


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
    turns: tuple[int, ...]
    """How often each sample was drawn before: the epoch, unless its concept has a weight."""
    repeats: tuple[int, ...]
    """How often each sample came before within the step."""
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
    left. ``weights``: how many times per epoch each sample of a concept comes (default 1; 0 leaves
    it out). Random access to a step costs one shuffle per epoch touched (two epochs are cached per
    process). Raises DataError when there are no rows, or a weight is of no concept in the data.
    """

    def __init__(
        self,
        row_groups: tuple[PlannedGroup, ...],
        seed: int,
        global_batch: int,
        micro_batch: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not sum(group.rows for group in row_groups):
            raise DataError("the data set holds no samples")
        weights = weights or {}
        named = {concept for group in row_groups for concept, _ in group.concepts}
        check_concepts("data.concept_weights", weights, named)
        self.row_groups = row_groups
        self.seed = seed
        self.micro_batch = micro_batch
        self.micro_batches_per_step = global_batch // micro_batch
        self.rows = Rows(row_groups, tuple(sorted(weights.items())))
        draws = [sum(cell.draws for cell in cells) for cells in self.rows.cells.values()]
        self.samples_per_epoch = sum(draws)
        if not self.samples_per_epoch:
            raise DataError("data.concept_weights: every sample has the weight 0")
        self.micro_batches_per_epoch = sum(-(-count // micro_batch) for count in draws)
        self.steps_per_epoch = -(-self.micro_batches_per_epoch // self.micro_batches_per_step)
        table = [group.identity for group in row_groups]
        key = json.dumps([seed, micro_batch, self.rows.weights, table])
        self.key = hashlib.sha256(key.encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Of the order, whatever the steps: unpickled copies share their epochs."""
        return isinstance(other, Plan) and other.key == self.key

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
        order = _epoch_order(self, epoch)
        first = (step % self.steps_per_epoch) * self.micro_batches_per_step
        span = range(first, first + self.step_size(step))
        samples = sum(order.length(number) for number in span)
        seen: Counter[tuple[int, int]] = Counter()

        def repeats(number: int) -> Iterator[int]:
            for row in order.rows(number):
                yield seen[row]
                seen[row] += 1

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
                    order.turns(number),
                    tuple(repeats(number)),
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
        return self.row_groups[group].ref(row)


@lru_cache(maxsize=2)
def _epoch_order(plan: Plan, epoch: int) -> EpochOrder:
    return epoch_order(plan.rows, plan.seed, epoch, plan.micro_batch)
