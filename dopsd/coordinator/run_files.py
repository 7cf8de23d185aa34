"""What the coordinator writes into the run folder: metrics, ledger, checkpoints, outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.manager import CheckpointManager
from dopsd.config import RunConfig
from dopsd.errors import RunLockLost, StorageError
from dopsd.run_folder.best_effort import BEST_EFFORT_FOLDERS
from dopsd.run_folder.ledger import Ledger
from dopsd.run_folder.lock import RunLock
from dopsd.run_folder.log import RunLog


class RunFiles:
    """``log`` with the ledger and the checkpoints beside it; none is behind a later one of them.

    ``lock_lost`` hears when ``lock``, the right to write, went to another driver.
    """

    def __init__(
        self,
        config: RunConfig,
        identity: RunIdentity,
        log: RunLog,
        lock: RunLock | None,
        lock_lost: Callable[[RunLockLost], None],
    ) -> None:
        self.log, self.ledger = log, Ledger(log.folder)
        self.checkpoints = CheckpointManager(config, identity, self.flush, lock, lock_lost)

    def begin(self, step: int) -> int:
        """A new attempt resumes from ``step``; returns its number."""
        self.log.rewind(step)
        attempt = self.ledger.begin(step, self.checkpoints.identity.plan)
        # A coordinator after this one must not give out the same number.
        with contextlib.suppress(OSError, StorageError):
            self.ledger.flush()
        return attempt

    def write(self, name: str, payload: bytes) -> None:
        """Write a file of the learners. Raises RunLockLost, or whatever the storage raises."""
        if name.partition("/")[0] not in BEST_EFFORT_FOLDERS:
            self.checkpoints.requests.check_lock()
            # Outputs mean that the run is done: what it did is on the disk before them.
            with contextlib.suppress(OSError, StorageError):
                self.flush()
        self.log.write(name, payload)

    def flush(self) -> None:
        """Bring metrics and ledger up to date. Raises whatever the storage raises."""
        self.ledger.flush()
        self.log.flush()
