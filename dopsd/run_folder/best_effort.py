"""Files that are nice to have, written beside the training: none of them stops or delays a run."""

from __future__ import annotations

import queue
import threading

from dopsd.errors import DopsdError
from dopsd.files import storage
from dopsd.ray_cluster.failures import error_message
from dopsd.run_folder.files import DEBUG, PREVIEW

BEST_EFFORT_FOLDERS = (DEBUG, PREVIEW)
"""Folders of the run that hold nothing else."""
_AHEAD = 32
"""Files that may wait for a storage that is slow."""


class BestEffortWriter:
    """Writes into the run ``folder``; on S3 in a thread of its own, which may hang with it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._waiting: queue.Queue[tuple[str, bytes]] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None
        self._unwritten: dict[str, list[str]] = {}
        """By folder, the files that could not be written, and why."""
        self._under_way: str | None = None

    def write(self, name: str, payload: bytes) -> None:
        """Take a file; what cannot be written is listed in the notices."""
        if not storage.is_remote(self._folder):
            self._write(name, payload)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((name, payload))
        except queue.Full:
            self._note(name, "the storage is too far behind")

    def _run(self) -> None:
        while True:
            self._under_way, payload = self._waiting.get()
            self._write(self._under_way, payload)
            self._under_way = None
            self._waiting.task_done()

    def _write(self, name: str, payload: bytes) -> None:
        try:
            storage.write_bytes(storage.join(self._folder, name), payload)
        except (OSError, DopsdError) as error:
            self._note(name, error_message(error))

    def _note(self, name: str, why: str) -> None:
        self._unwritten.setdefault(name.partition("/")[0], []).append(f"{name}: {why}")

    def wait(self, limit: float) -> None:
        """Until nothing waits to be written, for ``limit`` seconds; what still does is noted."""
        written = self._waiting.all_tasks_done
        with written:
            written.wait_for(lambda: not self._waiting.unfinished_tasks, limit)
        for name in filter(None, [self._under_way, *(name for name, _ in self._waiting.queue)]):
            self._note(name, f"not written after {limit:g} s")

    @property
    def notices(self) -> list[str]:
        """What is missing, one line for each folder."""
        return [
            f"{folder}: {len(names)} files not written; first {names[0]}"
            for folder, names in sorted(self._unwritten.items())
        ]
