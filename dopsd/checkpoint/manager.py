"""When a run saves a checkpoint, and its writing beside the training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dopsd.checkpoint.compatibility import RunIdentity, incompatibility
from dopsd.checkpoint.completeness import missing
from dopsd.checkpoint.folder import (
    Checkpoint,
    folder_of,
    newest_good,
    prune,
    remove_unfinished,
    write_checkpoint,
)
from dopsd.checkpoint.parts import CheckpointParts
from dopsd.checkpoint.requests import CheckpointRequests
from dopsd.checkpoint.room import RoomNeeded, shortage
from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.errors import CheckpointError, DeadlineError, LeaseLost
from dopsd.files import storage
from dopsd.ownership.lease import Lease
from dopsd.ray_cluster.failures import error_message
from dopsd.run_folder.files import CHECKPOINTS


def newest_checkpoint(
    config: RunConfig, identity: RunIdentity | None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint from which a run can resume, and why newer ones were refused."""
    return newest_good(
        storage.join(config.run.folder, CHECKPOINTS),
        lambda manifest: incompatibility(config, manifest, identity) or missing(config, manifest),
    )


class CheckpointManager:
    """The checkpoints of one run.

    ``before_commit`` brings the run's other files up to date, so that they are never behind a
    checkpoint. ``lock_lost`` hears when ``lock``, the right to write, went to another driver.
    ``room``: what the run still has to write at its end.
    """

    def __init__(
        self,
        config: RunConfig,
        identity: RunIdentity,
        before_commit: Callable[[], None],
        lock: Lease | None = None,
        lock_lost: Callable[[LeaseLost], None] = lambda error: None,
        room: RoomNeeded = RoomNeeded(),  # noqa: B008
    ) -> None:
        self.config, self.identity, self._room = config, identity, room
        self._before_commit, self._lock_lost = before_commit, lock_lost
        self.root = storage.join(config.run.folder, CHECKPOINTS)
        self.requests = CheckpointRequests(
            config.run.folder, lock, lock_lost, lambda line: self.notices.append(line)
        )
        self.notices: list[str] = []
        self.saved: int | None = None
        """Step of the newest checkpoint that is committed."""
        self.seconds: float | None = None
        """What writing the last one took."""
        self._left: set[str] = set()
        """Files of others that were told of."""
        self._last = time.monotonic()
        self._short = False
        """Too little room was told, and has not come since."""
        self._saving = threading.Lock()
        self._writer: threading.Thread | None = None
        self._skipped_for: threading.Thread | None = None
        """The write for which a checkpoint was left out last: noted once for each."""

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be saved.

        A scheduled checkpoint is left out, with a notice, while the one before is still being
        written: a storage that is slow must not hold up training.
        """
        section = self.config.checkpoint
        self.requests.watch_nodes()
        self.requests.poll_in_background()
        if self._needed(step):
            return True
        old = time.monotonic() - self._last > section.every_minutes * 60
        scheduled = (section.every_minutes > 0 and old) or (
            section.every_steps > 0 and step % section.every_steps == 0
        )
        return scheduled and not self._skips_scheduled(step)

    def _needed(self, step: int) -> bool:
        """Whether somebody waits for the checkpoint of ``step``."""
        return self.requests.asked or step == self.config.learner.steps

    def _skips_scheduled(self, step: int) -> bool:
        writer = self._writer
        if writer is None or not writer.is_alive():
            return False
        if self._skipped_for is not writer:
            self._skipped_for = writer
            self.notices.append(f"no checkpoint of step {step}: the one before is still written")
        return True

    def save(
        self,
        step: int,
        files: dict[str, bytes],
        versions: tuple[int, ...],
        parts: CheckpointParts | None = None,
        problem: str = "",
        learners: int = 1,
        alive: Callable[[], None] = lambda: None,
    ) -> bool:
        """Write a checkpoint of ``learners`` in a thread of its own. Returns whether that began.

        ``parts`` are its tensors, which others write; ``problem`` is why learners could not write
        theirs. ``alive`` is told while this waits, and raises when nobody wants the checkpoint any
        more.

        While the one before is under way, the last one and one that was asked for wait for it, for
        ``timeouts.step`` at most; a scheduled one is left out. What is not written is a notice.
        """
        with self._saving:
            if not self._needed(step) and self._skips_scheduled(step):
                return False
            limit = self.config.timeouts.step
            self.requests.asked, self._last = False, time.monotonic()
            if not self.settle(time.monotonic() + limit, alive):
                self.notices.append(
                    f"no checkpoint of step {step}: the one before is not written after "
                    f"{limit:g} s (timeouts.step)"
                )
                return False
            alive()  # it may have waited long
            self._writer = threading.Thread(
                target=self._write,
                args=(step, files, versions, parts, problem),
                kwargs={"learners": learners, "answers": self.requests.pending},
                daemon=True,
            )
            self._writer.start()
            return True

    def wait(self, limit: float | None = None) -> bool:
        """Until nothing is being written, or ``limit`` seconds; returns whether nothing is."""
        writer = self._writer
        if writer is not None:
            writer.join(limit)
        return writer is None or not writer.is_alive()

    def settle(self, until: float, wanted: Callable[[], None]) -> bool:
        """Until nothing is being written, or ``time.monotonic()`` is ``until``; returns whether
        nothing is. ``wanted`` is called about once a second, and raises when nobody waits."""
        while not self.wait(max(0.0, min(1.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            wanted()
        return True

    def end(self) -> None:
        """Wait for the last write. Raises DeadlineError when that takes longer than a step may."""
        self.requests.end()
        limit = self.config.timeouts.step
        if not self.wait(limit):
            raise DeadlineError(
                f"the last checkpoint is not written after {limit:g} s (timeouts.step)"
            )

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, if there is one; what was refused is among the notices."""
        self.wait(self.config.timeouts.step)
        newest, refused = newest_checkpoint(self.config, self.identity)
        lines = (f"checkpoint refused: {why}" for why in refused)
        self.notices += [line for line in lines if line not in self.notices]
        self.saved = newest.step if newest else None
        self._last = time.monotonic()
        return newest

    def _tell_left(self, left: list[str]) -> None:
        """Once of each: they are met again with every checkpoint."""
        new = [name for name in left if name not in self._left]
        if new:
            self._left.update(new)
            more = f" and {len(new) - 3} more" if len(new) > 3 else ""
            self.notices.append(
                f"kept under {self.root}, since no run wrote it: {', '.join(new[:3])}{more}"
            )

    def _look_for_room(self, step: int) -> None:
        """Tell, once while it is so, that the disk is too full for what is still to be written."""
        if step == self.config.learner.steps:
            return
        size = sum(size for _, size in storage.list_files(folder_of(self.root, step)))
        short = shortage(self.root, size, self._room)
        if short and not self._short:
            self.notices.append(f"after step {step}: {short}")
        self._short = short is not None

    def _write(
        self,
        step: int,
        files: dict[str, bytes],
        versions: tuple[int, ...],
        parts: CheckpointParts | None,
        problem: str,
        *,
        learners: int,
        answers: bool,
    ) -> None:
        began = time.monotonic()
        try:
            if problem:
                raise CheckpointError(problem)
            self.requests.check_lock()
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
                parts=parts,
                may_write=self.requests.check_lock,
            )
            self.saved, self.seconds = step, time.monotonic() - began
            section = self.config.checkpoint
            _, left = prune(self.root, step, section.keep_last, section.keep_every)
            self._tell_left(left)
            self._look_for_room(step)
        except LeaseLost as error:
            self._lock_lost(error)
        except Exception as error:  # training goes on; the next one may succeed
            self.notices.append(f"no checkpoint of step {step}: {error_message(error)}")
            # What there is of it may be the room that the next one needs.
            with contextlib.suppress(Exception):
                remove_unfinished(self.root, step)
        if answers:
            try:
                self.requests.answer()
            except Exception as error:  # the next one answers it
                self.notices.append(f"{self.requests.path}: {error_message(error)}")
