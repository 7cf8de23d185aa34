"""Arrow files: what ``datasets.save_to_disk`` writes, a stream of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.ipc

from dopsd.files import storage

SUFFIX = ".arrow"
_FILE_MAGIC = b"ARROW1"


@contextmanager
def _batches(path: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Schema and record batches of a file of either of Arrow's two forms."""
    is_file = storage.read_bytes(path, 0, len(_FILE_MAGIC)) == _FILE_MAGIC
    # A mapped file costs no memory for the batches that are passed over.
    source = storage.open_input(path) if storage.is_remote(path) else pa.memory_map(path)
    with source:
        if is_file:
            reader = pa.ipc.open_file(source)
            yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)


def schema_and_rows(path: str) -> tuple[pa.Schema, list[int]]:
    """The schema of a file and the rows of each of its record batches. Raises what pyarrow does on
    a file that is broken."""
    with _batches(path) as (schema, batches):
        return schema, [batch.num_rows for batch in batches]


def batch_rows(path: str, number: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of record batch ``number``, each as a batch of its own."""
    with _batches(path) as (_, batches):
        for at, batch in enumerate(batches):
            if at == number:
                chosen = batch.select(columns)
                for row in range(chosen.num_rows):
                    yield chosen.slice(row, 1)
                return
