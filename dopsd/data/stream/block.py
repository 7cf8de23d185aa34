"""A block of the stream: an encoded micro-batch as it lies in the object store.

Whoever holds a reference of one needs this and not Ray Data, which is slow to import.
"""

from __future__ import annotations

import pyarrow as pa

from dopsd.records import EncodedBatch

ENCODED_SCHEMA = pa.schema(
    [("step", pa.int64()), ("index", pa.int64()), ("payload", pa.large_binary())]
)
"""Of every block of the stream: one row; ``payload`` is an EncodedBatch."""


def encoded_block(batch: EncodedBatch) -> pa.Table:
    """The block of the stream that carries ``batch``."""
    row = {"step": batch.info.step, "index": batch.info.index, "payload": batch.to_bytes()}
    return pa.Table.from_pylist([row], schema=ENCODED_SCHEMA)


def load_encoded(block: pa.Table) -> EncodedBatch:
    """The record in a block of the stream, as a task receives it for the reference."""
    batch: EncodedBatch = EncodedBatch.from_bytes(block["payload"][0].as_py())
    return batch
