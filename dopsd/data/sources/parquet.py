"""Parquet files as a source, and how rows of tables become samples.

The driver reads footers alone. A task reads one row group, row by row so that its memory does not
depend on what a page unpacks to, and copies the pictures of usable samples into one file of their
own: a shard holds rows of many row groups, and from such a file each is read by its position.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dopsd.data.schema import FORMAT, SCHEMA_VERSION
from dopsd.data.sources.arrow import SUFFIX as ARROW
from dopsd.data.sources.arrow import batch_rows
from dopsd.data.sources.columns import Columns, columns_of, named_values
from dopsd.data.sources.fields import CAPTION_FIELDS, Keep, check_name, fill, printable, shown
from dopsd.data.sources.rows import Group, Source, SourceRow
from dopsd.errors import DopsdError, message_line
from dopsd.files import storage

_READERS = 16
"""Footers that are read side by side: on S3 nearly all of the time is waiting."""
_BUFFER = 2**22
"""Bytes of a column that are read at a time."""
_OWN = {"sample_id", "width", "height", "bucket"}
"""Columns of dopsd's shards that are read under another name or made anew."""


def list_parquet(
    files: list[tuple[str, str]], columns: Mapping[str, str], texts: bool = False
) -> Source:
    """Row groups of ``files`` (name, path); a file that cannot be used becomes a problem row.

    Fields as in .jsonl. A picture is bytes, a path relative to the file, or Hugging Face's
    {bytes, path}; ``captions`` a map or a struct of texts. ``columns``: field -> column. With
    ``texts`` there need be none of pictures, unless ``columns`` names it.
    """
    source = Source([])
    unknown: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    with ThreadPoolExecutor(_READERS) as readers:
        for (name, path), footer in zip(files, readers.map(lambda file: _footer(file[1]), files)):
            try:
                check_name("file name", name)
                if isinstance(footer, Exception):
                    raise ValueError(f"broken parquet: {_line(footer)}")
                present = _columns(footer, columns, unknown, texts)
                guessed.update(present.notes)
            except ValueError as error:
                rows = 1 if isinstance(footer, Exception) else max(1, footer.num_rows)
                source.rows.append(SourceRow(name, "", problem=str(error), samples=rows))
                continue
            for number in range(footer.num_row_groups):
                if rows := footer.row_group(number).num_rows:
                    source.groups.append(group_of(path, name, number, rows, present))
    source.notes = table_notes(unknown, guessed)
    return source


def group_of(path: str, name: str, number: int, rows: int, columns: Columns) -> Group:
    return Group(path, f"{name}:{number}", number, rows, columns.fields, columns.captions)


def table_notes(unknown: Counter[str], guessed: Counter[str]) -> list[str]:
    """What is told of the columns of several files."""
    notes = [
        f"column {shown(name)} is unknown: left aside in {n} files" for name, n in unknown.items()
    ]
    return sorted(notes) + [f"{note} in {n} files" for note, n in sorted(guessed.items())]


def _footer(path: str) -> pq.FileMetaData | Exception:
    try:
        with storage.open_input(path) as file, pq.ParquetFile(file) as parquet:
            parquet.schema_arrow  # noqa: B018 - a schema that Arrow does not know raises here
            return parquet.metadata
    except DopsdError:
        raise
    except Exception as error:  # pyarrow raises many kinds on broken files
        return error


def _columns(
    footer: pq.FileMetaData, asked: Mapping[str, str], unknown: Counter[str], texts: bool
) -> Columns:
    """The columns of a file; raises ValueError when it cannot hold samples."""
    if not footer.num_rows:
        raise ValueError("empty: no rows")
    metadata = footer.metadata or {}
    own = metadata.get(b"dopsd.format") == FORMAT.encode()
    version = metadata.get(b"dopsd.version", b"").decode("ascii", "replace")
    if own and version != str(SCHEMA_VERSION):
        raise ValueError(f"schema version {shown(version)}, this dopsd reads {SCHEMA_VERSION}")
    schema = footer.schema.to_arrow_schema()
    return table_columns(schema, asked, unknown, _OWN if own else set(), texts)


def table_columns(
    schema: pa.Schema,
    asked: Mapping[str, str],
    unknown: Counter[str],
    own: Collection[str] = (),
    texts: bool = False,
) -> Columns:
    """The columns of a table; those of no use are counted in ``unknown``, but for ``own``. Raises
    ValueError when it cannot hold samples: without pictures only with ``texts``, and where
    ``asked`` names no column of them."""
    names = schema.names
    wanted = dict(asked)
    if "id" not in asked and "id" not in names and "sample_id" in names:
        wanted["id"] = "sample_id"
    columns = columns_of(names, wanted, _pictures(schema))
    if twice := [column for column in columns.used if names.count(column) > 1]:
        raise ValueError(f"column {twice[0]!r} is there twice")
    there = ", ".join(map(shown, names[:12]))
    if "image" not in columns.fields and ("image" in asked or not texts):
        missing = asked.get("image", "image")
        raise ValueError(f"missing column: {missing!r}, there are {there} (set data.columns)")
    if not columns.captions and not columns.fields.keys() & {*CAPTION_FIELDS}:
        allowed = ", ".join(asked.get(name, name) for name in CAPTION_FIELDS)
        raise ValueError(
            f"missing column: a caption, allowed: {allowed}; there are {there} (set data.columns)"
        )
    known = {*columns.used, *columns.ignored, *own}
    unknown.update(printable(name) for name in dict.fromkeys(names) if name not in known)
    return columns


def _pictures(schema: pa.Schema) -> list[str]:
    """Columns that hold pictures by their type: Hugging Face's structs, or the only bytes."""
    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {one.name for one in field.type}
    ]
    if structs:
        return structs if len(structs) == 1 else []
    binary = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    return binary if len(binary) == 1 else []


def read_group(group: Group, keep: Keep, texts: bool = False) -> Iterator[SourceRow]:
    """The samples of a row group in order; the last one may stand for all that cannot be read.

    Pictures that stand in a row go through ``keep`` while the row is made; with ``texts`` a row
    needs none.
    """
    folder = os.path.dirname(group.path)
    kind = "Arrow" if group.path.endswith(ARROW) else "parquet"
    part = "record batch" if group.path.endswith(ARROW) else "row group"
    count, problem = 0, f"broken {kind}: the {part} holds fewer rows than its file says"
    columns = Columns(group.columns, tuple(group.captions))
    try:
        for batch in _single_rows(group, sorted(columns.used)):
            yield _row(group, count, batch, columns, folder, keep, texts)
            count += 1
    except DopsdError:
        raise
    except Exception as error:
        problem = f"broken {kind}: {_line(error)}"
    if count < group.rows:
        where = f"{group.where}:{count}-{group.rows - 1}"
        yield SourceRow(where, "", problem=problem, samples=group.rows - count)


def _single_rows(group: Group, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a group, each as a batch of its own."""
    if group.path.endswith(ARROW):
        yield from batch_rows(group.path, group.number, columns)
        return
    with (
        storage.open_input(group.path) as file,
        # Without pre-buffering: it would read a whole column of the row group at once.
        pq.ParquetFile(
            file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
        ) as parquet,
    ):
        yield from parquet.iter_batches(1, [group.number], columns, use_threads=False)


def _row(
    group: Group,
    number: int,
    batch: pa.RecordBatch,
    columns: Columns,
    folder: str,
    keep: Keep,
    texts: bool,
) -> SourceRow:
    row = SourceRow(f"{group.where}:{number}", "")
    try:
        record = {column: _value(batch, column) for column in columns.used}
        values = named_values(record, columns)
        fill(row, values, lambda path: _inside(folder, path), keep=keep, texts=texts)
        row.sample_id = row.sample_id or f"{group.stem}/{number}"
    except ValueError as error:
        row.problem = str(error)
        row.captions, row.image, row.references, row.mask = {}, None, [], None
    return row


def _value(batch: pa.RecordBatch, column: str) -> Any:
    array = batch.column(column)
    try:
        value = array[0].as_py()
    except UnicodeDecodeError as error:
        raise ValueError(f"{column}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except Exception as error:  # e.g. a time that Python cannot hold
        raise ValueError(f"{column}: cannot be read: {_line(error)}") from None
    if pa.types.is_map(array.type) and value is not None:
        return dict(value)
    return value


def _inside(folder: str, path: str) -> str:
    """A path of a row, which must stay below the folder of its file.

    Parquet files travel; unlike a list that somebody wrote here, they shall not choose among all
    files of the machine that trains.
    """
    joined = storage.join(folder, path)
    outside = storage.is_remote(path) or path.startswith("/") or ".." in path.split("/")
    if not outside and not storage.is_remote(folder):
        root = os.path.realpath(folder)
        outside = os.path.commonpath([root, os.path.realpath(joined)]) != root
    if outside:
        raise ValueError(f"image path leaves the folder of its file: {shown(path)}")
    return joined


def _line(error: Exception) -> str:
    return printable(message_line(error))
