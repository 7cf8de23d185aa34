"""Failures of actors and learners as their own messages, out of Ray's wrapping."""

from __future__ import annotations

import errno
import tempfile

from ray.exceptions import ActorDiedError, OutOfDiskError

from dopsd.errors import DopsdError, StorageError, WorkerError
from dopsd.files.disk import free_space
from dopsd.files.filesystems import local_error

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
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


def full_disk(error: BaseException) -> StorageError | None:
    """What no restart mends, in a line: a disk that is full or may not be written, whoever met it,
    or None for any other error."""
    cause: BaseException | None = innermost(error)
    while cause is not None:
        if isinstance(cause, OutOfDiskError):
            return StorageError(f"Ray's object store: {error_message(cause)}")
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            if cause.filename:
                return StorageError(local_error(str(cause.filename), cause))
            temporary = free_space(tempfile.gettempdir())
            return StorageError(f"{error_message(cause)}; temporary files lie on {temporary}")
        cause = cause.__cause__ or cause.__context__
    return None


def unwrap_error(error: BaseException, who: str) -> DopsdError:
    """The DopsdError inside, or a WorkerError that says who failed and with which message."""
    cause = innermost(error)
    return cause if isinstance(cause, DopsdError) else WorkerError(f"{who}: {error_message(error)}")
