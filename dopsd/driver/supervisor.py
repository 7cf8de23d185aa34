"""Keeps coordinator and learners of a run alive, and relays signals to it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from dopsd import signals
from dopsd.config import RunConfig
from dopsd.coordinator.client import ANSWER_SECONDS, CoordinatorLost, ask, retry
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.driver.setup.checks import with_resume_command
from dopsd.driver.setup.windows import StopWindows
from dopsd.errors import DeadlineError, DopsdError, WorkerError, message_line
from dopsd.ray_cluster.connect import end_local
from dopsd.ray_cluster.failures import unwrap_error
from dopsd.run_folder.log import read_metrics


class Supervisor:
    """``launch(restarts)`` makes the coordinator's actor, always under the same name, so that new
    learners find the new one; ``fit()`` runs the learners to their end, restarts included.
    ``explain`` adds to what ended the run where more can be read of it."""

    def __init__(
        self,
        config: RunConfig,
        launch: Callable[[int], Any],
        fit: Callable[[], Any],
        show: Show,
        began: float,
        explain: Callable[[DopsdError], DopsdError] = lambda error: error,
    ) -> None:
        self.config, self._launch, self._fit, self._show = config, launch, fit, show
        self._began, self._explain = began, explain
        self._restarts = 0
        self._last_killed_attempt = -1
        self._pending_signals: list[bool] = []
        self._ending = False
        """A coordinator was told to end the run; another one has to be told again."""
        self._end_by = math.inf
        """When the run ends at the latest, after a signal: ``time.monotonic()``."""
        self._windows = StopWindows.here()
        self._windows_told = False
        self.notices: list[str] = []
        """Coordinators that were replaced."""
        self.first_step = 0.0
        """Seconds from the command to the first step of this process."""
        self.coordinator = launch(0)

    def run_to_end(self) -> tuple[RunStatus, list[str]]:
        """The last status, and what went wrong on the way; when this returns or raises, coordinator
        and actors have ended. Raises what ended the run, with the way to go on."""
        try:
            return self.run(), self.notices + self.stop()
        except KeyboardInterrupt:
            self.kill()
            end_local()  # before Ray Train's folder goes
            raise
        except Exception as error:
            self.stop()
            if signals.asked_to_end():  # which may be why it failed
                self._show("train", Report([f"while ending: {message_line(error)}"]))
                signals.end_if_asked()
            if isinstance(error, DopsdError):
                raise with_resume_command(self._explain(error), self.config) from None
            raise

    def run(self) -> RunStatus:
        """Until the learners are done; returns the last status. Raises what ended the run."""
        problem: list[BaseException] = []

        def fit() -> None:
            try:
                self._fit()
            except BaseException as error:
                problem.append(error)

        self._show("start", Report(self._windows.at_start()))
        self._start()
        thread = threading.Thread(target=fit, daemon=True)
        started, moved = -1, (time.monotonic(), -1)
        with signals.training(save=lambda: self._pending_signals.append(False), end=self._end):
            thread.start()
            while True:
                thread.join(timeout=0.5)
                if time.monotonic() > self._end_by:
                    signals.end_if_asked()
                over = not thread.is_alive()
                try:
                    status = self._status()
                except CoordinatorLost as error:
                    if over:  # nobody needs another one
                        status = self._status_on_disk(error)
                        break
                    self._replace(error)
                    continue
                started = status.step if started < 0 else started
                if status.step > started and not self.first_step:
                    self.first_step = time.monotonic() - self._began
                if status.step != moved[1]:
                    moved = time.monotonic(), status.step
                if over:
                    break
                self.check_stalled(status, time.monotonic() - moved[0])
        if problem:
            raise self._restarts_exhausted(_learner_error(problem[0]))
        return status

    def stop(self) -> list[str]:
        """End the coordinator and its actors; what went wrong is returned, never raised."""
        # A checkpoint may still be on its way.
        limit = self.config.timeouts.step + 3 * ANSWER_SECONDS
        try:
            problems: list[str] = ask(self.coordinator, "stop", limit=limit)
        except DopsdError as error:
            problems = [str(error)]
        ray.kill(self.coordinator)
        return problems

    def kill(self) -> None:
        """End the coordinator as it is: nobody waits for what it has under way."""
        with suppress(Exception):  # it may be dead, and Ray with it
            ray.kill(self.coordinator)

    def _end(self) -> bool:
        """A signal asks for the end: save a checkpoint first, for as long as a step may take, if
        this process has trained anything."""
        if not self.first_step:
            return False
        self._pending_signals.append(True)
        self._end_by = time.monotonic() + self.config.timeouts.step
        self.notices.append(
            f"{signals.asked_to_end()}: a checkpoint is being saved, and then the run ends; "
            "another signal ends it at once"
        )
        return True

    def _start(self) -> None:
        ask(self.coordinator, "start", limit=self.config.timeouts.startup)

    def _status(self) -> RunStatus:
        while self._pending_signals:
            ask(self.coordinator, "ask_checkpoint", self._pending_signals[0])
            self._ending |= self._pending_signals.pop(0)
        status: RunStatus = ask(self.coordinator, "status")
        self._restarts = status.learner_restarts
        self._tell_windows(status)
        status = replace(status, notices=self.notices + status.notices)
        self._show("train" if status.step else "start", status)
        error = ask(self.coordinator, "error")
        if error is not None:
            raise error
        return status

    def _tell_windows(self, status: RunStatus) -> None:
        """Once, that a stop leaves no time to save."""
        if not self._windows_told and (lines := self._windows.measured(status)):
            self._windows_told = True
            self._show("train", Report(lines))

    def _status_on_disk(self, error: CoordinatorLost) -> RunStatus:
        """What the coordinator would have said after training: its files are written before the
        outputs are."""
        self.notices.append(f"{error}; after training finished: its output is complete")
        latest, losses = read_metrics(self.config.run.folder)
        step = latest.get("step", -1) + 1
        return RunStatus(step, self.config.learner.steps, latest, losses, ended=self._ending)

    def _replace(self, error: CoordinatorLost) -> None:
        """Another coordinator resumes from the newest checkpoint; the learners follow it."""
        learner = self.config.learner
        while True:
            if self._restarts >= learner.restarts:
                raise self._restarts_exhausted(error)
            self.notices.append(f"{error}; replaced it")
            ray.kill(self.coordinator)
            time.sleep(learner.pause_before(self._restarts + 1))
            self._restarts += 1
            # Ray gives a dead actor's name free a little later.
            self.coordinator = retry(lambda: self._launch(self._restarts), ANSWER_SECONDS)
            try:
                self._start()
            except CoordinatorLost as again:
                error = again
                continue
            self._pending_signals += [True] * self._ending
            return

    def check_stalled(self, status: RunStatus, still: float) -> None:
        """End learners that hang, once an attempt. Raises DeadlineError when that was no help."""
        # While learners wait for the coordinator, its own deadlines speak.
        timeouts = self.config.timeouts
        limit = timeouts.step if status.training else timeouts.startup
        limit += min(limit, ANSWER_SECONDS)
        if status.waiting or min(still, status.still) <= limit:
            return
        if (
            self._last_killed_attempt != status.attempt
            and self._restarts < self.config.learner.restarts
        ):
            self._last_killed_attempt = status.attempt
            ask(self.coordinator, "kill_learners")
            return
        free = ray.available_resources()
        raise DeadlineError(
            f"no step for {limit:g} s after step {status.step}: "
            + "; ".join(f"{role}: {doing}" for role, doing in status.roles.items())
            + f"; free now: {free.get('CPU', 0.0):g} CPU, {free.get('GPU', 0.0):g} GPU"
        )

    def _restarts_exhausted(self, error: DopsdError) -> DopsdError:
        budget = self.config.learner.restarts
        if not budget:
            return error
        return WorkerError(f"{error}; restart budget exhausted (learner.restarts={budget})")


def _learner_error(error: BaseException) -> DopsdError:
    """The first failed learner's own error out of Ray Train's report."""
    failures = getattr(error, "worker_failures", None) or {}
    # One that died takes the others' collectives along: its end says more than theirs.
    first = sorted(failures.items(), key=lambda item: (not isinstance(item[1], RayError), item[0]))
    for rank, failure in first:
        return unwrap_error(failure, f"learner rank {rank}")
    return unwrap_error(getattr(error, "controller_failure", None) or error, "learner")
