"""Contact sheets of tiny pictures, as PNG."""

from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from dopsd.shapes.world import show


def to_image(image: Tensor) -> Image.Image:
    """Turn [3, H, W] in [0, 1] into an RGB image of 8 bits."""
    values = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def from_image(image: Image.Image) -> Tensor:
    """Turn an image into [3, H, W] float32 in [0, 1]."""
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def grid_png(images: Tensor, columns: int = 12, factor: int = 2) -> bytes:
    """[N, 3, H, W] pictures in rows of ``columns``, enlarged by a whole ``factor``, as a PNG."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    gap = 2
    cell_h, cell_w = height * factor + gap, width * factor + gap
    sheet = torch.ones(3, rows * cell_h, columns * cell_w)
    for index, image in enumerate(show(images.float(), factor)):
        top, left = index // columns * cell_h, index % columns * cell_w
        sheet[:, top : top + cell_h - gap, left : left + cell_w - gap] = image
    buffer = BytesIO()
    to_image(sheet).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
