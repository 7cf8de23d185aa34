"""Failures of actors and learners as their own messages, out of Ray's wrapping."""

from __future__ import annotations

from ray.exceptions import ActorDiedError

from dopsd.errors import DopsdError, WorkerError

_WRAPS = ("cause", "_base_exc", "health_check_failure")
"""Where Ray's tasks, Ray Train's learners and its health checks keep what really happened."""


def innermost(error: BaseException) -> BaseException:
    """The exception that a task or a learner raised, out of Ray's and Ray Train's wrapping."""
    while True:
        causes = (getattr(error, name, None) for name in _WRAPS)
        inner = next((cause for cause in causes if isinstance(cause, BaseException)), None)
        if inner is None:
            return error
        error = inner


def error_message(error: BaseException) -> str:
    """A worker's exception as its own message, without Ray's frames."""
    cause = innermost(error)
    if isinstance(cause, ActorDiedError):
        # Its text is a page of identities or frames that ends with the line that tells; the
        # likely causes that Ray goes on to list are guesses.
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return lines[-1].partition(" Some common causes")[0] if lines else "the process died"
    text = str(cause).strip() or type(cause).__name__
    return text if isinstance(cause, DopsdError) else f"{type(cause).__name__}: {text}"


def unwrap_error(error: BaseException, who: str) -> DopsdError:
    """The DopsdError inside, or a WorkerError that says who failed and with which message."""
    cause = innermost(error)
    return cause if isinstance(cause, DopsdError) else WorkerError(f"{who}: {error_message(error)}")
