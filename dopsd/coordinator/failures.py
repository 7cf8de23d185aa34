"""What ends a run, and what a new group of learners takes of the budget of restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from dopsd.config import LearnerSection
from dopsd.errors import DopsdError, WorkerError
from dopsd.ray_cluster.failures import error_message

_log = logging.getLogger(__name__)
_LONGEST = 400
"""Characters of a cause that are shown; the process's own log has all of it."""


class RestartBudget:
    """Counts restarts of learners and coordinator against ``learner.restarts``.

    ``restarts``: how many are used already.
    """

    def __init__(self, learner: LearnerSection, restarts: int) -> None:
        self._learner, self.restarts = learner, restarts
        self.world = 0
        """Learners of the newest group; 0 before the first."""

    def begin(
        self, world: int, trained: bool, cause: str = "", node_lost: bool = False
    ) -> tuple[float, str]:
        """A group of ``world`` learners takes the place of another.

        ``trained``: whether the other one had trained a step; ``cause``: what it died of, if it
        said so; ``node_lost``: a node of it is gone, which costs nothing. Returns the seconds to
        wait before it begins, and why it is there, in words. A group of another size is a resize
        and costs nothing either, unless a smaller one comes without a step in between: something
        else is wrong then. Raises WorkerError when the budget is exhausted.
        """
        before, self.world = self.world, world
        if before and (world > before or (world < before and trained)):
            return 0.0, f"{world} learners in place of {before}"
        if node_lost:
            return 0.0, "a node of the learners was lost"
        reason = f" ({cause})" if cause else ""
        if self.restarts >= self._learner.restarts:
            raise WorkerError(
                f"learners failed again{reason}; restart budget exhausted "
                f"(learner.restarts={self.restarts})"
            )
        self.restarts += 1
        return self._learner.pause_before(self.restarts), f"learners failed{reason}"


class RunFailure:
    """``changed`` is notified when something ends the run; after ``stopping`` nothing does."""

    def __init__(self, changed: threading.Condition, stopping: Callable[[], bool]) -> None:
        self._changed, self._stopping = changed, stopping
        self.error: DopsdError | None = None
        """The first one that ended the run."""
        self._deaths: dict[int, str] = {}
        """By attempt, what the first learner to die of it said."""

    def fail(self, error: DopsdError) -> None:
        """The run ends with ``error``, unless another one came first."""
        with self._changed:
            if not self._stopping():
                self.error = self.error or error
            self._changed.notify_all()

    def run_guarded(self, target: Callable[[], None]) -> None:
        """Run ``target``; whatever it raises ends the run: the learners must not wait for it."""
        try:
            target()
        except DopsdError as error:
            self.fail(error)
        except Exception as error:
            _log.exception("a thread of the coordinator")
            self.fail(WorkerError(f"coordinator: {error_message(error)}"))

    def raise_error(self) -> None:
        """Raises what ended the run, if something did."""
        if self.error:
            raise self.error

    def record_death(self, attempt: int, rank: int, why: str) -> None:
        """A learner's last words; those that follow it die of its end."""
        line = " ".join(f"learner {rank}: {why}".split())
        self._deaths.setdefault(attempt, line[:_LONGEST])

    def cause(self, attempt: int) -> str:
        """What the learners of an attempt died of; empty when none could say."""
        return self._deaths.get(attempt, "")


def run_all(endings: Iterable[Callable[[], None]]) -> list[str]:
    """Run each, whatever the others raise; returns their messages."""
    problems = []
    for end in endings:
        try:
            end()
        except Exception as error:
            problems.append(error_message(error))
    return problems
