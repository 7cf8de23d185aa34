"""Failures of actors and learners as their own messages, out of Ray's wrapping."""

from __future__ import annotations

from ray.exceptions import ActorDiedError

from dopsd.errors import DopsdError, WorkerError


def innermost(error: BaseException) -> BaseException:
    """The exception that a task or a learner raised, out of Ray's and Ray Train's wrapping."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def own_message(error: BaseException) -> str:
    """A worker's exception as its own message, without Ray's frames."""
    cause = innermost(error)
    if isinstance(cause, ActorDiedError):
        # Its text is a page of frames that ends with the line that tells.
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return lines[-1] if lines else "the process died"
    text = str(cause).strip() or type(cause).__name__
    return text if isinstance(cause, DopsdError) else f"{type(cause).__name__}: {text}"


def own_error(error: BaseException, who: str) -> DopsdError:
    """The DopsdError inside, or a WorkerError that says who failed and with which message."""
    cause = innermost(error)
    return cause if isinstance(cause, DopsdError) else WorkerError(f"{who}: {own_message(error)}")
