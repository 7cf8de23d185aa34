"""Why a run ends, and what its learners died of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dopsd.errors import DopsdError, WorkerError
from dopsd.runtime.failures import own_message

_log = logging.getLogger(__name__)
_LONGEST = 400
"""Characters of a cause that are told; the process's own log has all of it."""


class Troubles:
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

    def guarded(self, target: Callable[[], None]) -> None:
        """Run ``target``; whatever it raises ends the run: the learners must not wait for it."""
        try:
            target()
        except DopsdError as error:
            self.fail(error)
        except Exception as error:
            _log.exception("a thread of the coordinator")
            self.fail(WorkerError(f"coordinator: {own_message(error)}"))

    def raise_error(self) -> None:
        """Raises what ended the run, if something did."""
        if self.error:
            raise self.error

    def died(self, attempt: int, rank: int, why: str) -> None:
        """A learner's last words; those that follow it die of its end."""
        told = " ".join(f"learner {rank}: {why}".split())
        self._deaths.setdefault(attempt, told[:_LONGEST])

    def cause(self, attempt: int) -> str:
        """What the learners of an attempt died of; empty when none could say."""
        return self._deaths.get(attempt, "")
