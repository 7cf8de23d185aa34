"""A .jsonl file as a source: one JSON object per line."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any

from dopsd import storage
from dopsd.data.sources.fields import FIELDS, beside, fill, shown
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.readers import json_value

MAX_LINE = 2**22
"""Bytes of a line (4 MiB); what is beyond is skipped unread."""


def read_jsonl(path: str, columns: Mapping[str, str]) -> Source:
    """List its samples.

    ``image`` (path relative to the file, absolute, or s3://), captions as ``captions`` (a map
    key -> text, or one text), ``caption``, ``text`` or ``prompt``; optional ``id`` (default: the
    image path without suffix), ``concept``, and ``references`` (a list of paths like ``image``).
    Other fields are left aside with a note. ``columns``: field -> its name in this file.
    """
    folder, file = posixpath.split(path)
    source = Source([])
    unknown: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    renamed = {name: columns.get(name, name) for name in FIELDS}
    with storage.open_binary(path) as lines:
        for number, line in _lines(lines):
            if line is not None and not line.strip():
                continue
            row = SourceRow(f"{file}:{number}", "")
            source.rows.append(row)
            try:
                values = _object(line)
                unknown.update(values.keys() - set(renamed.values()))
                named = {name: values.get(theirs) for name, theirs in renamed.items()}
                fill(row, named, partial(beside, folder), empty)
            except ValueError as error:
                row.problem = str(error)
                row.captions = {}
    source.notes = [
        f"field {shown(key)} is unknown: left aside in {n} rows" for key, n in unknown.items()
    ]
    source.notes += [
        f"caption {key!r} is empty in {n} rows: left out there" for key, n in empty.items()
    ]
    source.notes.sort()
    return source


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line); None in place of a line that is too long."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield number, None


def _object(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise ValueError(f"line too long: allowed: {MAX_LINE} bytes")
    values = json_value(line)
    if not isinstance(values, dict):
        raise ValueError(f"found {type(values).__name__}, allowed: an object")
    return values
