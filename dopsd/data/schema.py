"""The parquet schema of canonical shards. Every row group holds samples of one bucket."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 2
FORMAT: Literal["dopsd-shards"] = "dopsd-shards"
SHARD = "shard-{:05d}.parquet"

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("concept", pa.string()),
        ("captions", pa.map_(pa.string(), pa.string())),
        # PNG of the pixels as they are trained on, already cropped and resized: lossless, so
        # that the shards and their fingerprint depend on nothing but source and settings.
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
