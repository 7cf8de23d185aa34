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
        load_lora(pipeline, lora, storage.read_bytes(lora), "lora")
    for number, prompt in enumerate(prompts):
        generator = torch.Generator("cpu").manual_seed(seed + number)
        yield sample(pipeline, [prompt], steps, height, width, generator=generator)[0]


def sample(
    pipeline: Any, prompts: list[str], steps: int, height: int, width: int, **noise: Any
) -> list[Image.Image]:
    """The stock few-step sampler, guidance off. ``noise``: a ``generator``, or ``latents``
    [B, C, h, w] float32."""
    # The pipeline rewrites the list that it is given, so it gets a copy.
    images: list[Image.Image] = pipeline(
        prompt=list(prompts),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=0.0,
        **noise,
    ).images
    return images


def load_lora(pipeline: Any, path: str, payload: bytes, adapter: str) -> None:
    """Load a LoRA file's bytes under the name ``adapter``; ``path`` names it to the user.

    Raises ModelError when the file is no LoRA, or when nothing of it fits the pipeline.
    """
    try:
        pipeline.load_lora_weights(load(payload), adapter_name=adapter)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: no LoRA that loads ({str(error).splitlines()[0]})") from None
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ModelError(f"{path}: its weights have other shapes than the base's layers") from None
    if not any(adapter in names for names in pipeline.get_list_adapters().values()):
        raise ModelError(f"{path}: none of its keys fits the base, so it would change nothing")


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
