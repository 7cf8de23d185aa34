"""What is known of a picture once it was decoded: the grounds of what preparing says at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from dopsd.data.pictures.buckets import Bucket
from dopsd.data.pictures.images import Decoded

_GRID = 32
"""Cells a side that are looked at for whether a picture is of one colour."""
_NEAR = 8
"""Levels of 255 that the eye hardly tells apart."""
_OF_ONE_COLOUR = 0.995
"""Share of such cells."""
PRINT = 8
"""Cells a side of a picture's print."""


@dataclass(frozen=True)
class PictureFacts:
    """Of one usable picture."""

    width: int
    height: int
    scale: float
    """By which a side is scaled on its way into the bucket; more than 1 enlarges."""
    kept: float
    """Share of the area that the crop to the bucket leaves."""
    transparent: bool
    one_colour: bool
    """It is nearly that, as it trains."""
    profile: str
    """Of ``images.Decoded``."""
    print: str
    """Its mean colours in PRINT x PRINT cells, as hexadecimal RGB bytes."""

    @classmethod
    def of(cls, decoded: Decoded, bucket: Bucket) -> PictureFacts:
        image = decoded.image
        scale = max(bucket.width / image.width, bucket.height / image.height)
        kept = (bucket.width / scale) * (bucket.height / scale) / (image.width * image.height)
        cells = image.resize((_GRID, _GRID), Image.Resampling.BOX)
        grid = np.asarray(cells).reshape(-1, 3).astype(int)
        near = np.abs(grid - np.median(grid, axis=0)).max(axis=1) <= _NEAR
        small = cells.resize((PRINT, PRINT), Image.Resampling.BOX)
        return cls(
            width=image.width,
            height=image.height,
            scale=round(scale, 4),
            kept=round(min(kept, 1.0), 4),
            transparent=decoded.transparent,
            one_colour=bool(near.mean() >= _OF_ONE_COLOUR),
            profile=decoded.profile,
            print=small.tobytes().hex(),
        )


@dataclass(frozen=True)
class Inspected:
    """What became of a sample: its ``bucket``, or the ``reason`` of its quarantine."""

    bucket: str = ""
    reason: str = ""
    facts: PictureFacts | None = None
    several_lines: bool = False
    """Its caption file has more than one."""

    def pack(self) -> str:
        """As JSON, the form in which it passes through Ray Data."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Inspected:
        """Inverse of :meth:`pack`."""
        values = json.loads(text)
        values["facts"] = values["facts"] and PictureFacts(**values["facts"])
        return cls(**values)
