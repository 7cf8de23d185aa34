"""A file of JSON lines that grows, on local disk or S3, and survives its writer."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dopsd import storage

_REMOTE_INTERVAL = 15.0
"""Seconds between rewrites of a file on S3, which cannot append."""


class JsonLines:
    """Appends to ``path``, after the whole lines that are in it already."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[str] = []
        self._written = time.monotonic()
        self._behind = False
        self._remote = storage.is_remote(path)
        self.keep(lambda entry: True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line; on S3 it may wait for the next :meth:`flush`."""
        line = json.dumps(entry)
        if not self._remote:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            return
        self._lines.append(line)
        self._behind = True
        if time.monotonic() - self._written > _REMOTE_INTERVAL:
            # A hiccup of S3 must not stop training; the next interval writes every line anew.
            with contextlib.suppress(OSError, BotoCoreError, ClientError):
                self.flush()

    def flush(self) -> None:
        """Bring the file up to date. Raises whatever the storage raises."""
        if self._behind:
            self._written = time.monotonic()
            self._write(self._lines)
            self._behind = False

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Leave only the entries that are ``wanted``; returns them."""
        if self._behind:
            self.flush()
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
