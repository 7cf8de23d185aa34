"""What the tasks of ``prepare`` do with one sample and with one shard."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dopsd import storage
from dopsd.config_context import MAX_REFERENCE_PIXELS
from dopsd.data.buckets import Bucket, fit, nearest, parse_bucket
from dopsd.data.images import MAX_BYTES, BadImage, decode_image, decode_png, encode_png
from dopsd.data.references import MAX_REFERENCES, check_shape, shrunk
from dopsd.data.schema import SCHEMA
from dopsd.data.sources import CAPTION_KEY, SourceRow, read_caption_file
from dopsd.errors import DataError

_CONTROL_TOKEN = re.compile(r"<\|[^|<>]+\|>")
"""Tokens such as <|im_end|> end a turn or stand for an image; encoders refuse them too."""


def inspect(row: SourceRow, buckets: tuple[Bucket, ...], multiple: int) -> tuple[str, str]:
    """(bucket, "") of a usable sample, or ("", reason) of one for the quarantine.

    Decodes the whole picture: a file that breaks off in the middle is found here. ``multiple``:
    the shortest side of a reference picture.
    """
    try:
        captions = _captions(row)
        if not captions:
            return "", "empty caption"
        if found := next(filter(None, map(_CONTROL_TOKEN.search, captions.values())), None):
            return "", f"caption holds {found[0]}, a control token of chat templates"
        image = _read_image(row.image)
        _check_references(row.references, multiple)
    except BadImage as error:
        return "", str(error)
    except FileNotFoundError:
        return "", "missing caption: no such file"
    except (OSError, ValueError) as error:
        return "", f"caption: {' '.join(str(error).split())}"
    return str(nearest(image.width, image.height, buckets)), ""


def write_shard(path: str, groups: list[tuple[str, list[SourceRow]]]) -> dict[str, str]:
    """Write one parquet file, one row group per entry (bucket, its samples in order).

    Holds one row group in memory. Returns sample_id -> sha256 of the sample. Raises DataError
    when a sample no longer reads as it did when it was inspected.
    """
    digests: dict[str, str] = {}
    fs, inner = storage.arrow_filesystem(path)
    # No compression: PNG does not shrink, and readers then copy nothing. No statistics: of a
    # binary column they would repeat whole pictures in the footer. A file that is left
    # unfinished does no harm: without its manifest the folder is not a data set.
    with (
        fs.open_output_stream(inner) as sink,
        pq.ParquetWriter(
            sink, SCHEMA, compression="NONE", use_dictionary=False, write_statistics=False
        ) as writer,
    ):
        for bucket, rows in groups:
            records = [_record(row, bucket) for row in rows]
            digests.update((record["sample_id"], _digest(record)) for record in records)
            table = pa.Table.from_pylist(records, schema=SCHEMA)
            writer.write_table(table, row_group_size=len(records))
    return digests


def pack_row(row: SourceRow) -> str:
    """A source row as JSON text, the form in which it passes through Ray Data."""
    return json.dumps(asdict(row), ensure_ascii=False)


def unpack_row(text: str) -> SourceRow:
    """Inverse of :func:`pack_row`."""
    return SourceRow(**json.loads(text))


def _captions(row: SourceRow) -> dict[str, str]:
    if row.caption_file is None:
        return dict(sorted(row.captions.items()))
    text = read_caption_file(row.caption_file)
    return {CAPTION_KEY: text} if text else {}


def _read_image(path: str) -> Image.Image:
    """Raises BadImage when the file is missing, too large, unreadable or broken."""
    try:
        fs, inner = storage.filesystem(path)
        size = fs.size(inner)
        if size is not None and size > MAX_BYTES:
            raise BadImage(f"too large: {size} bytes, allowed: {MAX_BYTES}")
        data = fs.cat_file(inner)
    except FileNotFoundError:
        raise BadImage(f"missing image: no such file {path}") from None
    except (OSError, DataError) as error:
        raise BadImage(f"unreadable image: {' '.join(str(error).split())}") from None
    return decode_image(data)


def _check_references(paths: list[str], multiple: int) -> None:
    """Raises BadImage naming the reference that cannot be used, and why."""
    if len(paths) > MAX_REFERENCES:
        raise BadImage(f"too many references: {len(paths)}, allowed: {MAX_REFERENCES}")
    for path in paths:
        try:
            picture = _read_image(path)
            check_shape(picture.width, picture.height, multiple)
        except BadImage as error:
            raise BadImage(f"bad reference: {posixpath.basename(path)}: {error}") from None


def _record(row: SourceRow, bucket: str) -> dict[str, Any]:
    """One row of the parquet file."""
    try:
        captions = _captions(row)
        image = fit(_read_image(row.image), parse_bucket(bucket))
        references = [shrunk(_read_image(path), MAX_REFERENCE_PIXELS) for path in row.references]
    except (BadImage, OSError, ValueError) as error:
        raise DataError(f"{row.where}: changed while it was being prepared: {error}") from None
    return {
        "sample_id": row.sample_id,
        "concept": row.concept,
        "captions": list(captions.items()),
        "image": encode_png(image),
        "width": image.width,
        "height": image.height,
        "bucket": bucket,
        "references": [encode_png(each) for each in references],
    }


def _digest(record: dict[str, Any]) -> str:
    """sha256 of what a sample trains with: id, concept, captions, pixels and references."""
    identity = [record["sample_id"], record["concept"], record["captions"]]
    identity += [record["width"], record["height"]]
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode())
    # Pixels, not PNG bytes: another zlib compresses the same picture differently.
    digest.update(decode_png(record["image"]).tobytes())
    for png in record["references"]:
        pixels = decode_png(png)
        digest.update(f"reference {pixels.shape}".encode() + pixels.tobytes())
    return digest.hexdigest()
