"""A file of JSON lines that grows, on local disk or S3, and survives its writer.

S3 cannot append. There a file continues in parts, ``ledger.jsonl``, ``ledger-000001.jsonl``, ...:
what is uploaded again and again is the last one alone, which is bounded.

A line that is damaged costs that line, never the file; what was there is set aside.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from dopsd.credentials import redact
from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.run_folder.lines import Lines, Valid, parse_lines

_REMOTE_INTERVAL = 15.0
"""Seconds between uploads of the last part of a file on S3."""
PART_BYTES = 2**18
"""A part on S3 that has grown beyond is full."""


class JsonLines:
    """Appends to ``path``, after the whole lines that are in it already.

    ``valid`` says which entries are of this kind; any other line is left out, and the file as it
    was is set aside under another name: see ``notices``. ``flush`` may be called by another thread
    than the one that appends.
    """

    def __init__(self, path: str, valid: Valid = lambda entry: True) -> None:
        self.path, self._valid = path, valid
        self.notices: list[str] = []
        """Of files that were damaged: which, what of them, and where they are now."""
        self._lines: list[str] = []
        """On S3 those of the last part; locally what could not be written yet."""
        self._part = 0
        self._started = time.monotonic()
        self._behind = False
        self._remote = storage.is_remote(path)
        self._writing, self._adding = threading.Lock(), threading.Lock()
        self._writer: threading.Thread | None = None
        self.keep(lambda entry: True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line; the file may be behind until the next :meth:`flush`: this never waits for
        S3, and a disk that is full stops nobody."""
        line = redact(json.dumps(entry))
        if not self._remote:
            with self._adding:
                self._lines.append(line)
                self._behind = True
                with contextlib.suppress(StorageError):
                    self._add()
            return
        self._lines.append(line)
        self._behind = True
        busy = self._writer is not None and self._writer.is_alive()
        if not busy and time.monotonic() - self._started > _REMOTE_INTERVAL:
            self._started = time.monotonic()
            self._writer = threading.Thread(target=self._flush_quietly, daemon=True)
            self._writer.start()

    def _add(self) -> None:
        """Append what waits, all of it or nothing: half a line would swallow the next."""
        with storage.storage_errors(self.path):
            _append(self.path, _text(self._lines))
        self._lines.clear()

    def _flush_quietly(self) -> None:
        # A hiccup of S3 must not stop training; the next interval writes these lines anew.
        with contextlib.suppress(StorageError):
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
                    self._upload()
                else:
                    with self._adding:
                        self._add()
                    storage.sync(self.path)
            except BaseException:
                self._behind = True
                raise

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Leave only the entries that are ``wanted``; returns them."""
        self.flush()
        with self._writing:
            return self._keep_parts(wanted) if self._remote else self._keep(wanted)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        content, lines = self._read(self.path)
        kept = [entry for entry in lines.entries if wanted(entry)]
        text = _text(json.dumps(entry) for entry in kept)
        if content is not None and content != text:
            storage.write_bytes(self.path, text)
        return kept

    def _keep_parts(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Parts before the first one that changes stay; the rest is written anew."""
        paths = line_files(self.path)
        kept: list[dict[str, Any]] = []
        self._part, self._lines = max(0, len(paths) - 1), []
        changed = False
        for number, path in enumerate(paths):
            content, read = self._read(path)
            entries = [entry for entry in read.entries if wanted(entry)]
            kept += entries
            lines = [json.dumps(entry) for entry in entries]
            if not changed and content != _text(lines):
                changed, self._part = True, number
            if changed or number == self._part:
                self._lines += lines
        if changed:
            self._upload()
            for path in paths[self._part + 1 :]:
                storage.remove(path)
        return kept

    def _read(self, path: str) -> tuple[bytes | None, Lines]:
        content, lines, notice = read_or_set_aside(path, self._valid)
        self.notices += [notice] if notice else []
        return content, lines

    def _upload(self) -> None:
        """Write the last part, and new ones for what does not fit into it."""
        while True:
            size = count = 0
            for line in self._lines:  # it may grow meanwhile
                size, count = size + len(line), count + 1
                if size >= PART_BYTES:
                    break
            storage.write_bytes(part_path(self.path, self._part), _text(self._lines[:count]))
            if size < PART_BYTES:
                return
            del self._lines[:count]
            self._part += 1
            if not self._lines:
                return


def _append(path: str, text: bytes) -> None:
    left = memoryview(text)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(file).st_size
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


def _text(lines: Iterable[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def part_path(path: str, number: int) -> str:
    """Path of a part of a file of JSON lines; the first has the file's own name."""
    return path if number == 0 else f"{path.removesuffix('.jsonl')}-{number:06d}.jsonl"


def part_names(name: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are parts of the file ``name``, in order."""
    pattern = re.compile(re.escape(name.removesuffix(".jsonl")) + r"(-\d{6,})?\.jsonl")
    return sorted(
        filter(pattern.fullmatch, names), key=lambda part: (part != name, len(part), part)
    )


def line_files(path: str) -> list[str]:
    """Paths of the parts of a file that are there, in order."""
    folder, _, name = path.rpartition("/")
    parts = part_names(name, storage.names(folder or "."))
    return [storage.join(folder, part) for part in parts]


def read_or_set_aside(path: str, valid: Valid) -> tuple[bytes | None, Lines, str | None]:
    """(content, entries, notice) of a file that is to be written anew; no content where it is
    missing or no file at all. One with damage is moved out of the way first: the notice names it,
    what is damaged, and its new name.

    Raises StorageError when S3 does not answer: it may later.
    """
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return None, Lines(), None
    except StorageError as error:
        if storage.is_remote(path):
            raise
        return None, Lines(), f"{error}; set aside as {storage.set_aside(path)}"
    lines = parse_lines(content, valid)
    if not lines.damage:
        return content, lines, None
    aside = storage.set_aside(path)
    return content, lines, f"{path}: {lines.told()}; left out, as it was it is {aside}"


def read_lines(path: str, valid: Valid = lambda entry: True) -> list[dict[str, Any]]:
    """The entries of a file, in all its parts, without what is damaged; none when it is missing.

    Raises StorageError when a part cannot be read.
    """
    return list(read_with_damage(path, valid).entries)


def read_with_damage(path: str, valid: Valid) -> Lines:
    """As :func:`read_lines`, and what is damaged."""
    read = Lines()
    for part in line_files(path):
        read = read.joined(parse_lines(storage.read_bytes(part), valid), part)
    return read
