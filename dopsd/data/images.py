"""Image files to RGB pixels and back, with a reason for each file that cannot be used."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**27
"""Pixels of a picture that is opened at all (134 million): a small file can claim to be huge."""
MAX_BYTES = 2**28
"""Bytes of an image file (256 MiB)."""


class BadImage(Exception):
    """An image that cannot be used; the message is the quarantine reason."""


def decode_image(data: bytes) -> Image.Image:
    """An image file as upright 8-bit RGB: EXIF orientation applied, transparency over white.

    Raises BadImage with the reason.
    """
    if not data:
        raise BadImage("zero bytes")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns and raises at sizes of its choice; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(_too_large(f"{image.width}x{image.height} pixels"))
            image.load()
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large("more pixels than Pillow opens")) from None
    except UnidentifiedImageError:  # its own message holds a memory address
        raise BadImage("broken image: not a format that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise BadImage(f"broken image: {_line(error)}") from None
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except Exception as error:  # e.g. an EXIF block that cannot be parsed
        raise BadImage(f"broken image: {_line(error)}") from None


def encode_png(image: Image.Image) -> bytes:
    """RGB image as PNG bytes; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG of a shard to uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        # A plain copy: no EXIF, no ICC profile, no text of the original travels on.
        return Image.frombytes("RGB", image.size, image.tobytes())
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unsupported image: gray values outside 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("unsupported image: floating-point pixels")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if transparent or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _too_large(what: str) -> str:
    return f"too large: {what}, allowed: {MAX_PIXELS} pixels"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
