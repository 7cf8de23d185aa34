"""When a run saves a checkpoint, and its writing beside the training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping

import ray

from dopsd import checkpoint, storage
from dopsd.checkpoint import Checkpoint
from dopsd.config import RunConfig
from dopsd.errors import CheckpointError, LateError, StorageError
from dopsd.runtime.config_drift import Identity, plain_values, refusal
from dopsd.runtime.failures import own_message
from dopsd.runtime.learner_slices import Handed

REQUEST_FILE = "checkpoint.request"
"""In the run folder: whoever writes it asks for a checkpoint; it is removed when that is there."""
_LOOK_SECONDS = {False: 1.0, True: 10.0}
"""Between two looks for a request, in a local folder and on S3."""


def newest_checkpoint(
    config: RunConfig, identity: Identity | None
) -> tuple[Checkpoint | None, list[str]]:
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
        self._saving = threading.Lock()
        self._writer: threading.Thread | None = None
        self._left_out: threading.Thread | None = None
        """The write for which a checkpoint was left out last: told once for each."""

    def ask(self) -> None:
        """A checkpoint at the next step, whatever the schedule."""
        self._asked = True

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be saved.

        A scheduled checkpoint is left out, with a notice, while the one before is still being
        written: a storage that is slow must not hold up training.
        """
        section = self.config.checkpoint
        self._look()
        if self._needed(step):
            return True
        old = time.monotonic() - self._last > section.every_minutes * 60
        scheduled = (section.every_minutes > 0 and old) or (
            section.every_steps > 0 and step % section.every_steps == 0
        )
        return scheduled and not self._leaves_out(step)

    def _needed(self, step: int) -> bool:
        """Whether somebody waits for the checkpoint of ``step``."""
        return self._asked or step == self.config.learner.steps

    def _leaves_out(self, step: int) -> bool:
        writer = self._writer
        if writer is None or not writer.is_alive():
            return False
        if self._left_out is not writer:
            self._left_out = writer
            self.notices.append(f"no checkpoint of step {step}: the one before is still written")
        return True

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

    def save(
        self,
        step: int,
        files: dict[str, bytes],
        versions: tuple[int, ...],
        buckets: Mapping[str, ray.ObjectRef] | None = None,
        handed: Handed | None = None,
    ) -> None:
        """Write a checkpoint in a thread of its own; ``buckets`` and what learners ``handed``: of
        whole models.

        While the one before is under way, the last one and one that was asked for wait for it, for
        ``deadline.step`` at most; a scheduled one is left out. Whatever is not written is told.
        """
        with self._saving:
            needed = self._needed(step)
            if not needed and self._leaves_out(step):
                return
            limit = self.config.deadline.step
            self._asked, self._last = False, time.monotonic()
            if not self.wait(limit):
                self.notices.append(
                    f"no checkpoint of step {step}: the one before is not written after {limit:g} s"
                )
                return
            self._writer = threading.Thread(
                target=self._write,
                args=(step, files, versions, buckets or {}, handed or Handed()),
                daemon=True,
            )
            self._writer.start()

    def wait(self, limit: float | None = None) -> bool:
        """Until nothing is being written, or ``limit`` seconds; returns whether nothing is."""
        writer = self._writer
        if writer is not None:
            writer.join(limit)
        return writer is None or not writer.is_alive()

    def end(self) -> None:
        """Wait for the last write. Raises LateError when that takes longer than a step may."""
        limit = self.config.deadline.step
        if not self.wait(limit):
            raise LateError(f"the last checkpoint is not written after {limit:g} s")

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, if there is one; what was refused is among the notices."""
        self.wait(self.config.deadline.step)
        found, refused = newest_checkpoint(self.config, self.identity)
        told = (f"checkpoint refused: {why}" for why in refused)
        self.notices += [line for line in told if line not in self.notices]
        self.saved = found.step if found else None
        self._last = time.monotonic()
        return found

    def _write(
        self,
        step: int,
        files: dict[str, bytes],
        versions: tuple[int, ...],
        buckets: Mapping[str, ray.ObjectRef],
        handed: Handed,
    ) -> None:
        limit = self.config.deadline.step
        try:
            if handed.problem:
                raise CheckpointError(handed.problem)
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
                buckets=((name, ray.get(r, timeout=limit)) for name, r in buckets.items()),
                slices=handed.slices,
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
