"""`dopsd generate`: pictures from the base, or from the base with a LoRA."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from dopsd import storage
from dopsd.errors import ModelError
from dopsd.models.base import DTYPES, Family


def generate(
    family: Family,
    prompts: list[str],
    lora: str | None,
    steps: int,
    height: int,
    width: int,
    seed: int,
    dtype: str,
    device: str,
) -> Iterator[Image.Image]:
    """One picture per prompt with the stock few-step sampler, guidance off.

    Picture i uses ``torch.Generator`` seed ``seed + i``. Raises ModelError for a missing LoRA, or
    for a size that the family's patches do not allow.
    """
    family.latent_shape(height, width)
    if lora is not None and not storage.exists(lora):
        raise ModelError(f"{lora}: no such LoRA file")
    pipeline = family.load_pipeline(DTYPES[dtype], device)
    if lora is not None:
        _load_lora(pipeline, lora)
    for number, prompt in enumerate(prompts):
        generator = torch.Generator("cpu").manual_seed(seed + number)
        yield pipeline(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=0.0,
            generator=generator,
        ).images[0]


def _load_lora(pipeline: Any, lora: str) -> None:
    """Raises ModelError when the file is no LoRA, or when nothing of it fits the pipeline."""
    try:
        pipeline.load_lora_weights(load(storage.read_bytes(lora)))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{lora}: no LoRA that loads ({str(error).splitlines()[0]})") from None
    if not pipeline.get_list_adapters():
        raise ModelError(f"{lora}: none of its keys fits the base, so it would change nothing")


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
