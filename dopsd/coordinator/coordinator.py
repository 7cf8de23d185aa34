"""The coordinator: hands references between stream, inference pools and learners.

It keeps no truth of its own: everything it holds follows from (plan, step, published weights), so
that it can be rewound to any checkpoint, or replaced. Only references pass through it; pixels and
tensors stay in the object store.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.learner_slices import WrittenSlices
from dopsd.checkpoint.manager import CheckpointManager
from dopsd.config import RunConfig
from dopsd.coordinator.admission import rank_share
from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.failures import RestartBudget, RunFailure
from dopsd.coordinator.messages import CheckpointRequest, ObjectRefBox, ResumePoint, RunStatus
from dopsd.coordinator.policy_versions import PolicyVersions
from dopsd.coordinator.resume import checkpoint_files
from dopsd.coordinator.stream_reader import BlockStream, StreamReader
from dopsd.coordinator.trajectory_recorder import TrajectoryRecorder
from dopsd.errors import DeadlineError, DopsdError, RunLockLost, StorageError, WorkerError
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.failures import error_message
from dopsd.ray_cluster.placement import Roles
from dopsd.run_folder.best_effort import BEST_EFFORT_FOLDERS as EXTRAS
from dopsd.run_folder.ledger import Ledger, TrainedShare
from dopsd.run_folder.lock import RunLock
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.timeline import Span

_WAITING = "waiting for"

_GRACE = 5.0
"""Seconds that the pools' own deadlines are given before a learner's wait counts as late."""


class Coordinator:
    """Drives one run. A plain class: ``launch.py`` makes it a Ray actor with several threads.

    ``open_stream(start_step, stop_step)`` starts the Ray Data pipeline; ``step_size(step)`` is
    the plan's number of micro-batches. One thread drives the pools; what learners call is called
    from others, and names the attempt that they belong to: a new group of learners is a new one.
    ``restarts``: those of ``learner.restarts`` that were spent before this coordinator; ``lock``:
    the driver's right to write into the run folder.
    """

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        open_stream: Callable[[int, int], BlockStream],
        step_size: Callable[[int], int],
        log: RunLog,
        identity: RunIdentity | None = None,
        restarts: int = 0,
        lock: RunLock | None = None,
    ) -> None:
        self.config, self.roles, self.log = config, roles, log
        self._step_size = step_size
        self._changed, self._stopping = threading.Condition(), False
        self._failure = RunFailure(self._changed, lambda: self._stopping)
        self._recorder = TrajectoryRecorder(config, log.folder)
        self._dispatcher = Dispatcher(
            config, roles, step_size, self._recorder.add, log.timeline.add
        )
        self._ledger = Ledger(log.folder)
        self._checkpoints = CheckpointManager(
            config, identity or RunIdentity(), self._flush, lock, self._failure.fail
        )
        self._attempt = 0
        """The one whose learners are heard; 0 while the run is rewound."""
        self._rewinding = threading.Lock()
        self._reader = StreamReader(
            self._dispatcher, open_stream, self._changed, lambda: self._over, self._moved
        )
        self._versions = PolicyVersions(config.max_policy_lag)
        self._attached = self._begun = False
        self._learners: dict[int, Any] = {}
        self._budget = RestartBudget(config.learner, restarts)
        self._wants_end = False
        self._learner = "starting"
        self._started = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._progress = self._started

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Launch the pools and the stream, at the newest checkpoint; returns at once."""
        self._dispatcher.launch()
        self._rewind()
        for target in (self._reader.run, self._drive):
            thread = threading.Thread(target=self._failure.run_guarded, args=(target,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> list[str]:
        """End threads, dumps, actors and log, each whatever the others do; returns problems."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)
        problems = []
        pools = (pool.stop for pool in self._dispatcher.pools)
        ends = [*pools, self._recorder.end]
        if not isinstance(self._failure.error, RunLockLost):  # else they are another driver's
            ends += [self._ledger.flush, self.log.close, self._checkpoints.end]
        for end in ends:
            try:
                end()
            except Exception as error:
                problems.append(error_message(error))
        return problems + self._notices()

    def _notices(self) -> list[str]:
        return (
            self._checkpoints.notices
            + self._reader.notices
            + self._dispatcher.notices
            + self.log.notices
        )

    def _rewind(self) -> None:
        """A new attempt goes on from the newest checkpoint, or from nothing.

        Files are read and written outside the lock: a storage may take its time, and the
        coordinator still answers.
        """
        with self._rewinding:
            versions = PolicyVersions.restored_from(
                self.config.max_policy_lag, self._checkpoints.newest()
            )
            step = versions.entry.step
            with self._changed:
                self._attempt = 0  # what learners of the last attempt say is not heard any more
                self._dispatcher.rewind(step)
                self._versions = versions
                self._learners = {}
                self._begun, self._learner = False, "starting"
                self._reader.rewind(step)
                self._moved()
            self.log.rewind(step)
            attempt = self._ledger.begin(step, self._checkpoints.identity.plan)
            # A coordinator after this one must not give out the same number.
            with contextlib.suppress(OSError, StorageError):
                self._ledger.flush()
            with self._changed:
                self._attempt = attempt
                self._moved()

    # -- learners --------------------------------------------------------------------------

    def attach(self, world: int = 1) -> int:
        """A new group of ``world`` learners begins; returns the number of its attempt.

        The first group after the start finds everything prepared; a later one takes the place of
        one that died or had another size, and the run goes on from the newest checkpoint. Raises
        the run's error, or WorkerError when the restarts are spent.
        """
        with self._changed:
            while not (self._attempt or self._attached or self._over):  # start() goes on meanwhile
                self._changed.wait(timeout=1.0)
            self._failure.raise_error()
            if not self._attached:
                self._attached, self._budget.world = True, world
                return self._attempt
            try:
                wait, why = self._budget.begin(
                    world, self._versions.advanced, self._failure.cause(self._attempt)
                )
            except WorkerError as error:
                self._failure.fail(error)
                raise
            self._learner = f"restarting in {wait:g} s"
            self._moved()
        time.sleep(wait)
        self._rewind()
        self._checkpoints.notices.append(
            f"{why}: attempt {self._attempt} resumed from step {self._versions.entry.step}"
        )
        return self._attempt

    def enter(self, attempt: int, rank: int, handle: Any) -> ResumePoint:
        """A learner says that it is there; it gets what it begins with."""
        with self._changed:
            self._current(attempt)
            self._learners[rank] = handle
            return self._versions.entry

    def publish(self, attempt: int, bundle: Bundle) -> CheckpointRequest:
        """Take version v, the weights after v steps: step v - 1 is trained, lag moves on."""
        with self._changed:
            self._current(attempt)
            self._begun = True
            if self._versions.add(bundle) and bundle.version:
                self._dispatcher.trained(bundle.version - 1)
            self._moved()
        due = self._checkpoints.due(bundle.version)
        return CheckpointRequest(save=due or self._wants_end, stop=self._wants_end)

    def save(
        self,
        attempt: int,
        step: int,
        files: dict[str, ObjectRefBox],
        handed: WrittenSlices | None = None,
    ) -> None:
        """Write a checkpoint of the state after ``step`` steps from the learners' ``files``, or, of
        a whole model, from what they wrote themselves and ``handed`` over."""
        with self._changed:
            self._current(attempt)
            bundles = dict(self._versions.bundles)
        made = checkpoint_files(files, bundles, self.config.timeouts.step)
        alive = partial(self.alive, attempt)
        self._checkpoints.save(step, *made, handed or WrittenSlices(), self._budget.world, alive)
        last = self._wants_end or step == self.config.learner.steps
        # Buckets are gone with the learner that put them into the store, and this may be its end.
        while made[2] and last and not self._checkpoints.wait(1.0):
            with self._changed:
                self._current(attempt)
        self.alive(attempt)

    def trained(self, attempt: int, step: int, share: TrainedShare) -> None:
        """What one rank put into ``step``, for the ledger."""
        with self._changed:
            self._current(attempt)
            self._ledger.add(step, share)

    def lost(self, attempt: int, step: int, index: int, losses: int) -> None:
        """The object of a micro-batch is gone from the object store: it is produced again."""
        with self._changed:
            self._current(attempt)
            try:
                self._dispatcher.lost((step, index), losses)
            except WorkerError as error:
                self._failure.fail(error)
            self._moved()

    def fetch(self, attempt: int, step: int, rank: int, world: int) -> list[ObjectRefBox]:
        """This rank's micro-batches of ``step``, when all of them are ready.

        Always ceil(global micro-batches / world) boxes. A second call gives the same. Raises
        the run's error, or LateError after the deadline naming the role that is late.
        """
        share = rank_share(self._step_size(step), self._dispatcher.full_size, rank, world)
        needed = {(step, index) for index, _ in share}
        with self._changed:
            asked = time.monotonic()
            if rank == 0:
                self._learner = f"{_WAITING} step {step}"
            while True:
                self._current(attempt)
                if self._dispatcher.ready(needed):
                    break
                self._failure.raise_error()
                still = time.monotonic() - max(asked, self._progress)
                # The pools know more of who is late; this speaks only when they do not.
                if still > self._limit() + _GRACE:
                    doing = "; ".join(f"{role}: {what}" for role, what in self._doing().items())
                    self._failure.fail(
                        DeadlineError(f"step {step}: nothing moved for {still:.0f} s: {doing}")
                    )
                self._changed.wait(timeout=1.0)
            if rank == 0:
                self._learner = f"training step {step}"
            return [self._dispatcher.box((step, index), real) for index, real in share]

    def _current(self, attempt: int) -> None:
        """Raises WorkerError for a learner of an attempt that is over."""
        if attempt != self._attempt:
            raise WorkerError(f"stale attempt {attempt} (current: {self._attempt or 'none yet'})")

    def _limit(self) -> float:
        starting = any(pool.starting() for pool in self._dispatcher.pools)
        limit = self.config.timeouts.startup if starting else self.config.timeouts.step
        return max(limit, self._reader.limit)

    def _moved(self) -> None:
        self._progress = time.monotonic()
        self._changed.notify_all()

    def report(self, attempt: int, step: int, metrics: dict[str, Any]) -> None:
        """Rank 0's metrics of a finished step; roles' times are added and written."""
        with self._changed:
            self._current(attempt)
            metrics |= self._dispatcher.metrics()
            roles = (self.roles.encoder, *(pool.role for pool in self._dispatcher.pools))
            self.log.step(step, metrics, {role.name: role.workers for role in roles if role})

    def tell(self, spans: list[Span]) -> None:
        """Take a learner's spans (and its encoders') into the run's timeline."""
        self.log.timeline.add(spans)

    def alive(self, attempt: int) -> None:
        """A sign of life while something large is written; raises when the attempt is over."""
        with self._changed:
            self._current(attempt)
            self._moved()

    def write(self, attempt: int, name: str, payload: bytes) -> None:
        """Write a file of the learners (the LoRA, debug records) into the run folder."""
        with self._changed:
            self._current(attempt)
        if name.partition("/")[0] not in EXTRAS:
            self._checkpoints.check_lock()
            # Outputs mean that the run is done: what it did is on the disk before them.
            with contextlib.suppress(OSError, StorageError):
                self._flush()
        self.log.write(name, payload)
        self.alive(attempt)  # an export of many files is no learner that hangs

    def fail(self, attempt: int, error: DopsdError) -> None:
        """A learner met what no restart can mend: the run ends with its error."""
        with self._changed:
            self._current(attempt)
        self._failure.fail(error)

    def died(self, attempt: int, rank: int, why: str) -> None:
        """The last words of a learner that a restart may mend."""
        with self._changed:
            self._current(attempt)
            self._failure.record_death(attempt, rank, why)

    # -- driver ----------------------------------------------------------------------------

    def ask_checkpoint(self, end: bool = False) -> None:
        """A checkpoint after the step under way, and then the ``end`` if so."""
        self._checkpoints.ask()
        self._wants_end |= end

    def kill_learners(self) -> None:
        """End learners that hang; Ray Train starts new ones."""
        with self._changed:
            handles, self._learners = list(self._learners.values()), {}
            self._begun, self._learner = False, "killed: new ones start"
            self._moved()
        for handle in handles:
            ray.kill(handle)

    def error(self) -> DopsdError | None:
        return self._failure.error

    def status(self) -> RunStatus:
        """The run at this moment."""
        with self._changed:
            return RunStatus(
                step=self._dispatcher.admission.trained_steps,
                steps=self.config.learner.steps,
                latest=dict(self.log.latest),
                losses=self.log.losses(),
                counts=self._dispatcher.admission.counts(),
                roles=self._doing(),
                attempt=self._attempt,
                training=self._begun,
                waiting=self._learner.startswith(_WAITING),
                still=time.monotonic() - self._progress,
                saved=self._checkpoints.saved,
                restarts=self._reader.restarts + self._dispatcher.restarts,
                learner_restarts=self._budget.restarts,
                ended=self._wants_end,
                notices=self._notices(),
            )

    def _doing(self) -> dict[str, str]:
        waiting = len(self._dispatcher.blocks)
        ahead = f", {waiting} micro-batches ahead" if waiting else ""
        encoder = self._reader.doing if self.roles.encoder else "none, contexts are read"
        doing = {"encoder": encoder + ahead}
        for pool in self._dispatcher.pools:
            doing[pool.role.name] = pool.doing()
        doing["learner"] = self._learner
        return doing

    # -- threads ---------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._stopping or self._failure.error is not None

    def _drive(self) -> None:
        while True:
            with self._changed:
                if self._over:
                    return
                moved = self._dispatcher.advance(self._versions.version, self._versions.bundles)
                if moved:
                    self._changed.notify_all()
                pending = [ref for pool in self._dispatcher.pools for ref in pool.pending()]
                if not moved and not pending:
                    self._changed.wait(timeout=0.2)
                    continue
            if pending:
                ray.wait(pending, timeout=0.05, fetch_local=False)
            with self._changed:
                if self._dispatcher.collect():
                    self._moved()

    def _flush(self) -> None:
        self._ledger.flush()
        self.log.flush()
