"""Which concepts a source has, before any picture of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow.parquet as pq

from dopsd import storage
from dopsd.data.sources.fields import CAPTION_FIELDS, captions_in
from dopsd.data.sources.rows import CAPTION_KEY, Group, Source
from dopsd.errors import DataError, message_line

Listed = tuple[str, tuple[str, ...], str]
"""Concept of a sample ("" without one), keys of its captions, and what is wrong with it if known.
"""


def source_concepts(source: Source) -> set[str]:
    """Names of all concepts of a source; raises as :func:`listed_samples`."""
    return {concept for concept, _, _ in listed_samples(source)}


def listed_samples(source: Source) -> Iterator[Listed]:
    """Every sample of a source, as far as it is known without its picture. Of parquet files the
    columns of concept and captions are read. Raises DataError for a file that cannot be read."""
    for row in source.rows:
        keys = tuple(row.captions) or ((CAPTION_KEY,) if row.caption_file else ())
        yield row.concept or "", keys, row.problem or ""
    yield from chain.from_iterable(map(_of_group, source.groups))


def _of_group(group: Group) -> Iterator[Listed]:
    fields = {f: c for f, c in group.columns.items() if f in (*CAPTION_FIELDS, "concept")}
    try:
        with storage.open_input(group.path) as file, pq.ParquetFile(file) as parquet:
            rows = parquet.read_row_group(group.number, list(fields.values())).to_pylist()
    except (OSError, ValueError, ArithmeticError) as error:  # pyarrow's own are among them
        raise DataError(f"{group.where}: cannot be read: {message_line(error)}") from None
    for row in rows:
        yield _listed({field: row[column] for field, column in fields.items()})


def _listed(values: dict[str, Any]) -> Listed:
    concept = values.pop("concept", None) or ""
    if isinstance(values.get("captions"), list):  # a map
        values["captions"] = dict(values["captions"])
    try:
        keys = tuple(key for key, text in captions_in(values).items() if text)
    except ValueError as error:
        return str(concept), (), str(error)
    return str(concept), keys, "" if keys else "missing caption"
