"""Which concepts a source has, before any picture of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow.parquet as pq

from dopsd.data.sources.arrow import SUFFIX as ARROW
from dopsd.data.sources.arrow import batch_rows
from dopsd.data.sources.columns import Columns, named_values
from dopsd.data.sources.fields import CAPTION_FIELDS, captions_in
from dopsd.data.sources.rows import Group, Source
from dopsd.errors import DataError, message_line
from dopsd.files import storage

Listed = tuple[str, tuple[str, ...] | None, str]
"""Concept of a sample ("" without one), keys of its captions (None: its caption file knows), and
what is wrong with it if known."""


def source_concepts(source: Source) -> set[str]:
    """Names of all concepts of a source; raises as :func:`listed_samples`."""
    return {concept for concept, _, _ in listed_samples(source)}


def listed_samples(source: Source) -> Iterator[Listed]:
    """Every sample of a source, as far as it is known without its picture. Of tables the
    columns of concept and captions are read. Raises DataError for a file that cannot be read."""
    for row in source.rows:
        yield (
            row.concept or "",
            None if row.caption_file else tuple(row.captions),
            row.problem or "",
        )
    yield from chain.from_iterable(map(_of_group, source.groups))


def _of_group(group: Group) -> Iterator[Listed]:
    fields = {f: c for f, c in group.columns.items() if f in (*CAPTION_FIELDS, "concept")}
    columns = Columns(fields, group.captions)
    try:
        rows = _rows(group, sorted(columns.used))
    except (OSError, ValueError, ArithmeticError) as error:  # pyarrow's own are among them
        raise DataError(f"{group.where}: cannot be read: {message_line(error)}") from None
    for row in rows:
        try:
            yield _listed(named_values(row, columns))
        except ValueError as error:
            yield "", (), str(error)


def _rows(group: Group, columns: list[str]) -> list[dict[str, Any]]:
    if group.path.lower().endswith(ARROW):
        batches = batch_rows(group.path, group.number, columns)
        return list(chain.from_iterable(batch.to_pylist() for batch in batches))
    with storage.open_input(group.path) as file, pq.ParquetFile(file) as parquet:
        rows: list[dict[str, Any]] = parquet.read_row_group(group.number, columns).to_pylist()
        return rows


def _listed(values: dict[str, Any]) -> Listed:
    concept = values.pop("concept", None) or ""
    if isinstance(values.get("captions"), list):  # a map
        values["captions"] = dict(values["captions"])
    try:
        keys = tuple(key for key, text in captions_in(values).items() if text)
    except ValueError as error:
        return str(concept), (), str(error)
    return str(concept), keys, "" if keys else "missing caption"
