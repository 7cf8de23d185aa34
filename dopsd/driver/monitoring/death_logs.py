"""What processes that died have left to read: the ends of their logs, kept in the run folder.

Ray keeps logs on the nodes, and a cluster that was made for a run goes with it.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterator

from dopsd import shown
from dopsd.errors import DopsdError, StorageError
from dopsd.files import storage
from dopsd.ray_cluster.dead_workers import DeadWorker, dead_workers, log_tail
from dopsd.run_folder.files import DEATH_LOG_MARK, LOGS

_LOOK_SECONDS = 5.0
_MOST = 50
"""Logs of one command: what dies more often dies of the same."""
_NAMED = 3
"""Of them an error repeats."""


class DeathLogs:
    """Looks for processes of the job that died, and keeps the ends of their logs.

    ``tell`` hears a line of each. What cannot be had is left out: nothing of it may cost a run.
    ``since`` (seconds since 1970): who ended before was an earlier run's in the same process.
    """

    def __init__(self, folder: str, tell: Callable[[str], None], since: float = 0.0) -> None:
        self._folder, self._tell, self._since = folder, tell, since
        self._seen: set[str] = set()
        self._kept: list[str] = []
        self._gone: set[str] = set()
        """Nodes that answered no more: one wait for each."""
        self._looking = threading.Lock()
        self._over = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[DeathLogs]:
        """A look every few seconds while the block lasts."""
        thread = threading.Thread(target=self._watch, daemon=True, name="death-logs")
        thread.start()
        try:
            yield self
        finally:
            self._over.set()

    def named_in(self, error: DopsdError) -> DopsdError:
        """The same error, with the newest of the logs."""
        self.look()
        if not self._kept:
            return error
        which = ", ".join(shlex.quote(path) for path in self._kept[-_NAMED:])
        return type(error)(f"{error}; the end of its log: {which}")

    def look(self) -> None:
        """Once; whoever looks at the same time waits for it."""
        with self._looking, contextlib.suppress(Exception):  # Ray may be ending
            for worker in dead_workers(self._since):
                if worker.worker_id not in self._seen and len(self._kept) < _MOST:
                    self._seen.add(worker.worker_id)
                    self._keep(worker)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.look()

    def _keep(self, worker: DeadWorker) -> None:
        died = f"{worker.role}: process {worker.pid} on {worker.host} died"
        tail = None if worker.node_id in self._gone else log_tail(worker)
        if tail is None:
            self._gone.add(worker.node_id)
            self._tell(f"{died}, and its log with the node")
            return
        head = f"{DEATH_LOG_MARK}{died}: {shown.line(' '.join(worker.why.split()))}\n\n"
        path = storage.join(self._folder, LOGS, f"{worker.name}.log")
        try:
            storage.write_bytes(path, head.encode() + tail)
        except (OSError, StorageError) as error:
            self._tell(f"{died}; the end of its log cannot be kept: {error}")
            return
        self._kept.append(path)
        self._tell(f"{died}; the end of its log: {path}")
