"""What the coordinator writes into the run folder: metrics, ledger, checkpoints, outputs, dumps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.manager import CheckpointManager
from dopsd.checkpoint.room import RoomNeeded
from dopsd.config import RunConfig
from dopsd.coordinator.dispatcher import InFlightMicroBatch
from dopsd.errors import DeadlineError, LeaseLost, StorageError
from dopsd.ownership.lease import Lease
from dopsd.run_folder.best_effort import BEST_EFFORT_FOLDERS
from dopsd.run_folder.ledger import Ledger
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.trajectories import dump_scored, dumped

_STOP_SECONDS = 30.0
"""What writing the last dumps may take at the end of a run."""


class RunFiles:
    """``log`` with the ledger and the checkpoints beside it; none is behind a later one of them.

    ``lock_lost`` hears when ``lock``, the right to write, went to another driver; ``room``: what
    the disk should still hold.
    """

    def __init__(
        self,
        config: RunConfig,
        identity: RunIdentity,
        log: RunLog,
        lock: Lease | None,
        lock_lost: Callable[[LeaseLost], None],
        room: RoomNeeded,
    ) -> None:
        self.log, self.ledger = log, Ledger(log.folder)
        self.checkpoints = CheckpointManager(config, identity, self.flush, lock, lock_lost, room)

    def begin(self, step: int) -> int:
        """A new attempt resumes from ``step``; returns its number."""
        self.log.rewind(step)
        attempt = self.ledger.begin(step, self.checkpoints.identity.plan)
        # A coordinator after this one must not give out the same number.
        with contextlib.suppress(OSError, StorageError):
            self.ledger.flush()
        return attempt

    def write(self, name: str, payload: bytes) -> None:
        """Write a file of the learners. Raises LeaseLost, ConfigError for a name that is
        somebody else's by now, or whatever the storage raises."""
        if name.partition("/")[0] not in BEST_EFFORT_FOLDERS:
            self.checkpoints.requests.check_lock()
            # Outputs mean that the run is done: what it did is on the disk before them.
            with contextlib.suppress(OSError, StorageError):
                self.flush()
            owned(self.log.folder).write(name, payload)
        else:
            self.log.write(name, payload)

    def write_pictures(self, files: Mapping[str, bytes]) -> None:
        """Write files of the preview, each whole and with its digest in the folder's record. Raises
        LeaseLost, ConfigError as :meth:`write` does, or whatever the storage raises."""
        self.checkpoints.requests.check_lock()
        owned(self.log.folder).write_all(files)

    def flush(self) -> None:
        """Bring metrics and ledger up to date. Raises whatever the storage raises."""
        self.ledger.flush()
        self.log.flush()


class TrajectoryRecorder:
    """Dumps of scored micro-batches, each written by a task on this node, beside the run folder:
    the coordinator fetches nothing."""

    def __init__(self, config: RunConfig, folder: str) -> None:
        self.config, self._folder = config, folder
        self._under_way: list[ray.ObjectRef] = []

    def add(self, item: InFlightMicroBatch, result: ray.ObjectRef) -> None:
        """Write ``item`` if it is among the first N."""
        if not dumped(self.config, *item.key):
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
