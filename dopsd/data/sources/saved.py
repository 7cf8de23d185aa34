"""Folders that ``datasets.save_to_disk`` wrote: Arrow files, and a state that names them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dopsd.data.sources.arrow import schema_and_rows
from dopsd.data.sources.fields import check_name, printable
from dopsd.data.sources.parquet import group_of, table_columns, table_notes
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.errors import DataError, DopsdError, message_line
from dopsd.readers import Object, read_json

STATE = "state.json"


def list_arrow(
    files: list[tuple[str, str]],
    states: Mapping[str, str],
    columns: Mapping[str, str],
    texts: bool = False,
) -> Source:
    """Record batches of ``files`` (name, path); a file that cannot be used becomes a problem row.

    ``states``: name -> path of files called STATE; one leaves of the files beside it those that it
    names, since those of earlier versions may lie there too. ``texts`` as in ``list_parquet``.
    """
    source = Source([])
    named = {posixpath.dirname(name): _named(path) for name, path in states.items()}
    unknown: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    left = 0
    for name, path in files:
        folder, file = posixpath.split(name)
        if (wanted := named.get(folder)) and file not in wanted:
            left += 1
            continue
        rows = 1
        try:
            check_name("file name", name)
            schema, batches = _listed(path)
            rows = max(1, sum(batches))
            if not sum(batches):
                raise ValueError("empty: no rows")
            found = table_columns(schema, columns, unknown, texts=texts)
        except ValueError as error:
            source.rows.append(SourceRow(name, "", problem=str(error), samples=rows))
            continue
        guessed.update(found.notes)
        source.groups += [
            group_of(path, name, number, count, found)
            for number, count in enumerate(batches)
            if count
        ]
    source.notes = table_notes(unknown, guessed)
    if left:
        source.notes.append(f"{left} .arrow files that {STATE} does not name: left aside")
    return source


def _listed(path: str) -> tuple[Any, list[int]]:
    try:
        return schema_and_rows(path)
    except DopsdError:
        raise
    except Exception as error:  # pyarrow raises many kinds on broken files
        raise ValueError(f"broken Arrow: {printable(message_line(error))}") from None


def _named(path: str) -> set[str]:
    try:
        files = read_json(path, Object).get("_data_files")
    except DataError:
        return set()
    entries = files if isinstance(files, list) else []
    names = (entry.get("filename") for entry in entries if isinstance(entry, dict))
    return {name for name in names if isinstance(name, str)}
