"""From row references to pixels and prompts: what a reading task of the stream does.

Imports no torch, so that reading tasks start fast and stay small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dopsd import storage
from dopsd.data.captions import draw_caption
from dopsd.data.images import decode_png
from dopsd.data.plan import MicroBatch, Plan, RowRef
from dopsd.data.ray_tools import telling_errors
from dopsd.errors import DataError

CACHE_BYTES = 2**29
"""Row groups that a reading process keeps (512 MiB). Micro-batches of several buckets alternate,
so the row groups of all of them are in use at once."""
_COLUMNS = ["sample_id", "concept", "captions", "image"]


class RowGroups:
    """Row groups of one folder of shards, the recently used ones kept in memory."""

    def __init__(self, shards: str, capacity: int = CACHE_BYTES) -> None:
        self.shards, self.capacity = shards, capacity
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def row(self, ref: RowRef) -> dict[str, Any]:
        """``sample_id``, ``concept``, ``captions`` and ``image`` (PNG bytes) of one sample.

        Raises DataError when the shard is missing or another one than the manifest names.
        """
        row = self._table(ref.file, ref.row_group).slice(ref.row, 1).to_pylist()[0]
        return {**row, "captions": dict(row["captions"])}

    def _table(self, file: str, row_group: int) -> pa.Table:
        key = (file, row_group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        path = storage.join(self.shards, file)
        fs, inner = storage.arrow_filesystem(path)
        try:
            with pq.ParquetFile(fs.open_input_file(inner)) as parquet:
                table = parquet.read_row_group(row_group, columns=_COLUMNS)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, but the manifest names it") from None
        except (pa.ArrowInvalid, KeyError, IndexError) as error:
            raise DataError(f"{path}: not the shard that the manifest names: {error}") from None
        self._tables[key] = table
        self._bytes += table.nbytes
        while self._bytes > self.capacity and len(self._tables) > 1:
            _, oldest = self._tables.popitem(last=False)
            self._bytes -= oldest.nbytes
        return table


def read_micro_batch(
    batch: MicroBatch, groups: RowGroups, caption_keys: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """One micro-batch as plain values, its captions drawn.

    ``pixels``: bytes of uint8 [B, H, W, 3]. Raises DataError when a sample has no asked caption.
    """
    rows = [groups.row(ref) for ref in batch.rows]
    images = np.stack([decode_png(row["image"]) for row in rows])
    drawn = [
        draw_caption(row["captions"], caption_keys, seed, batch.epoch, row["sample_id"])
        for row in rows
    ]
    return {
        "step": batch.step,
        "index": batch.index,
        "step_samples": batch.step_samples,
        "sample_ids": [row["sample_id"] for row in rows],
        "prompts": [text for _, text in drawn],
        "height": images.shape[1],
        "width": images.shape[2],
        "pixels": images.tobytes(),
    }


READ_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("index", pa.int64()),
        ("step_samples", pa.int64()),
        ("sample_ids", pa.list_(pa.string())),
        ("prompts", pa.list_(pa.string())),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("pixels", pa.large_binary()),
    ]
)

_groups: RowGroups | None = None


def read_segment(
    segment: pa.Table, plan: Plan, shards: str, caption_keys: tuple[str, ...]
) -> Iterator[pa.Table]:
    """A table of one row per micro-batch of the segment (columns ``start``, ``stop``), in order.

    ``start`` and ``stop`` count micro-batches as :meth:`Plan.number` does; captions are
    drawn with the plan's seed.
    """
    global _groups
    if _groups is None or _groups.shards != shards:
        _groups = RowGroups(shards)
    (span,) = segment.to_pylist()
    for number in range(span["start"], span["stop"]):
        with telling_errors():
            values = read_micro_batch(plan.micro_batch_at(number), _groups, caption_keys, plan.seed)
            table = pa.Table.from_pylist([values], schema=READ_SCHEMA)
        yield table
