"""Pictures that dopsd drew, and how they are known again.

Such a PNG holds the SHA-256 of its own pixels under ``dopsd``: one that was drawn over since, or
that only has the name of one, is somebody else's.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping

from PIL import Image, PngImagePlugin

from dopsd.credentials import redact
from dopsd.data.pictures.images import MAX_BYTES
from dopsd.errors import StorageError
from dopsd.files import storage

_KEY = "dopsd"


def drawn_png(image: Image.Image, said: Mapping[str, str] | None = None) -> bytes:
    """An RGB image as the PNG of a drawn picture; equal pixels give equal bytes. ``said``: texts in
    the file, such as the prompt, without secrets."""
    info = PngImagePlugin.PngInfo()
    info.add_text(_KEY, _digest(image))
    for key, text in (said or {}).items():
        info.add_itxt(key, redact(text))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def is_drawn(path: str) -> bool:
    """Whether the file at ``path``, which exists, is a drawn picture that nobody has changed."""
    if not storage.is_remote(path) and (os.path.islink(path) or not os.path.isfile(path)):
        return False
    if storage.size(path) > MAX_BYTES:
        return False
    try:
        with Image.open(io.BytesIO(storage.read_bytes(path))) as image:
            image.load()
            return image.info.get(_KEY) == _digest(image)
    except (OSError, StorageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _digest(image: Image.Image) -> str:
    pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.size} ".encode() + pixels.tobytes()).hexdigest()
