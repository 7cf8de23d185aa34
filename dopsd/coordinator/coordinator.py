"""The coordinator: hands references between stream, inference pools and learners.

It keeps no truth of its own: everything it holds follows from (plan, step, published weights), so
that it can be rewound to any checkpoint, or replaced. Only references pass through it; pixels and
tensors stay in the object store.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.learner_state import WrittenSlices
from dopsd.checkpoint.room import RoomNeeded
from dopsd.config import RunConfig
from dopsd.coordinator.admission import rank_share
from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.drawings import Drawings
from dopsd.coordinator.failures import RestartBudget, RunFailure, run_all
from dopsd.coordinator.learner_group import LearnerGroup
from dopsd.coordinator.messages import (
    CheckpointRequest,
    ObjectRefBox,
    PromptsToDraw,
    ResumePoint,
    RunStatus,
    Share,
)
from dopsd.coordinator.part_writer import NodePartWriter
from dopsd.coordinator.picture_writer import PictureWriter
from dopsd.coordinator.policy_versions import PolicyVersions, checkpoint_files
from dopsd.coordinator.run_files import RunFiles, TrajectoryRecorder
from dopsd.coordinator.status import notices_of, run_status, stalled
from dopsd.coordinator.stream_reader import StreamReader
from dopsd.data.stream.pipeline import EncodedStream
from dopsd.errors import DopsdError, LeaseLost, WorkerError
from dopsd.ownership.lease import Lease
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.lost_nodes import node_of, on_lost_nodes
from dopsd.ray_cluster.placement import Roles
from dopsd.ray_cluster.task import fetch_bytes
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.prompt_history import Drawn
from dopsd.run_folder.timeline import Span


class Coordinator:
    """Drives one run. A plain class: ``actor.py`` makes it a Ray actor with several threads.

    ``open_stream(start_step, stop_step)`` starts the Ray Data pipeline; ``step_size(step)`` is
    the plan's number of micro-batches. One thread drives the pools; what learners call is called
    from others, and names the attempt that they belong to: a new group of learners is a new one.
    ``restarts``: those of ``learner.restarts`` that were used before this coordinator; ``lock``:
    the driver's right to write into the run folder; ``room``: what its disk should still hold;
    ``prompts``: what rollout workers draw when they are idle.
    """

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        open_stream: Callable[[int, int], EncodedStream],
        step_size: Callable[[int], int],
        log: RunLog,
        identity: RunIdentity | None = None,
        restarts: int = 0,
        lock: Lease | None = None,
        room: RoomNeeded = RoomNeeded(),  # noqa: B008
        prompts: PromptsToDraw | None = None,
    ) -> None:
        self.config, self.roles, self.log = config, roles, log
        self._step_size = step_size
        self._changed, self._stopping = threading.Condition(), False
        self._failure = RunFailure(self._changed, lambda: self._stopping)
        self._recorder = TrajectoryRecorder(config, log.folder)
        self._dispatcher = Dispatcher(
            config, roles, step_size, self._recorder.add, log.timeline.add
        )
        self._files = RunFiles(
            config, identity or RunIdentity(), log, lock, self._failure.fail, room
        )
        self.checkpoints = self._files.checkpoints
        self._learners, self._budget = LearnerGroup(), RestartBudget(config.learner, restarts)
        self._rewinding = threading.Lock()
        self._reader = StreamReader(
            self._dispatcher, open_stream, self._changed, lambda: self._over, self._moved
        )
        size = prompts.size if prompts else (0, 0)
        self._pictures = PictureWriter(
            config, size, self._files.write_pictures, log.picture, log.kept_pictures
        )
        self._drawings = Drawings(
            config, prompts, self._dispatcher, self._keep_picture, self._dispatcher.notices.append
        )
        self._versions = PolicyVersions(config.max_policy_lag)
        self._wants_end = False
        self._progress = time.monotonic()
        self._threads: list[threading.Thread] = []

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Launch the pools and the stream, at the newest checkpoint; returns at once."""
        self._dispatcher.launch()
        self._rewind()
        for target in (self._reader.run, self._drive_pools):
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
        endings = [*(pool.stop for pool in self._dispatcher.pools), self._recorder.end]
        if not isinstance(self._failure.error, LeaseLost):  # else they are another driver's
            endings += [self._pictures.end, self._files.ledger.flush]
            endings += [self.log.close, self.checkpoints.end]
        problems = run_all(endings)
        notices = notices_of(self._dispatcher, self._reader, self._files)
        return problems + notices + self._pictures.notices

    def _rewind(self) -> None:
        """A new attempt resumes from the newest checkpoint, or from nothing.

        Files are read and written outside the lock: a storage may take its time, and the
        coordinator still answers.
        """
        with self._rewinding:
            versions = PolicyVersions.restored_from(
                self.config.max_policy_lag, self.checkpoints.newest()
            )
            step = versions.entry.step
            with self._changed:
                self._learners.attempt = 0  # those of the last attempt are not heard any more
                self._learners.reset("starting")
                self._dispatcher.rewind(step)
                self._drawings.rewind()
                self._versions = versions
                self._reader.rewind(step)
                self._moved()
            attempt = self._files.begin(step)
            drawn = self._pictures.rewind(step)
            with self._changed:
                self._drawings.rewind(drawn)
                for bundle in versions.bundles.values():
                    self._drawings.offer(bundle)
                self._learners.attempt = attempt
                self._moved()

    # -- learners --------------------------------------------------------------------------

    def attach(self, world: int = 1) -> int:
        """A new group of ``world`` learners begins; returns the number of its attempt.

        The first group after the start finds everything prepared; a later one takes the place of
        one that died or had another size, and the run resumes from the newest checkpoint. Raises
        the run's error, or WorkerError when the restart budget is exhausted.
        """
        with self._changed:
            learners = self._learners
            while not (learners.attempt or learners.attached or self._over):  # start() is under way
                self._changed.wait(timeout=1.0)
            self._failure.raise_error()
            if not learners.attached:
                learners.attached, self._budget.world = True, world
                return learners.attempt
            try:
                lost = on_lost_nodes(map(node_of, learners.handles.values())) > 0
                cause = self._failure.cause(learners.attempt)
                wait, why = self._budget.begin(world, self._versions.advanced, cause, lost)
            except WorkerError as error:
                self._failure.fail(error)
                raise
            learners.waiting, learners.doing = False, f"restarting in {wait:g} s"
            self._moved()
        time.sleep(wait)
        try:
            self._rewind()
        except DopsdError as error:  # no other group would fare better
            self._failure.fail(error)
            raise
        self.checkpoints.notices.append(
            f"{why}: attempt {learners.attempt} resumed from step {self._versions.entry.step}"
        )
        return learners.attempt

    @contextmanager
    def _heard(self, attempt: int) -> Iterator[None]:
        """Under the lock. Raises WorkerError for a learner of an attempt that is over."""
        with self._changed:
            self._learners.require(attempt)
            yield

    def enter(self, attempt: int, rank: int, handle: Any) -> ResumePoint:
        """A learner says that it is there; it gets what it begins with."""
        with self._heard(attempt):
            self._learners.handles[rank] = handle
            return self._versions.entry

    def publish(self, attempt: int, bundle: Bundle) -> CheckpointRequest:
        """Take version v, the weights after v steps: step v - 1 is trained, lag moves on."""
        with self._heard(attempt):
            self._learners.published()
            if self._versions.add(bundle):
                self._drawings.offer(bundle)
                if bundle.version:
                    self._dispatcher.trained(bundle.version - 1)
            self._moved()
        due = self.checkpoints.due(bundle.version)
        return CheckpointRequest(save=due or self._wants_end, stop=self._wants_end)

    def save(
        self,
        attempt: int,
        step: int,
        files: dict[str, ObjectRefBox],
        written: WrittenSlices | None = None,
    ) -> None:
        """Write a checkpoint of the state after ``step`` steps from the learners' ``files``, or, of
        a whole model, from what they have ``written`` themselves."""
        written = written or WrittenSlices()
        with self._heard(attempt):
            bundles, learner = dict(self._versions.bundles), self._learners.handles.get(0)
        alive, world = partial(self.alive, attempt), self._budget.world
        writer = NodePartWriter(self.config, learner, alive)
        contents, versions, parts = checkpoint_files(files, bundles, writer, written.slices)
        # For the write before and for this one: other ranks wait no longer.
        until = time.monotonic() + self.config.timeouts.step
        begun = self.checkpoints.save(
            step, contents, versions, parts, written.problem, world, alive
        )
        last = self._wants_end or step == self.config.learner.steps

        def wanted() -> None:
            with self._heard(attempt):
                pass

        if begun and last:  # what is lost at the export then costs no step
            if parts.large:  # it takes as long as it takes; each file tells of life
                self.checkpoints.settle(math.inf, wanted)
            else:  # of a LoRA the wait is bounded, and no learner hangs in it
                self.checkpoints.settle(until, alive)
        self.alive(attempt)

    def record(self, attempt: int, step: int, share: TrainedShare) -> None:
        """What one rank put into ``step``, for the ledger."""
        with self._heard(attempt):
            self._files.ledger.add(step, share)

    def lost(self, attempt: int, step: int, index: int, losses: int) -> None:
        """The object of a micro-batch is gone from the object store: it is produced again."""
        with self._heard(attempt):
            try:
                self._dispatcher.lost((step, index), losses)
            except WorkerError as error:
                self._failure.fail(error)
            self._moved()

    def fetch(self, attempt: int, step: int, rank: int, world: int, begin: int = 0) -> Share:
        """This rank's micro-batches of ``step`` from number ``begin`` of them on, as soon as that
        one is ready, and those behind it that are ready too: it trains them while the rest is
        still generated.

        All in all ceil(global micro-batches / world). A second call gives the same, or more. Raises
        the run's error, or DeadlineError naming the role that timed out.
        """
        share = rank_share(self._step_size(step), self._dispatcher.full_size, rank, world)[begin:]
        with self._changed:
            asked = time.monotonic()
            if rank == 0:
                self._learners.wait_for(step)
            while True:
                self._learners.require(attempt)
                if boxes := self._dispatcher.boxes(step, share):
                    break
                self._failure.raise_error()
                still = time.monotonic() - max(asked, self._progress)
                if error := stalled(step, still, self._dispatcher, self._reader, self._learners):
                    self._failure.fail(error)
                self._changed.wait(timeout=1.0)
            if rank == 0:
                self._learners.train(step)
            return Share(boxes, len(share) - len(boxes))

    def _keep_picture(self, drawn: Drawn, picture: ray.ObjectRef) -> None:
        self._pictures.add(drawn, partial(fetch_bytes, picture, self.config.timeouts.step))

    def _moved(self) -> None:
        self._progress = time.monotonic()
        self._changed.notify_all()

    def report(self, attempt: int, step: int, metrics: dict[str, Any]) -> None:
        """Rank 0's metrics of a finished step; roles' times are added and written."""
        with self._heard(attempt):
            metrics |= self._dispatcher.metrics()
            self.log.step(step, metrics, self._dispatcher.sizes())

    def tell(self, spans: list[Span]) -> None:
        """Take a learner's spans (and its encoders') into the run's timeline."""
        self.log.timeline.add(spans)

    def alive(self, attempt: int) -> None:
        """A sign of life while something large is written; raises when the attempt is over."""
        with self._heard(attempt):
            self._moved()

    def write(self, attempt: int, name: str, payload: bytes) -> None:
        """Write a file of the learners (the LoRA, debug records) into the run folder."""
        self.alive(attempt)
        self._files.write(name, payload)
        self.alive(attempt)  # an export of many files is no learner that hangs

    def fail(self, attempt: int, error: DopsdError) -> None:
        """A learner met what no restart can mend: the run ends with its error."""
        with self._heard(attempt):
            self._failure.fail(error)

    def record_death(self, attempt: int, rank: int, why: str) -> None:
        """The last words of a learner that a restart may mend."""
        with self._heard(attempt):
            self._failure.record_death(attempt, rank, why)

    # -- driver ----------------------------------------------------------------------------

    def ask_checkpoint(self, end: bool = False) -> None:
        """A checkpoint after the step under way, and then the ``end`` if so."""
        self.checkpoints.requests.asked = True
        self._wants_end |= end

    def kill_learners(self) -> None:
        """End learners that hang; Ray Train starts new ones."""
        with self._changed:
            handles = self._learners.reset("killed: new ones start")
            self._moved()
        for handle in handles:
            ray.kill(handle)

    def workers(self, role: str) -> list[Any]:
        """The actors of an inference role, as they are now."""
        return self._dispatcher.workers(role)

    def error(self) -> DopsdError | None:
        """What ended the run, if something did."""
        return self._failure.error

    def status(self) -> RunStatus:
        """The run at this moment."""
        with self._changed:
            parts = self._dispatcher, self._reader, self._learners, self._files
            still, restarts = time.monotonic() - self._progress, self._budget.restarts
            status = run_status(
                *parts, still=still, learner_restarts=restarts, ended=self._wants_end
            )
            notices = status.notices + self._pictures.notices
            return replace(status, pictures=self._drawings.counts, notices=notices)

    # -- threads ---------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._stopping or self._failure.error is not None

    def _drive_pools(self) -> None:
        while True:
            with self._changed:
                if self._over:
                    return
                moved = self._dispatcher.advance(self._versions.version, self._versions.bundles)
                if moved:
                    self._changed.notify_all()
                self._drawings.advance(self._versions.version, self._learners.busy_until())
                pending = self._dispatcher.pending() + self._drawings.pending()
                if not moved and not pending:
                    self._changed.wait(timeout=0.2)
                    continue
            if pending:
                ray.wait(pending, timeout=0.05, fetch_local=False)
            with self._changed:
                ended = self._drawings.collect()
                if self._dispatcher.collect() or ended:
                    self._moved()
