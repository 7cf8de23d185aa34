"""Pictures and their processing at the size of the tiny encoders."""

from __future__ import annotations

from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.helpers.tiny import random_image

SIDE = 28


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    return Image.fromarray(random_image(height, width, seed))


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
