"""How far the stream may run ahead of its consumer: a fixed number of micro-batches.

Ray Data's own backpressure counts bytes and cluster-wide CPU budgets. Bytes say nothing where
micro-batches are small: a whole epoch would be encoded ahead, on CPUs that training needs. And
the budgets are cut by what Ray Train has registered, down to nothing on a small cluster. One
number of micro-batches bounds memory and work alike.
"""

from __future__ import annotations

import time

from ray.data.context import DataContext

from dopsd.ray_cluster.ray_private import (
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
    InputDataBuffer,
    PhysicalOperator,
)

_AHEAD, _SEGMENT, _READERS = "dopsd.ahead", "dopsd.segment", "dopsd.readers"
_REST_SECONDS = 0.02


def apply_window(context: DataContext, ahead: int, segment: int, readers: int) -> None:
    """Let pipelines of ``context`` hold at most ``ahead`` micro-batches that nobody has taken.

    ``segment``: micro-batches that one reading call makes (at most ``ahead``); ``readers``:
    reading calls at once. Replaces Ray Data's own policies.
    """
    context.set_config(_AHEAD, ahead)
    context.set_config(_SEGMENT, segment)
    context.set_config(_READERS, readers)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [MicroBatchWindow])


class MicroBatchWindow(BackpressurePolicy):
    """Admits a reading call only while what is in the pipeline leaves room for its segment.

    Whatever was admitted flows on unhindered, so the window cannot block itself.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        if not _reads(op):
            return True
        config = self._data_context.get_config
        if op.num_active_tasks() + self._held(op) >= config(_READERS):
            return False
        return self._inside() + config(_SEGMENT) <= config(_AHEAD)

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """No limit; but the executor asks this once per turn, so here it can rest.

        It waits for running tasks, yet where none runs, because the window is full, it would go
        round without a pause and take a whole CPU from whoever trains.
        """
        if _reads(op) and not any(operator.num_active_tasks() for operator in self._topology):
            time.sleep(_REST_SECONDS)
        return None

    def _inside(self) -> int:
        """Micro-batches between the readers and the consumer; never too few."""
        count = 0
        for op, state in self._topology.items():
            if isinstance(op, InputDataBuffer):
                continue
            # A reading call counts whole, also for what it has handed on already.
            size = self._data_context.get_config(_SEGMENT) if _reads(op) else 1
            count += (op.num_active_tasks() + self._held(op)) * size
            count += state.total_enqueued_output_blocks()
        return count

    def _held(self, op: PhysicalOperator) -> int:
        """Inputs that a pool has taken and given to none of its actors yet."""
        state = self._topology[op]
        return int(state.total_enqueued_input_blocks() - state.input_queues[0].num_blocks)


def _reads(op: PhysicalOperator) -> bool:
    """True for the operator behind the input."""
    return any(isinstance(before, InputDataBuffer) for before in op.input_dependencies)
