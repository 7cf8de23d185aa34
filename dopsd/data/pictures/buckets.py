"""Aspect buckets, and how a picture is brought into one: cover and centre crop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

_MEGAPIXEL = 1024 * 1024
_SHAPES = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1152, 864),
    (864, 1152),
    (1248, 832),
    (832, 1248),
    (1280, 720),
    (720, 1280),
    (1344, 576),
    (576, 1344),
)
"""(width, height) of the 11 buckets around one megapixel of the authors' scripts."""


class Bucket(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_bucket(name: str) -> Bucket:
    """Inverse of ``str(bucket)``."""
    width, height = name.split("x")
    return Bucket(int(width), int(height))


def commonest(counts: Mapping[str, int]) -> Bucket:
    """Of buckets by name the one with the most samples; of several the last by name."""
    return parse_bucket(max(counts, key=lambda name: (counts[name], name)))


def buckets(pixel_area: int, multiple: int) -> tuple[Bucket, ...]:
    """The 11 shapes scaled to about ``pixel_area`` pixels, sides multiples of ``multiple``.

    Each side is rounded to the nearest multiple (halves up, at least one multiple); shapes that
    become equal are kept once, so small areas have fewer than 11 buckets.
    """
    scale = math.sqrt(pixel_area / _MEGAPIXEL)

    def side(pixels: int) -> int:
        return max(1, math.floor(pixels * scale / multiple + 0.5)) * multiple

    return tuple(dict.fromkeys(Bucket(side(w), side(h)) for w, h in _SHAPES))


@dataclass(frozen=True)
class Choice:
    """Which bucket a sample goes into: ``areas`` holds the buckets of each of data.pixel_area."""

    areas: tuple[tuple[Bucket, ...], ...]
    seed: int

    @classmethod
    def of(cls, pixel_areas: tuple[int, ...], multiple: int, seed: int) -> Choice:
        """Of areas in pixels; the sides of every bucket are multiples of ``multiple`` pixels."""
        return cls(tuple(buckets(area, multiple) for area in pixel_areas), seed)

    def bucket(self, width: int, height: int, sample_id: str) -> Bucket:
        """The nearest of one area, drawn by seed and id among those that a picture of ``width`` x
        ``height`` fills without being enlarged; where it fills none, of the smallest."""
        candidates = [nearest(width, height, choices) for choices in self.areas]
        filled = [b for b in candidates if width >= b.width and height >= b.height]
        if not filled:
            return min(candidates, key=lambda b: b.width * b.height)
        digest = hashlib.sha256(f"{self.seed}\0{sample_id}".encode()).digest()
        return filled[int.from_bytes(digest[:8], "big") % len(filled)]


def nearest(width: int, height: int, choices: tuple[Bucket, ...]) -> Bucket:
    """The bucket whose log aspect ratio is nearest; the first of ``choices`` on a tie."""
    aspect = math.log(width / height)
    return min(choices, key=lambda b: abs(math.log(b.width / b.height) - aspect))


def fit(image: Image.Image, bucket: Bucket) -> Image.Image:
    """Scale ``image`` to cover ``bucket`` (Lanczos) and cut out its centre.

    A picture that already covers the bucket at scale 1 is only cut, never resampled.
    """
    if image.size == tuple(bucket):
        return image
    scale = max(bucket.width / image.width, bucket.height / image.height)
    # The part of the source that is kept; cutting and scaling in one call avoids rounding the
    # covering size to whole pixels.
    width, height = bucket.width / scale, bucket.height / scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    if scale == 1.0:
        x, y = int(left), int(top)
        return image.crop((x, y, x + bucket.width, y + bucket.height))
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    return image.resize(
        (bucket.width, bucket.height),
        Image.Resampling.LANCZOS,
        box=(max(left, 0), max(top, 0), right, bottom),
    )
