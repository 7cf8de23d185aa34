"""Lists as sources: a .jsonl file of one object a line, a .csv or .tsv file of one row each."""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import IO, Any

from dopsd.data.sources.columns import LIST_NAME, Columns, columns_of, named_values
from dopsd.data.sources.encodings import decoded
from dopsd.data.sources.fields import fill, shown
from dopsd.data.sources.paths import beside
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.data.sources.settings import ReadSettings
from dopsd.files import storage
from dopsd.readers import json_value

SUFFIXES = (".jsonl", ".csv", ".tsv")
MAX_LINE = 2**22
"""Bytes of a line (4 MiB); what is beyond is skipped unread."""
MAX_TABLE = 2**28
"""Bytes of a .csv or .tsv file (256 MiB), which is read at once."""
_HEAD = 1000
"""Records at the start that tell which columns there are, unless a later one has others."""

Record = dict[str, Any] | ValueError


def read_list(path: str, settings: ReadSettings) -> Source:
    """List the samples of a file of SUFFIXES.

    ``image`` (path relative to the file, absolute, or s3://), captions as ``captions`` (a map
    key -> text, or one text), ``caption``, ``text`` or ``prompt``; optional ``id`` (default: the
    image path without suffix, or the list's name and the line), ``concept``, ``references`` (a list
    of paths like ``image``) and ``mask`` (such a path).
    Columns of other usual names are guessed and told of, others are left aside with a note.
    """
    locate = partial(beside, posixpath.dirname(path))
    rows, notes = list_rows(path, posixpath.basename(path), settings, locate)
    return Source(rows, notes)


def list_rows(
    path: str,
    file: str,
    settings: ReadSettings,
    locate: Callable[[str], str],
    rename: Callable[[str], str] | None = None,
) -> tuple[list[SourceRow], list[str]]:
    """(rows, notes) of a list that users know as ``file``.

    ``locate`` turns a path as it is given into one that can be opened, or raises ValueError;
    ``rename`` first makes of a picture's path the one that it is known by.
    """
    records = _records(path, settings)
    head = list(islice(records, _HEAD))
    names = dict.fromkeys(name for _, record in head if isinstance(record, dict) for name in record)
    columns = columns_of(names, settings.columns)
    rows, notes, unknown = _rows(chain(head, records), file, columns, settings, locate, rename)
    # A field may come late, as the first picture after thousands of texts alone.
    whole = columns_of([*names, *sorted(unknown.keys() - names.keys())], settings.columns)
    if (whole.fields, whole.captions) != (columns.fields, columns.captions):
        again = _records(path, settings)
        rows, notes, _ = _rows(again, file, whole, settings, locate, rename)
    return rows, notes


def _rows(
    records: Iterable[tuple[int, Record]],
    file: str,
    columns: Columns,
    settings: ReadSettings,
    locate: Callable[[str], str],
    rename: Callable[[str], str] | None,
) -> tuple[list[SourceRow], list[str], Counter[str]]:
    """(rows, notes, fields that no column is read from with their counts) under ``columns``."""
    rows: list[SourceRow] = []
    unknown: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    named = settings.columns.get("image")
    # Else a name that is wrong would make texts alone of every picture.
    lost = settings.texts and named is not None and "image" not in columns.fields
    for number, record in records:
        row = SourceRow(f"{file}:{number}", "")
        rows.append(row)
        try:
            if isinstance(record, ValueError):
                raise record
            unknown.update(record.keys() - columns.used - columns.ignored)
            if lost:
                raise ValueError(f"missing image: no field {shown(named)} (data.columns.image)")
            values = named_values(record, columns)
            if rename is not None:
                _rename(values, rename, settings.masks)
            fill(row, values, locate, empty, masks=settings.masks, texts=settings.texts)
            row.sample_id = row.sample_id or f"{posixpath.splitext(file)[0]}/{number}"
        except ValueError as error:
            row.problem = _with_names(str(error), columns, record)
            row.captions = {}
    notes = [f"field {shown(key)} is unknown: left aside in {n} rows" for key, n in unknown.items()]
    notes += [f"caption {key!r} is empty in {n} rows: left out there" for key, n in empty.items()]
    return rows, sorted(notes) + [f"{file}: {note}" for note in columns.notes], unknown


def _rename(values: dict[str, Any], rename: Callable[[str], str], masks: bool) -> None:
    if isinstance(image := values.get("image"), str) and image:
        values["image"] = rename(image)
    if isinstance(mask := values.get("mask"), str) and mask:
        try:
            values["mask"] = rename(mask)
        except ValueError as error:
            if masks:
                raise ValueError(f"bad mask: {error}") from None
            values["mask"] = None
    if isinstance(references := values.get("references"), list):
        values["references"] = [
            rename(path) if isinstance(path, str) and path else path for path in references
        ]


def is_authors_list(path: str, settings: ReadSettings) -> bool:
    """Whether a file is a list of the authors' own form, told by its first record."""
    if not path.lower().endswith(".jsonl"):
        return False
    _, first = next(_records(path, settings), (0, None))
    return isinstance(first, dict) and LIST_NAME in first


def _with_names(problem: str, columns: Columns, record: Record) -> str:
    """A field that is missing from the whole list is likely there under another name."""
    missing = problem.startswith("missing image: no field") and "image" not in columns.fields
    missing |= problem == "missing caption" and not columns.captions
    if not missing or not isinstance(record, dict) or not (unused := record.keys() - columns.used):
        return problem
    found = ", ".join(map(shown, sorted(unused)[:8]))
    return f"{problem}; the row has {found} (data.columns says which is which)"


def _records(path: str, settings: ReadSettings) -> Iterator[tuple[int, Record]]:
    """(number from 1 of its line, record or what is wrong with it)."""
    if path.lower().endswith(".jsonl"):
        with storage.open_binary(path) as file:
            for number, line in _lines(_utf8(file, path, settings)):
                if line is None or line.strip():
                    yield number, _object(line, settings)
        return
    yield from _table(path, settings)


def _table(path: str, settings: ReadSettings) -> Iterator[tuple[int, Record]]:
    if (size := storage.size(path)) > MAX_TABLE:
        yield 1, ValueError(f"too large: {size} bytes, allowed: {MAX_TABLE}")
        return
    try:
        text = decoded(storage.read_bytes(path), settings.caption_encoding)
    except ValueError as error:
        yield 1, error
        return
    head = text.split("\n", 1)[0]
    tabs = path.lower().endswith(".tsv") or (head.count("\t") > head.count(","))
    # Spreadsheets of half of Europe write semicolons.
    comma = "\t" if tabs else ";" if head.count(";") > head.count(",") else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=comma)
    names = [name.strip() for name in next(lines, [])]
    while True:
        number = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, ValueError(f"not CSV: {error}")
            return
        if not any(cells):
            continue
        if len(cells) > len(names):
            yield (
                number,
                ValueError(
                    f"{len(cells)} cells, allowed: {len(names)} as in the first line (a text with "
                    f"{comma!r} in it stands in quotes)"
                ),
            )
            continue
        yield number, {name: cell for name, cell in zip(names, cells) if cell}


def _utf8(file: IO[bytes], path: str, settings: ReadSettings) -> IO[bytes]:
    """The file itself, or a copy of one whose lines end in more than a byte."""
    if file.read(2) in (b"\xff\xfe", b"\xfe\xff") and storage.size(path) <= MAX_TABLE:
        try:
            text = decoded(storage.read_bytes(path), settings.caption_encoding)
        except ValueError:
            pass  # its first line says so
        else:
            return io.BytesIO(text.encode("utf-8", "surrogatepass"))
    file.seek(0)
    return file


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


def _object(line: bytes | None, settings: ReadSettings) -> Record:
    if line is None:
        return ValueError(f"line too long: allowed: {MAX_LINE} bytes")
    try:
        values = json_value(decoded(line, settings.caption_encoding))
    except ValueError as error:
        return error
    if not isinstance(values, dict):
        return ValueError(f"found {type(values).__name__}, allowed: an object")
    return values
