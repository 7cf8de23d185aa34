"""From row references to pixels and prompts: what a reading actor of the stream does.

Imports no torch, so that readers start fast and stay small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dopsd.data.pictures.images import decode_png, stand_in
from dopsd.data.pictures.masks import decode_mask
from dopsd.data.pictures.references import sized
from dopsd.data.planning.captions import draw_caption, draw_pair, dropped
from dopsd.data.planning.class_words import ClassWords
from dopsd.data.planning.plan import MicroBatch, Plan, RowRef
from dopsd.data.ray_data import shipping_errors
from dopsd.data.sample import Sample
from dopsd.data.schema import MASK
from dopsd.errors import DataError, DopsdError, message_line
from dopsd.files import storage

CACHE_BYTES = 2**29
"""Row groups that a reading process keeps (512 MiB). Micro-batches of several buckets alternate,
so the row groups of all of them are in use at once."""


@dataclass(frozen=True)
class ReadSpec:
    """What of each sample is read: nothing is decoded that nobody looks at."""

    caption_keys: tuple[str, ...] = ()
    """Captions to draw from; empty: every one that a sample has."""
    caption_dropout: float = 0.0
    """Share of draws whose prompt is empty, for both roles."""
    prompt_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of caption keys [student's, teacher's], in place of ``caption_keys``."""
    images: bool = True
    """The targets' pixels."""
    stand_ins: bool = False
    """Of a sample without a picture, one that says so; where people look, and nothing trains."""
    reference_pixels: int = 0
    """Most pixels of a reference picture; 0: references are not read."""
    reference_multiple: int = 16
    """Both sides of a reference are multiples of this."""
    class_words: ClassWords | None = None
    """What also trains in place of the token, towards the base; None: nothing."""
    masks: bool = False
    """Which parts of the targets count in the loss, where samples say so."""

    def columns(self) -> list[str]:
        """Columns of the shards that this takes."""
        columns = ["sample_id", "concept", "captions", "width", "height"]
        columns += ["image"] if self.images else []
        columns += ["references"] if self.reference_pixels else []
        return columns + ([MASK] if self.masks else [])


class RowGroups:
    """Row groups of one folder of shards, the recently used ones kept in memory."""

    def __init__(
        self, shards: str, read_spec: ReadSpec | None = None, capacity: int = CACHE_BYTES
    ) -> None:
        self.shards, self.capacity = shards, capacity
        self.read_spec = read_spec or ReadSpec()
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def row(self, ref: RowRef) -> dict[str, Any]:
        """``sample_id``, ``concept``, ``captions``, ``width``, ``height`` of one sample; ``image``,
        ``references`` and ``mask`` (PNG bytes) where they are wanted.

        Raises DataError when the shard is missing or another one than the manifest names.
        """
        rows = self._table(ref.file, ref.row_group).slice(ref.row, 1).to_pylist()
        if not rows:
            path = storage.join(self.shards, ref.file)
            raise DataError(
                f"{path}: not the shard that the manifest names: row group {ref.row_group} ends "
                f"before row {ref.row}"
            )
        row = rows[0]
        return {**row, "captions": dict(row["captions"])}

    def _table(self, file: str, row_group: int) -> pa.Table:
        key = (file, row_group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        path = storage.join(self.shards, file)
        try:
            with (
                storage.open_input(path) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as parquet,
            ):
                columns = self.read_spec.columns()
                if MASK not in parquet.schema_arrow.names:  # nothing in this shard has one
                    columns = [column for column in columns if column != MASK]
                table = parquet.read_row_group(row_group, columns=columns)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, but the manifest names it") from None
        except DopsdError:
            raise
        except Exception as error:  # pyarrow raises many kinds on files that are broken
            raise DataError(
                f"{path}: not the shard that the manifest names: {message_line(error)}"
            ) from None
        self._tables[key] = table
        self._bytes += table.nbytes
        while self._bytes > self.capacity and len(self._tables) > 1:
            _, oldest = self._tables.popitem(last=False)
            self._bytes -= oldest.nbytes
        return table


def read_micro_batch(batch: MicroBatch, groups: RowGroups, seed: int) -> dict[str, Any]:
    """One micro-batch as plain values, its captions drawn: a row of ``READ_SCHEMA``.

    ``pixels``: bytes of uint8 [B, H, W, 3], null where no images are wanted; ``mask``: bytes of
    uint8 [B, H, W], null where no sample has one. Raises DataError when a sample has no asked
    caption.
    """
    read_spec = groups.read_spec
    rows = [groups.row(ref) for ref in batch.rows]
    values: dict[str, Any] = {
        "step": batch.step,
        "index": batch.index,
        "step_samples": batch.step_samples,
        "sample_ids": [row["sample_id"] for row in rows],
        "repeats": list(batch.repeats),
        "height": rows[0]["height"],
        "width": rows[0]["width"],
        "pixels": None,
        "pictured": [],
        "teacher_prompts": None,
        "class_prompts": [],
        "mask": _masks(rows),
        "references": [_references(row, read_spec) for row in rows],
    }
    if read_spec.images:
        values["pixels"] = np.stack([_target(row, read_spec) for row in rows]).tobytes()
        values["pictured"] = [row["image"] is not None for row in rows]
    named = [(row["captions"], turn, row["sample_id"]) for row, turn in zip(rows, batch.turns)]
    if read_spec.prompt_pairs:
        pairs = [draw_pair(c, read_spec.prompt_pairs, seed, turn, name) for c, turn, name in named]
        values["prompts"], values["teacher_prompts"] = map(list, zip(*pairs))
    else:
        keys = read_spec.caption_keys
        values["prompts"] = [draw_caption(c, keys, seed, turn, name) for c, turn, name in named]
    for index, (_, turn, name) in enumerate(named):
        if dropped(read_spec.caption_dropout, seed, turn, name):
            for key in ("prompts", "teacher_prompts"):
                if values[key] is not None:
                    values[key][index] = ""
    if read_spec.class_words is not None:
        values["class_prompts"] = [
            read_spec.class_words.caption(prompt, row["concept"])
            for prompt, row in zip(values["prompts"], rows)
        ]
    return values


def _masks(rows: list[dict[str, Any]]) -> bytes | None:
    """Masks of the samples of a micro-batch; all of a sample without one counts."""
    if not any(row.get(MASK) for row in rows):
        return None
    whole = np.full((rows[0]["height"], rows[0]["width"]), 255, np.uint8)
    return np.stack([_mask(row) if row.get(MASK) else whole for row in rows]).tobytes()


def _mask(row: dict[str, Any]) -> np.ndarray:
    return _decoded(row[MASK], row["sample_id"], "mask", decode_mask)


def _target(row: dict[str, Any], read_spec: ReadSpec) -> np.ndarray:
    if row["image"] is None and read_spec.stand_ins:
        return stand_in(row["width"], row["height"])
    return row_image(row)


def row_image(row: dict[str, Any]) -> np.ndarray:
    """The target of a row: uint8 [H, W, 3]. Raises DataError when there is none, or when its bytes
    are broken."""
    if row["image"] is None:
        raise DataError(
            f"sample {row['sample_id']}: has no picture (data.drawn_size), and it is looked at"
        )
    return _decoded(row["image"], row["sample_id"])


def row_references(row: dict[str, Any], read_spec: ReadSpec) -> list[np.ndarray]:
    """The reference pictures of a row, as a model sees them."""
    pngs = row.get("references") or []  # the column is read where references are wanted
    images = (Image.fromarray(_decoded(png, row["sample_id"])) for png in pngs)
    return [
        sized(image, read_spec.reference_pixels, read_spec.reference_multiple) for image in images
    ]


def _references(row: dict[str, Any], read_spec: ReadSpec) -> list[dict[str, Any]]:
    return [
        {"height": pixels.shape[0], "width": pixels.shape[1], "pixels": pixels.tobytes()}
        for pixels in row_references(row, read_spec)
    ]


def _decoded(
    png: bytes,
    sample_id: str,
    what: str = "picture",
    decode: Callable[[bytes], np.ndarray] = decode_png,
) -> np.ndarray:
    try:
        return decode(png)
    except Exception as error:  # Pillow raises many kinds
        raise DataError(
            f"sample {sample_id}: its {what} in the shards is broken ({error}); prepare the data "
            "again"
        ) from None


def samples_of(values: dict[str, Any]) -> list[Sample]:
    """The samples of a row of ``READ_SCHEMA``."""
    count = len(values["sample_ids"])
    images: Any = [None] * count
    if values["pixels"] is not None:
        shape = (count, values["height"], values["width"], 3)
        images = np.frombuffer(values["pixels"], dtype=np.uint8).reshape(shape)
    references = [tuple(map(_pixels, pictures)) for pictures in values["references"]]
    teacher = values["teacher_prompts"] or [None] * count
    kept = values["class_prompts"] or [None] * count
    pictured = values["pictured"] or [True] * count
    columns = values["sample_ids"], values["prompts"], images, references, teacher, kept, pictured
    return list(map(Sample, *columns))


def _pixels(reference: dict[str, Any]) -> np.ndarray:
    shape = (reference["height"], reference["width"], 3)
    return np.frombuffer(reference["pixels"], dtype=np.uint8).reshape(shape)


_REFERENCE = pa.struct(
    [("height", pa.int64()), ("width", pa.int64()), ("pixels", pa.large_binary())]
)
READ_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("index", pa.int64()),
        ("step_samples", pa.int64()),
        ("sample_ids", pa.list_(pa.string())),
        ("repeats", pa.list_(pa.int64())),
        ("prompts", pa.list_(pa.string())),
        ("teacher_prompts", pa.list_(pa.string())),
        ("class_prompts", pa.list_(pa.string())),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("pixels", pa.large_binary()),
        ("pictured", pa.list_(pa.bool_())),
        ("references", pa.list_(pa.list_(_REFERENCE))),
        (MASK, pa.large_binary()),
    ]
)


class SegmentReader:
    """An actor of the stream that reads. Actors, not tasks: on a cluster with few CPUs Ray ends an
    idle worker process after a second and starts another for the next task, which costs more than
    all reading and forgets the row groups that it kept.

    Captions are drawn with the plan's seed. A subclass may make other blocks of the micro-batches.
    """

    def __init__(self, plan: Plan, shards: str, read_spec: ReadSpec) -> None:
        self._plan, self._groups = plan, RowGroups(shards, read_spec)

    def __call__(self, segment: pa.Table) -> Iterator[pa.Table]:
        """A table of one row per micro-batch of the segment, in order. Its columns ``start`` and
        ``stop`` count micro-batches as :meth:`Plan.number` does."""
        (span,) = segment.to_pylist()
        for number in range(span["start"], span["stop"]):
            with shipping_errors():
                block = self._block(self._plan.micro_batch_at(number))
            yield block

    def _block(self, batch: MicroBatch) -> pa.Table:
        values = read_micro_batch(batch, self._groups, self._plan.seed)
        return pa.Table.from_pylist([values], schema=READ_SCHEMA)
