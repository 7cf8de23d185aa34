"""Masks: which parts of a picture count in the loss. White does, black does not, gray in part."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dopsd.data.pictures.buckets import Bucket, fit
from dopsd.data.pictures.images import BadImage, Decoded
from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from dopsd.config import RunConfig
    from dopsd.data.manifest import Manifest


def fitted_mask(mask: Decoded, size: tuple[int, int], bucket: Bucket) -> Image.Image:
    """The mask of a picture of ``size``, scaled and cut as the picture is: 8-bit gray.

    Raises BadImage for one of another size, for one that is transparent (which of its pixels count
    nobody can say), and where nothing of what the bucket keeps would count.
    """
    if mask.image.size != size:
        found, wanted = (f"{width}x{height}" for width, height in (mask.image.size, size))
        raise BadImage(f"{found} pixels, allowed: {wanted} as its picture")
    if mask.transparent:
        raise BadImage("transparent, allowed: white where the loss counts, black elsewhere")
    gray = fit(mask.image.convert("L"), bucket)
    if gray.getextrema()[1] == 0:
        raise BadImage(f"all black in what {bucket} keeps, so that nothing would count")
    return gray


def decode_mask(png: bytes) -> np.ndarray:
    """PNG of a shard to uint8 [H, W]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"))


def check_masks(config: RunConfig, manifest: Manifest) -> None:
    """Refuse masks where nothing lies in the places that they name. Raises ConfigError.

    States made of the targets are laid out as they are, and so is what a teacher under an editing
    context draws; a rollout from noise under any other context puts things where it likes.
    """
    aligned = config.method.needs_targets or config.context.name in ("edit", "edit_reference")
    if config.data.masks and manifest.masks and not aligned:
        raise ConfigError(
            f"data.masks: {manifest.masks} of {manifest.samples} samples have a mask, but under "
            f"method.objective={config.method.objective}, context.name={config.context.name} "
            "pictures are not laid out as their targets; allowed: data.masks=false, an edit "
            "context, sft, or off_policy on noised states"
        )
