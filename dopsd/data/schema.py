"""The parquet schema of canonical shards. Every row group holds samples of one bucket."""

from __future__ import annotations

import re
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 2
FORMAT: Literal["dopsd-shards"] = "dopsd-shards"
SHARD = "shard-{:05d}.parquet"
SHARD_NAME = re.compile(r"(shard-\d{5,})(\.\d+)?\.parquet")
"""A shard's own name, and the generation of one that was written beside an older data set."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("concept", pa.string()),
        ("captions", pa.map_(pa.string(), pa.string())),
        # PNG of the pixels as they are trained on, already cropped and resized: lossless, so
        # that the shards and their fingerprint depend on nothing but source and settings. Null
        # for a sample of texts alone (data.drawn_size).
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bucket", pa.string()),
        # PNG of each reference picture in order, upright RGB, in its own size up to 2048^2 pixels:
        # the size that a model sees is decided when it is read.
        ("references", pa.list_(pa.binary())),
    ],
    metadata={b"dopsd.format": FORMAT.encode(), b"dopsd.version": str(SCHEMA_VERSION).encode()},
)
"""One row per sample. ``bucket`` is "WxH" in pixels; ``concept`` may be null."""
MASK = "mask"
MASKED_SCHEMA = SCHEMA.append(pa.field(MASK, pa.binary())).with_metadata(SCHEMA.metadata)
"""Of a shard in which some sample has a mask: PNG of gray, as large as the picture, or null."""


def shard_generation(name: str, generation: int) -> str:
    """The name of a shard in a folder where older shards still lie; 0: its own."""
    return name if not generation else f"{name.removesuffix('.parquet')}.{generation}.parquet"


def without_generation(file: str) -> str:
    """The file of a row group as it would be called in a fresh folder: data that is prepared again
    is the same data, whatever its files are called."""
    folder, slash, name = file.rpartition("/")
    match = SHARD_NAME.fullmatch(name)
    return f"{folder}{slash}{match[1]}.parquet" if match else file
