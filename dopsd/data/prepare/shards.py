"""What the tasks of ``prepare`` do with one sample and with one shard."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dopsd.config.context import MAX_REFERENCE_PIXELS
from dopsd.data.manifest import PrepareSettings
from dopsd.data.pictures.buckets import Bucket, Choice, fit, parse_bucket
from dopsd.data.pictures.images import MAX_BYTES, BadImage, Decoded, check_shape, decode, encode_png
from dopsd.data.pictures.masks import fitted_mask
from dopsd.data.pictures.references import MAX_REFERENCES, shrunk
from dopsd.data.prepare.facts import Inspected, PictureFacts
from dopsd.data.schema import MASK, MASKED_SCHEMA, SCHEMA
from dopsd.data.sources.caption_files import read_caption_file
from dopsd.data.sources.fields import check_captions
from dopsd.data.sources.parquet import read_group
from dopsd.data.sources.rows import ByteRange, Group, SourceRow
from dopsd.errors import DataError, StorageError, message_line
from dopsd.files import storage

Fetch = Callable[[ByteRange], bytes]


@dataclass(frozen=True)
class Inspector:
    """Decides of samples what becomes of them, by the settings of one preparing."""

    settings: PrepareSettings
    choice: Choice

    @classmethod
    def of(cls, settings: PrepareSettings) -> Inspector:
        multiple = settings.bucket_multiple
        return cls(settings, Choice.of(settings.areas, multiple, settings.seed))

    def inspect(self, row: SourceRow, fetch: Fetch | None = None) -> Inspected:
        """The bucket of a usable sample and what is known of its picture, or the reason of one for
        the quarantine. Captions of a file are read into ``row``.

        Decodes the whole picture: a file that breaks off in the middle is found here. ``fetch``
        gives the bytes of a picture (default: from storage). Raises StorageError when a remote
        storage fails: that is no fault of the sample.
        """
        read = fetch or fetch_image
        several = False
        try:
            if row.caption_file is not None:
                row.captions, several = read_caption_file(row.caption_file, self.settings)
            if not row.captions:
                return Inspected(reason="empty caption")
            check_captions(row.captions)
        except FileNotFoundError:
            return Inspected(reason="missing caption: no such file")
        except (StorageError, ValueError) as error:
            if isinstance(error, StorageError) and storage.is_remote(row.caption_file or ""):
                raise
            reason = message_line(error)
            told = reason.startswith(("caption", "missing caption"))
            return Inspected(reason=reason if told else f"caption: {reason}")
        multiple = self.settings.bucket_multiple
        try:
            if row.image is None:
                bucket, facts = self._drawn(row.sample_id), None
            else:
                picture = _decoded(row.image, read)
                width, height = picture.image.size
                check_shape(width, height, multiple)
                bucket = self.choice.bucket(width, height, row.sample_id)
                facts = PictureFacts.of(picture, bucket)
                self._check_size(facts, bucket)
                _check_mask(row.mask, (width, height), bucket, read)
            _check_references(row.references, multiple, read)
        except BadImage as error:
            return Inspected(reason=str(error))
        return Inspected(str(bucket), "", facts, several)

    def _drawn(self, sample_id: str) -> Bucket:
        """The bucket of a sample without a picture. Raises BadImage for a size that is none."""
        assert self.settings.drawn_size is not None, "a row without a picture has a problem"
        size = parse_bucket(self.settings.drawn_size)
        check_shape(size.width, size.height, self.settings.bucket_multiple)
        return self.choice.bucket(size.width, size.height, sample_id)

    def _check_size(self, facts: PictureFacts, bucket: Bucket) -> None:
        """Raises BadImage for a picture of fewer pixels than are asked for."""
        size, least, most = (
            f"{facts.width}x{facts.height} pixels",
            self.settings.min_side,
            self.settings.max_enlarge,
        )
        if min(facts.width, facts.height) < least:
            raise BadImage(f"too small: {size}, allowed: {least} a side (data.min_side)")
        if facts.scale > most:
            raise BadImage(
                f"too small: {size} would become {bucket}, {facts.scale:.3g} times a side, "
                f"allowed: {most:g} (data.max_enlarge; a smaller data.pixel_area enlarges less)"
            )

    def unpack(self, group: Group, path: str) -> Iterator[tuple[SourceRow, Inspected]]:
        """Each row of a group of a table and what becomes of it; bad ones carry their ``problem``.

        Pictures of usable samples that stand in the rows are written to ``path``, one after the
        other, and the samples say where. Raises StorageError.
        """
        held: dict[ByteRange, bytes] = {}
        end = 0

        def keep(data: bytes) -> ByteRange:
            part = ByteRange(path, end + sum(map(len, held.values())))
            part = replace(part, stop=(part.start or 0) + len(data))
            held[part] = data
            return part

        def fetch(part: ByteRange) -> bytes:
            return held[part] if part in held else fetch_image(part)

        with ExitStack() as stack:
            sink: pa.NativeFile | None = None
            for row in read_group(group, keep, self.settings.texts):
                found = Inspected()
                if row.problem is None:
                    found = self.inspect(row, fetch)
                    row.problem = found.reason or None
                if row.problem is None and held:
                    if sink is None:
                        sink = stack.enter_context(storage.open_output(path))
                    for data in held.values():
                        sink.write(data)
                        end += len(data)
                held.clear()
                yield row, found


def write_shard(path: str, groups: list[tuple[str, list[SourceRow]]]) -> dict[str, str]:
    """Write one parquet file, one row group per entry (bucket, its samples in order).

    Holds one row group in memory. Returns sample_id -> sha256 of the sample. Raises DataError
    when a sample no longer reads as it did when it was inspected.
    """
    digests: dict[str, str] = {}
    masked = any(row.mask is not None for _, rows in groups for row in rows)
    schema = MASKED_SCHEMA if masked else SCHEMA
    # No compression: PNG does not shrink, and readers then copy nothing. No statistics: of a
    # binary column they would repeat whole pictures in the footer. A file that is left
    # unfinished does no harm: without its manifest the folder is not a data set.
    with (
        storage.storage_errors(path),
        storage.open_output(path) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,  # a bit that has turned is found when it is read
        ) as writer,
    ):
        for bucket, rows in groups:
            records = []
            for row in rows:
                pictures = _pictures(row, bucket)
                records.append(_record(row, bucket, pictures))
                digests[row.sample_id] = _digest(row, pictures)
            table = pa.Table.from_pylist(records, schema=schema)
            writer.write_table(table, row_group_size=len(records))
    return digests


def fetch_image(part: ByteRange) -> bytes:
    """Bytes of a picture. Raises BadImage when it is missing, too large or cannot be opened."""
    try:
        size = storage.size(part.path) if part.stop is None else part.stop - (part.start or 0)
        if size > MAX_BYTES:
            raise BadImage(f"too large: {size} bytes, allowed: {MAX_BYTES}")
        return storage.read_bytes(part.path, part.start, part.stop)
    except FileNotFoundError:
        raise BadImage(f"missing image: no such file {part.path}") from None
    except (StorageError, ValueError, DataError) as error:
        if isinstance(error, StorageError) and storage.is_remote(part.path):
            raise
        raise BadImage(f"unreadable image: {message_line(error)}") from None


def _decoded(part: ByteRange, fetch: Fetch = fetch_image) -> Decoded:
    data = fetch(part)
    if len(data) > MAX_BYTES:
        raise BadImage(f"too large: {len(data)} bytes, allowed: {MAX_BYTES}")
    return decode(data)


def _check_references(parts: list[ByteRange], multiple: int, fetch: Fetch) -> None:
    """Raises BadImage naming the reference that cannot be used, and why."""
    if len(parts) > MAX_REFERENCES:
        raise BadImage(f"too many references: {len(parts)}, allowed: {MAX_REFERENCES}")
    for number, part in enumerate(parts, start=1):
        try:
            image = _decoded(part, fetch).image
            check_shape(image.width, image.height, multiple)
        except BadImage as error:
            name = posixpath.basename(part.path) if part.stop is None else str(number)
            raise BadImage(f"bad reference: {name}: {error}") from None


def _check_mask(
    part: ByteRange | None, size: tuple[int, int], bucket: Bucket, fetch: Fetch
) -> None:
    """Raises BadImage, which says that it is the mask, when it cannot be used, and why."""
    if part is None:
        return
    try:
        fitted_mask(_decoded(part, fetch), size, bucket)
    except BadImage as error:
        name = f"{posixpath.basename(part.path)}: " if part.stop is None else ""
        raise BadImage(f"bad mask: {name}{error}") from None


@dataclass(frozen=True)
class _Pictures:
    """Of a sample as it trains: its size, the target, if there is one, and its mask, and the
    references as they are kept."""

    size: Bucket
    image: Image.Image | None
    mask: Image.Image | None
    references: list[Image.Image]


def _pictures(row: SourceRow, bucket: str) -> _Pictures:
    # Decoded once more than when it was inspected, which is 4 % of what preparing a picture of a
    # megapixel costs; all of them as they were inspected would take as much room as the shards.
    try:
        size = parse_bucket(bucket)
        references = (_decoded(part).image for part in row.references)
        kept = [shrunk(reference, MAX_REFERENCE_PIXELS) for reference in references]
        if row.image is None:
            return _Pictures(size, None, None, kept)
        picture = _decoded(row.image).image
        mask = fitted_mask(_decoded(row.mask), picture.size, size) if row.mask else None
        return _Pictures(size, fit(picture, size), mask, kept)
    except (BadImage, OSError, StorageError, ValueError) as error:
        raise DataError(f"{row.where}: changed while it was being prepared: {error}") from None


def _record(row: SourceRow, bucket: str, pictures: _Pictures) -> dict[str, Any]:
    """One row of the parquet file."""
    return {
        "sample_id": row.sample_id,
        "concept": row.concept,
        "captions": sorted(row.captions.items()),
        "image": encode_png(pictures.image) if pictures.image else None,
        "width": pictures.size.width,
        "height": pictures.size.height,
        "bucket": bucket,
        "references": [encode_png(reference) for reference in pictures.references],
        **({MASK: encode_png(pictures.mask)} if pictures.mask else {}),
    }


def _digest(row: SourceRow, pictures: _Pictures) -> str:
    """sha256 of what a sample trains with: id, concept, captions, pixels, references and mask."""
    identity = [row.sample_id, row.concept, sorted(row.captions.items()), *pictures.size]
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode())
    # Pixels, not PNG bytes: another zlib compresses the same picture differently.
    digest.update(np.asarray(pictures.image).tobytes() if pictures.image else b"no picture")
    for reference in pictures.references:
        pixels = np.asarray(reference)
        digest.update(f"reference {pixels.shape}".encode() + pixels.tobytes())
    if pictures.mask:
        digest.update(b"mask" + np.asarray(pictures.mask).tobytes())
    return digest.hexdigest()
