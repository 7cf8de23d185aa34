"""What a user can have done wrong, each as one line that names the place and the remedy."""

from __future__ import annotations

import signal

from dopsd.shown import line


def message_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class DopsdError(Exception):
    """Base of every error that is shown to the user as one line, without a traceback.

    Its message is that line already, wherever it goes: without secrets, control characters and
    values of any length.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(line(" ".join(message.split("\n"))))


class ConfigError(DopsdError):
    """A run config that cannot work: names the key, what was given and what is allowed."""


class DataError(DopsdError):
    """A data set, shard or manifest that cannot be used: names the file and the reason."""


class StorageError(DopsdError):
    """A storage that fails beyond all tries: names the path and the cause."""


class ModelError(DopsdError):
    """Weights, targets or classes that do not fit: names the module or file."""


class ResourceError(DopsdError):
    """The cluster cannot place what the config asks for: prints the sum of both."""


class PreflightError(DopsdError):
    """The teacher was not shown to draw the concept, and the config is strict about it."""


class DeadlineError(DopsdError):
    """A deadline passed: names the role that timed out and what it was doing."""


class WorkerError(DopsdError):
    """A worker failed: carries the worker's own message, not Ray's frames."""


class AcknowledgementError(DopsdError):
    """An inference worker bound other weights than were published."""


class CheckpointError(DopsdError):
    """A checkpoint that cannot be used: names the file and the reason."""


class LeaseHeld(DopsdError):
    """A living process writes into the folder: names it, and what one can do."""


class LeaseLost(DopsdError):
    """Another process writes into the folder now: names both."""


class InterruptedRun(DopsdError):
    """A signal ended the command: says what is saved and how to go on."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
