"""The coordinator's side of `debug.dump_trajectories`: who writes the files, and their end."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.config import RunConfig
from dopsd.coordinator.dispatcher import InFlightMicroBatch
from dopsd.errors import DeadlineError
from dopsd.run_folder.trajectories import dump_scored

_STOP_SECONDS = 30.0
"""What writing the last dumps may take at the end of a run."""


class TrajectoryRecorder:
    """Dumps of scored micro-batches, each written by a task on this node, beside the run folder:
    the coordinator fetches nothing."""

    def __init__(self, config: RunConfig, folder: str) -> None:
        self.config, self._folder = config, folder
        self._under_way: list[ray.ObjectRef] = []

    def add(self, item: InFlightMicroBatch, result: ray.ObjectRef) -> None:
        """Write ``item`` if it is among the first N."""
        step, index = item.key
        if step * self.config.learner.micro_batches + index >= self.config.debug.dump_trajectories:
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task: Any = ray.remote(dump_scored)
        task = task.options(num_cpus=0, scheduling_strategy=here)
        self._under_way.append(task.remote(self.config, item.block, result, self._folder))

    def end(self) -> None:
        """Wait for the last ones. Raises DeadlineError, or what a task raised."""
        refs = self._under_way
        if not refs:
            return
        _, unwritten = ray.wait(refs, num_returns=len(refs), timeout=_STOP_SECONDS)
        if unwritten:
            raise DeadlineError(
                f"{len(unwritten)} trajectory dumps are not written after {_STOP_SECONDS:g} s"
            )
        ray.get(refs)
