"""What others want of a run's checkpoints: a request in the run folder, nodes that will be taken
away, another driver that claims the folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dopsd.errors import LeaseLost, StorageError
from dopsd.files import storage
from dopsd.ownership.lease import BEAT_SECONDS, Lease
from dopsd.ray_cluster.ray_private import draining_nodes, nodes_of_job
from dopsd.run_folder.files import REQUEST_FILE

_LOOK_SECONDS = 1.0
"""Between two looks at nodes that will be taken away: a question to Ray, and not to a storage."""


class CheckpointRequests:
    """Looks for them in ``folder`` and at the cluster.

    ``lock_lost`` hears when ``lock``, the right to write, went to another driver; ``tell``, in a
    line, of a node of the run that will be taken away.
    """

    def __init__(
        self,
        folder: str,
        lock: Lease | None,
        lock_lost: Callable[[LeaseLost], None],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder, self._lock_lost, self._tell = folder, lock_lost, tell
        self.check_lock: Callable[[], None] = lock.check if lock is not None else lambda: None
        """Raises LeaseLost when another driver writes into the run folder now."""
        self.path = storage.join(folder, REQUEST_FILE)
        self.asked = False
        """Somebody wants a checkpoint at the next step, whatever the schedule."""
        self.pending = False
        """The request in the run folder was seen, and is not answered yet."""
        self._draining: set[str] = set()
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
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

    def watch_nodes(self) -> None:
        """Look every second for nodes that will be taken away, until ``end``."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._look_on, daemon=True)
            self._watch.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look_on(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # a GCS on its way back: at the next look
                self.look_at_nodes()

    def look_at_nodes(self) -> None:
        """A checkpoint is wanted at once when a node of the run begins to drain."""
        # What Ray Train's own notices are made of; those come to the learners' nodes alone.
        draining = draining_nodes()
        new = draining.keys() - self._draining
        for node in sorted(new & nodes_of_job() if new else new):
            self.asked = True
            left = draining[node] - time.time()
            when = f"in {max(left, 0):.0f} s" if draining[node] else "soon"
            self._tell(f"node {node[:12]} is taken away {when}: a checkpoint is being saved first")
        self._draining = set(draining)

    def poll(self) -> None:
        """Look at the folder once."""
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
