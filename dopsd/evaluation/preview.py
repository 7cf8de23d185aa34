"""The contact sheet of a run: target | base | student | teacher, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.contexts import EncoderFactory
from dopsd.evaluation.generate import png_bytes
from dopsd.method.noise import batch_noise
from dopsd.models import FAMILIES
from dopsd.models.base import DTYPES
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.report.sheet import contact_sheet

TITLES = ("target", "base", "student", "teacher (sees target)")
_PREVIEW_STEP = -1
"""Stands for the optimizer step in the noise's counter: never a training step's noise."""


@dataclass
class PreviewSample:
    """A prepared training sample: ``image`` uint8 [H, W, 3]."""

    sample_id: str
    prompt: str
    image: np.ndarray


def draw_sheet(
    config: RunConfig,
    samples: list[PreviewSample],
    student: bytes,
    teacher: bytes,
    device: str,
) -> bytes:
    """PNG of the contact sheet. ``student`` and ``teacher``: exported LoRA files.

    The stock pipeline draws, and loads the LoRA as any user would. Base and student read the
    prompt, the teacher sees [target, prompt].
    """
    from safetensors.torch import load

    dtype = DTYPES[config.model.dtype]
    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    encoder = EncoderFactory(config, device)()
    contexts = [encoder.encode([sample.image], [sample.prompt]) for sample in samples]
    del encoder
    pipeline = family.load_pipeline(dtype, device, text_encoder=False)
    pipeline.load_lora_weights(load(student), adapter_name=STUDENT)
    pipeline.load_lora_weights(load(teacher), adapter_name=TEACHER)
    steps = config.preview.steps or config.method.steps

    def draw(index: int, role: str) -> Image.Image:
        height, width = samples[index].image.shape[:2]
        shape = family.latent_shape(height, width)
        noise = batch_noise(config.run.seed, _PREVIEW_STEP, (samples[index].sample_id,), shape)
        if role == "base":
            pipeline.disable_lora()
        else:
            pipeline.enable_lora()
            pipeline.set_adapters(role)
        context = contexts[index][1 if role == TEACHER else 0].to(device, dtype)
        with torch.no_grad():
            image: Any = family.draw(pipeline, context, noise.to(device), steps, height, width)
        picture: Image.Image = image[0]
        return picture

    rows = [
        [Image.fromarray(sample.image), *(draw(i, role) for role in ("base", STUDENT, TEACHER))]
        for i, sample in enumerate(samples)
    ]
    sheet = contact_sheet(TITLES, rows, [sample.prompt for sample in samples])
    return png_bytes(sheet)
