"""What others want of a run's checkpoints: a request in the run folder, nodes that will be taken
away, another driver that claims the folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dopsd import storage
from dopsd.errors import LeaseLost, StorageError
from dopsd.lease import BEAT_SECONDS, Lease
from dopsd.ray_cluster.ray_private import draining_nodes
from dopsd.run_folder.files import REQUEST_FILE


class CheckpointRequests:
    """Looks for them in ``folder`` and at the cluster.

    ``lock_lost`` hears when ``lock``, the right to write, went to another driver.
    """

    def __init__(
        self, folder: str, lock: Lease | None, lock_lost: Callable[[LeaseLost], None]
    ) -> None:
        self._folder, self._lock_lost = folder, lock_lost
        self.check_lock: Callable[[], None] = lock.check if lock is not None else lambda: None
        """Raises LeaseLost when another driver writes into the run folder now."""
        self.path = storage.join(folder, REQUEST_FILE)
        self.asked = False
        """Somebody wants a checkpoint at the next step, whatever the schedule."""
        self.pending = False
        """The request in the run folder was seen, and is not answered yet."""
        self._draining: set[str] = set()
        self._last_poll = 0.0
        self._thread: threading.Thread | None = None

    def poll_in_background(self) -> None:
        """Poll now and then, in a thread of its own: a storage that does not answer must not hold
        up training."""
        pause = BEAT_SECONDS[storage.is_remote(self._folder)]
        busy = self._thread is not None and self._thread.is_alive()
        if busy or time.monotonic() - self._last_poll < pause:
            return
        self._last_poll = time.monotonic()
        self._thread = threading.Thread(target=self.poll, daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Look at everything once."""
        # What Ray Train's own notices are made of; those come to the learners' nodes alone.
        draining = draining_nodes()
        if draining - self._draining:
            self.asked = True
        self._draining = draining
        with contextlib.suppress(OSError, StorageError):  # a storage that is away for a while
            try:
                self.check_lock()
            except LeaseLost as error:
                self._lock_lost(error)
            if not self.pending and REQUEST_FILE in storage.names(self._folder):
                self.asked = self.pending = True

    def answer(self) -> None:
        """Take the request away: its checkpoint is there. Raises whatever the storage raises."""
        storage.remove(self.path)
        self.pending = False
