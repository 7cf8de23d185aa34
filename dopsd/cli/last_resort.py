"""What is said of an error that nobody foresaw: one line, and the frames in a file."""

from __future__ import annotations

import os
import tempfile
import traceback

from dopsd import __version__, shown
from dopsd.credentials import redact
from dopsd.errors import message_line
from dopsd.terminal import complain

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""
_MOST = 10**6
"""Characters of the frames."""


def report_crash(error: BaseException) -> int:
    """Print the line, keep the frames for their owner alone; returns the exit code."""
    frames = "".join(traceback.format_exception(error))
    try:
        number, path = tempfile.mkstemp(prefix="dopsd-error-", suffix=".log")  # mode 0600
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"dopsd {__version__}\n{redact(shown.brief(frames, _MOST))}")
        kept = f"the frames are in {path}"
    except OSError as problem:
        kept = f"the frames could not be kept ({message_line(problem)})"
    what = shown.line(message_line(error), 500)
    complain(f"internal error: {type(error).__name__}: {what}; {kept}, please report it")
    return EXIT_CODE
