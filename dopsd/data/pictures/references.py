"""Reference pictures of a sample: any number, any sizes, kept in the order they were given."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from dopsd.data.manifest import Manifest
from dopsd.errors import DataError

MAX_REFERENCES = 8
"""Reference pictures of a sample."""


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """``image``, scaled down (Lanczos) when it has more than ``max_pixels``; its aspect stays."""
    if image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def sized(image: Image.Image, max_pixels: int, multiple: int) -> np.ndarray:
    """A reference as a model takes it: uint8 [H, W, 3], both sides multiples of ``multiple``.

    The stock FLUX.2 pipeline's own rule, so that training sees what inference will: scaled down
    to ``max_pixels`` when larger, never up, then cut around the centre.
    """
    image = shrunk(image, max_pixels)
    width, height = (max(multiple, side // multiple * multiple) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def check_references(manifest: Manifest) -> None:
    """Refuse data without reference pictures where the context shows them to both roles.

    Raises DataError when a sample has none.
    """
    if without := manifest.without_references:
        raise DataError(
            f"context.name: edit_reference, but {without} of {manifest.samples} samples have no "
            "reference pictures; give every row `references` (docs/contexts.md)"
        )
