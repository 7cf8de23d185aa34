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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from dopsd import storage
from dopsd.config import RunConfig, dump_config
from dopsd.errors import RunLockLost, StorageError
from dopsd.run_folder.files import CONFIG_FILE, FINAL, LOCK_FILE, OUTPUTS
from dopsd.run_folder.jsonl import part_names

LOCK_POLL_SECONDS = {False: 1.0, True: 10.0}
"""Between two looks of a driver at its claim, in a local folder and on S3."""


@dataclass(frozen=True)
class RunLock:
    """A driver's right to write into ``folder``, until another one claims it."""

    folder: str
    token: str

    @classmethod
    def take(cls, folder: str) -> RunLock:
        """Claim the folder; when another driver may still be at work there, give it the time to
        notice."""
        place = storage.join(folder, LOCK_FILE)
        other = storage.exists(place)
        claim = cls(folder, uuid.uuid4().hex)
        said = {"token": claim.token, "host": socket.gethostname(), "pid": os.getpid()}
        storage.write_bytes(place, json.dumps(said | {"since": time.time()}).encode())
        if other:
            time.sleep(2 * LOCK_POLL_SECONDS[storage.is_remote(folder)])
        return claim

    def check(self) -> None:
        """Raises TakenOverError when another driver has claimed the folder, and StorageError when
        the storage does not say."""
        try:
            said = json.loads(storage.read_bytes(storage.join(self.folder, LOCK_FILE)))
        except FileNotFoundError:
            return
        if said["token"] != self.token:
            raise RunLockLost(
                f"run.folder: {self.folder} was taken over by another driver (process "
                f"{said['pid']} on {said['host']}); this one stops and leaves it alone"
            )

    def release(self) -> None:
        """The next driver need not wait."""
        with suppress(OSError, StorageError, RunLockLost):
            self.check()
            storage.remove(storage.join(self.folder, LOCK_FILE))


@contextlib.contextmanager
def locked_run_folder(config: RunConfig, resume: bool) -> Iterator[RunLock]:
    """The run folder, claimed, with the resolved config. Of an older run its outputs are taken away
    (not its shards), or only what a run that goes on has to write anew."""
    folder = config.run.folder
    claim = RunLock.take(folder)
    try:
        there = storage.names(folder)
        for name in FINAL if resume else OUTPUTS:
            for part in {name, *part_names(name, there)}:
                storage.remove(storage.join(folder, part))
        storage.write_bytes(storage.join(folder, CONFIG_FILE), dump_config(config).encode())
        yield claim
    finally:
        claim.release()
