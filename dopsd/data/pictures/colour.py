"""Colour profiles: pixels of whatever colour space as sRGB, which the bases were trained on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

Space = Literal["RGB", "L", "CMYK"]
_SPACES: dict[str, Space] = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""What a profile calls its space -> the mode of the pixels that it takes."""
_SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and still be one: rounding, and curves that
are written as few numbers. Such pixels stay as they are, to the bit."""


@dataclass(frozen=True)
class Profile:
    """A colour profile that can be read."""

    space: Space
    transform: ImageCms.ImageCmsTransform | None
    """To sRGB; None where the space is that already."""

    def rgb(self, image: Image.Image) -> Image.Image:
        """An image in mode ``space`` as sRGB."""
        if self.transform is None:
            return image.convert("RGB")
        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None, "it is not asked for in place"
        return converted


@lru_cache(maxsize=64)
def read_profile(data: bytes) -> Profile | None:
    """The profile in the bytes of a picture; None for one that is broken or of another space."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = _SPACES.get(profile.profile.xcolor_space.strip())
        if space is None:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            space,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return Profile(space, None if _is_srgb(space, transform) else transform)


def _is_srgb(space: Space, transform: ImageCms.ImageCmsTransform) -> bool:
    if space == "CMYK":
        return False
    if space == "L":
        grays = np.arange(256, dtype=np.uint8)[None]
        before, sample = np.stack([grays] * 3, axis=-1), Image.fromarray(grays)
    else:
        levels = np.linspace(0, 255, 17).astype(np.uint8)
        before = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, -1, 3)
        sample = Image.fromarray(before)
    converted = ImageCms.applyTransform(sample, transform)
    after = np.asarray(converted).astype(int)
    return bool(np.abs(after - before).max() <= _SAME)
