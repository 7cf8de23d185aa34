"""When a run saves a checkpoint, and its writing beside the training."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping

import ray

from dopsd import storage
from dopsd.checkpoint.compatibility import RunIdentity, incompatibility
from dopsd.checkpoint.folder import (
    Checkpoint,
    newest_good,
    prune,
    remove_unfinished,
    write_checkpoint,
)
from dopsd.checkpoint.learner_slices import WrittenSlices
from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.errors import CheckpointError, DeadlineError, RunLockLost, StorageError
from dopsd.ray_cluster.failures import error_message
from dopsd.run_folder.files import CHECKPOINTS, REQUEST_FILE
from dopsd.run_folder.lock import LOCK_POLL_SECONDS, RunLock


def newest_checkpoint(
    config: RunConfig, identity: RunIdentity | None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that a run can go on from, and why newer ones were refused."""
    return newest_good(
        storage.join(config.run.folder, CHECKPOINTS),
        lambda manifest: incompatibility(config, manifest, identity),
    )


class CheckpointManager:
    """The checkpoints of one run.

    ``before_commit`` brings the run's other files up to date, so that they are never behind a
    checkpoint. ``lock_lost`` hears when ``lock``, the right to write, went to another driver.
    """

    def __init__(
        self,
        config: RunConfig,
        identity: RunIdentity,
        before_commit: Callable[[], None],
        lock: RunLock | None = None,
        lock_lost: Callable[[RunLockLost], None] = lambda error: None,
    ) -> None:
        self.config, self.identity = config, identity
        self._before_commit, self._lock, self._lock_lost = before_commit, lock, lock_lost
        self.root = storage.join(config.run.folder, CHECKPOINTS)
        self.notices: list[str] = []
        self.saved: int | None = None
        """Step of the newest checkpoint that is committed."""
        self._request = storage.join(config.run.folder, REQUEST_FILE)
        self._asked = self._request_pending = False
        """``taken``: the request in the run folder is being answered, or was asked for here."""
        self._last = time.monotonic()
        self._last_poll = 0.0
        self._poll_thread: threading.Thread | None = None
        self._draining: set[str] = set()
        self._saving = threading.Lock()
        self._writer: threading.Thread | None = None
        self._skipped_for: threading.Thread | None = None
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
        self._poll()
        if self._needed(step):
            return True
        old = time.monotonic() - self._last > section.every_minutes * 60
        scheduled = (section.every_minutes > 0 and old) or (
            section.every_steps > 0 and step % section.every_steps == 0
        )
        return scheduled and not self._skips_scheduled(step)

    def _needed(self, step: int) -> bool:
        """Whether somebody waits for the checkpoint of ``step``."""
        return self._asked or step == self.config.learner.steps

    def _skips_scheduled(self, step: int) -> bool:
        writer = self._writer
        if writer is None or not writer.is_alive():
            return False
        if self._skipped_for is not writer:
            self._skipped_for = writer
            self.notices.append(f"no checkpoint of step {step}: the one before is still written")
        return True

    def _poll(self) -> None:
        """For requests and claims of others, and for nodes that are going to be taken away; in a
        thread of its own, for a storage that does not answer must not hold up training."""
        pause = LOCK_POLL_SECONDS[storage.is_remote(self.config.run.folder)]
        busy = self._poll_thread is not None and self._poll_thread.is_alive()
        if busy or time.monotonic() - self._last_poll < pause:
            return
        self._last_poll = time.monotonic()
        self._poll_thread = threading.Thread(target=self._poll_requests, daemon=True)
        self._poll_thread.start()

    def _poll_requests(self) -> None:
        # What Ray Train's own notices are made of; those come to the learners' nodes alone.
        draining = set(ray._private.state.state.get_draining_nodes() or {})
        if draining - self._draining:
            self._asked = True
        self._draining = draining
        with contextlib.suppress(OSError, StorageError):  # a storage that is away for a while
            try:
                self.check_lock()
            except RunLockLost as error:
                self._lock_lost(error)
            if not self._request_pending and REQUEST_FILE in storage.names(self.config.run.folder):
                self._asked = self._request_pending = True

    def check_lock(self) -> None:
        """Raises TakenOverError when another driver writes into the run folder now."""
        if self._lock is not None:
            self._lock.check()

    def save(
        self,
        step: int,
        files: dict[str, bytes],
        versions: tuple[int, ...],
        buckets: Mapping[str, ray.ObjectRef] | None = None,
        handed: WrittenSlices | None = None,
        learners: int = 1,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a checkpoint of ``learners`` in a thread of its own; ``buckets`` and what they
        ``handed``: of whole models. ``alive`` is told of each piece, and raises when nobody wants
        the checkpoint any more.

        While the one before is under way, the last one and one that was asked for wait for it, for
        ``timeouts.step`` at most; a scheduled one is left out. Whatever is not written is told.
        """
        with self._saving:
            needed = self._needed(step)
            if not needed and self._skips_scheduled(step):
                return
            limit = self.config.timeouts.step
            self._asked, self._last = False, time.monotonic()
            if not self.wait(limit):
                self.notices.append(
                    f"no checkpoint of step {step}: the one before is not written after "
                    f"{limit:g} s (timeouts.step)"
                )
                return
            alive()  # it may have waited long
            self._writer = threading.Thread(
                target=self._write,
                args=(
                    step,
                    files,
                    versions,
                    buckets or {},
                    handed or WrittenSlices(),
                    learners,
                    alive,
                ),
                kwargs={"answers": self._request_pending},
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
        limit = self.config.timeouts.step
        if not self.wait(limit):
            raise DeadlineError(
                f"the last checkpoint is not written after {limit:g} s (timeouts.step)"
            )

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, if there is one; what was refused is among the notices."""
        self.wait(self.config.timeouts.step)
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
        handed: WrittenSlices,
        learners: int,
        alive: Callable[[], None],
        answers: bool,
    ) -> None:
        def fetched(name: str, bucket: ray.ObjectRef) -> tuple[str, bytes]:
            alive()
            return name, ray.get(bucket, timeout=self.config.timeouts.step)

        try:
            if handed.problem:
                raise CheckpointError(handed.problem)
            self.check_lock()
            self._before_commit()
            write_checkpoint(
                self.root,
                files,
                step=step,
                policy_versions=versions,
                config=shown_values(self.config),
                data=self.identity.data,
                plan=self.identity.plan,
                learners=learners,
                buckets=itertools.starmap(fetched, buckets.items()),
                slices=handed.slices,
            )
            self.saved = step
            section = self.config.checkpoint
            prune(self.root, step, section.keep_last, section.keep_every)
        except RunLockLost as error:
            self._lock_lost(error)
        except Exception as error:  # training goes on; the next one may succeed
            self.notices.append(f"no checkpoint of step {step}: {error_message(error)}")
            # What there is of it may be the room that the next one needs.
            with contextlib.suppress(Exception):
                remove_unfinished(self.root, step)
        if answers:
            try:
                storage.remove(self._request)
                self._request_pending = False
            except Exception as error:  # the next one answers it
                self.notices.append(f"{self._request}: {error_message(error)}")
