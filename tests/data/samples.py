"""Small sources for the tests of this folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SMALL = {"pixel_area": 1024, "bucket_multiple": 4}
"""Settings under which a 32x32 picture is a bucket of its own."""


def picture(number: int, width: int = 32, height: int = 32) -> Image.Image:
    """RGB noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def write_folder(
    folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((32, 32),)
) -> Path:
    """``count`` pictures with captions; the sizes take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, *sizes[number % len(sizes)]).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    """One line per row; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
