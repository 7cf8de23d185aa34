"""The one way to print a line for people: text of theirs is never markup nor a terminal's control.

Neither brackets nor ``:names:`` mean anything, an escape sequence is shown and not obeyed, one line
stays one line, and no secret is printed.
"""

from __future__ import annotations

import contextlib
import sys

from rich.console import Console
from rich.text import Text

from dopsd import shown

_LINE = 100_000
"""Characters of a line on stdout: a row of a table may be long."""


def say(line: str, console: Console | None = None) -> None:
    """A line on stdout, or on ``console``."""
    (console or Console()).print(plain(line), soft_wrap=True)


def plain(text: str) -> Text:
    """A text to put on a console, in whatever it draws."""
    return Text(shown.line(text, _LINE))


def say_lines(text: str) -> None:
    """Lines that were made here, each as :func:`say` prints it; what came from outside into one of
    them has no newlines any more (``shown.line``, ``shown.cell``, a YAML dump)."""
    for line in text.rstrip("\n").split("\n"):
        say(line)


def complain(message: str) -> None:
    """What went wrong, as one line on stderr."""
    print(f"dopsd: {shown.line(message)}", file=sys.stderr)


def write_anything() -> None:
    """Let stdout and stderr take characters that their encoding does not have, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # no stream of text, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
