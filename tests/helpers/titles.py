"""Processes of Ray by the titles that it gives them."""

from __future__ import annotations

from contextlib import suppress

import psutil


def titled(text: str) -> set[int]:
    """Ids of the processes below this one whose title holds ``text``, such as an actor's class."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if text in " ".join(child.cmdline()):
                found.add(child.pid)
    return found
