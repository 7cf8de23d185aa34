"""A file of JSON lines that grows, on local disk or S3, and survives its writer."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from dopsd import storage
from dopsd.errors import StorageError

_REMOTE_INTERVAL = 15.0
"""Seconds between rewrites of a file on S3, which cannot append."""


class JsonLines:
    """Appends to ``path``, after the whole lines that are in it already.

    ``flush`` may be called by another thread than the one that appends.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[str] = []
        self._started = time.monotonic()
        self._behind = False
        self._remote = storage.is_remote(path)
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None
        self.keep(lambda entry: True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line; on S3 it may wait for the next :meth:`flush`, and never for S3."""
        line = json.dumps(entry)
        if not self._remote:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._behind = True
            return
        self._lines.append(line)
        self._behind = True
        busy = self._writer is not None and self._writer.is_alive()
        if not busy and time.monotonic() - self._started > _REMOTE_INTERVAL:
            self._started = time.monotonic()
            self._writer = threading.Thread(target=self._flush_quietly, daemon=True)
            self._writer.start()

    def _flush_quietly(self) -> None:
        # A hiccup of S3 must not stop training; the next interval writes every line anew.
        with contextlib.suppress(OSError, StorageError):
            self.flush()

    def flush(self) -> None:
        """Bring the file up to date, so that a power cut takes nothing of it. Raises whatever
        the storage raises."""
        with self._writing:
            if not self._behind:
                return
            self._behind = False  # before: a line that comes meanwhile is behind again
            try:
                if self._remote:
                    self._write(self._lines)
                else:
                    storage.sync(self.path)
            except BaseException:
                self._behind = True
                raise

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Leave only the entries that are ``wanted``; returns them."""
        self.flush()
        with self._writing:
            entries = read_lines(self.path)
            kept = [entry for entry in entries if wanted(entry)]
            lines = [json.dumps(entry) for entry in kept]
            whole = storage.exists(self.path) and storage.read_bytes(self.path) == _text(lines)
            if not whole and (kept or storage.exists(self.path)):
                self._write(lines)
            if self._remote:
                self._lines = lines
            return kept

    def _write(self, lines: list[str]) -> None:
        storage.write_bytes(self.path, _text(lines))


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def read_lines(path: str) -> list[dict[str, Any]]:
    """The entries of a file; none when it is missing."""
    return parse_lines(storage.read_bytes(path)) if storage.exists(path) else []


def parse_lines(text: bytes) -> list[dict[str, Any]]:
    """The entries of JSON lines. A last one that was cut off with its writer is left out."""
    lines = text.splitlines()
    entries = [json.loads(line) for line in lines[:-1]]
    with contextlib.suppress(ValueError):
        entries += [json.loads(line) for line in lines[-1:]]
    return entries
