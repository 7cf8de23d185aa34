"""When a run saves a checkpoint, and its writing beside the training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import ray

from dopsd import checkpoint, storage
from dopsd.checkpoint import Checkpoint
from dopsd.config import RunConfig
from dopsd.errors import StorageError
from dopsd.runtime.config_drift import Identity, plain_values, refusal
from dopsd.runtime.failures import own_message

REQUEST_FILE = "checkpoint.request"
"""In the run folder: whoever writes it asks for a checkpoint; it is removed when that is there."""
_LOOK_SECONDS = {False: 1.0, True: 10.0}
"""Between two looks for a request, in a local folder and on S3."""


def newest_checkpoint(config: RunConfig, identity: Identity) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that a run can go on from, and why newer ones were refused."""
    return checkpoint.newest_good(
        storage.join(config.run.folder, checkpoint.FOLDER),
        lambda manifest: refusal(config, manifest, identity),
    )


class Saver:
    """The checkpoints of one run.

    ``before_commit`` brings the run's other files up to date, so that they are never behind a
    checkpoint.
    """

    def __init__(
        self, config: RunConfig, identity: Identity, before_commit: Callable[[], None]
    ) -> None:
        self.config, self.identity = config, identity
        self._before_commit = before_commit
        self.root = storage.join(config.run.folder, checkpoint.FOLDER)
        self.notices: list[str] = []
        self.saved: int | None = None
        """Step of the newest checkpoint that is committed."""
        self._request = storage.join(config.run.folder, REQUEST_FILE)
        self._asked = False
        self._last = time.monotonic()
        self._looked = 0.0
        self._draining: set[str] = set()
        self._writer: threading.Thread | None = None

    def ask(self) -> None:
        """A checkpoint at the next step, whatever the schedule."""
        self._asked = True

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be saved."""
        section = self.config.checkpoint
        self._look()
        old = time.monotonic() - self._last > section.every_minutes * 60
        return (
            self._asked
            or step == self.config.learner.steps
            or (section.every_minutes > 0 and old)
            or (section.every_steps > 0 and step % section.every_steps == 0)
        )

    def _look(self) -> None:
        """For requests of others and for nodes that are going to be taken away."""
        folder = self.config.run.folder
        if time.monotonic() - self._looked < _LOOK_SECONDS[storage.is_remote(folder)]:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(OSError, StorageError):  # a storage that is away for a while
            self._asked |= REQUEST_FILE in storage.names(folder)
        # What Ray Train's own notices are made of; those come to the learners' nodes alone.
        draining = set(ray._private.state.state.get_draining_nodes() or {})
        self._asked |= bool(draining - self._draining)
        self._draining = draining

    def save(self, step: int, files: dict[str, bytes], versions: tuple[int, ...]) -> None:
        """Write a checkpoint in a thread of its own, after the one under way."""
        self.wait()
        self._asked, self._last = False, time.monotonic()
        self._writer = threading.Thread(target=self._write, args=(step, files, versions))
        self._writer.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writer is not None:
            self._writer.join()

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, if there is one; what was refused is among the notices."""
        self.wait()
        found, refused = newest_checkpoint(self.config, self.identity)
        told = (f"checkpoint refused: {why}" for why in refused)
        self.notices += [line for line in told if line not in self.notices]
        self.saved = found.step if found else None
        self._last = time.monotonic()
        return found

    def _write(self, step: int, files: dict[str, bytes], versions: tuple[int, ...]) -> None:
        try:
            self._before_commit()
            checkpoint.write_checkpoint(
                self.root,
                files,
                step=step,
                policy_versions=versions,
                config=plain_values(self.config),
                data=self.identity.data,
                plan=self.identity.plan,
                learners=self.config.learner.workers,
            )
            self.saved = step
            section = self.config.checkpoint
            checkpoint.prune(self.root, step, section.keep_last, section.keep_every)
        except Exception as error:  # training goes on; the next one may succeed
            self.notices.append(f"no checkpoint of step {step}: {own_message(error)}")
        finally:
            try:
                storage.remove(self._request)
            except Exception as error:
                self.notices.append(f"{self._request}: {own_message(error)}")
