"""Who writes into a run folder: one driver at a time, and an older one stops.

Two that write at once would remove each other's checkpoints: a job that was submitted again, or
``--resume`` while the run still trains somewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dopsd import storage
from dopsd.config import RunConfig, dump_config
from dopsd.errors import RunLockLost, StorageError
from dopsd.run_folder.files import CONFIG_FILE, LOCK_FILE, RunFolder
from dopsd.run_folder.outputs import take_run_folder

LOCK_POLL_SECONDS = {False: 1.0, True: 10.0}
"""Between two looks of a driver at its lock, in a local folder and on S3."""


@dataclass(frozen=True)
class RunLock:
    """A driver's right to write into ``folder``, until another one takes it."""

    folder: str
    token: str

    @classmethod
    def take(cls, folder: str) -> RunLock:
        """Take the folder; when another driver may still be at work there, give it the time to
        notice."""
        run = RunFolder(folder)
        other = run.has(LOCK_FILE)
        lock = cls(folder, uuid.uuid4().hex)
        owner = {"token": lock.token, "host": socket.gethostname(), "pid": os.getpid()}
        run.write(LOCK_FILE, json.dumps(owner | {"since": time.time()}).encode())
        if other:
            time.sleep(2 * LOCK_POLL_SECONDS[storage.is_remote(folder)])
        return lock

    def check(self) -> None:
        """Raises RunLockLost when another driver has taken the folder, and StorageError when
        the storage does not say."""
        try:
            owner = json.loads(RunFolder(self.folder).read(LOCK_FILE))
        except FileNotFoundError:
            return
        if owner["token"] != self.token:
            raise RunLockLost(
                f"run.folder: {self.folder} was taken over by another driver (process "
                f"{owner['pid']} on {owner['host']}); this one stops and leaves it alone"
            )

    def release(self) -> None:
        """The next driver need not wait."""
        with contextlib.suppress(OSError, StorageError, RunLockLost):
            self.check()
            RunFolder(self.folder).remove(LOCK_FILE)


@contextlib.contextmanager
def locked_run_folder(
    config: RunConfig, resume: bool, tell: Callable[[list[str]], None] = lambda left: None
) -> Iterator[RunLock]:
    """The run folder, locked, with the resolved config. Of an older run its outputs are taken away
    (not its shards), or only what a resumed run has to write anew; ``tell`` hears what stays beside
    them. Raises ConfigError when what is there is not all a run's (``run_folder/outputs.py``)."""
    run = RunFolder(config.run.folder)
    lock = RunLock.take(run.path)
    try:
        if left := take_run_folder(config, resume):
            tell(left)
        run.write(CONFIG_FILE, dump_config(config).encode())
        yield lock
    finally:
        lock.release()
