"""The contact sheet of a run: target | base | student | teacher, from the same noise."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import EncoderFactory
from dopsd.data.sample import Sample
from dopsd.evaluation.generate import png_bytes
from dopsd.method.noise import batch_noise
from dopsd.models import FAMILIES
from dopsd.models.base import DTYPES
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.report.sheet import contact_sheet
from dopsd.types import Context

TITLES = ("target", "base", "student")
PREVIEW_STEP = -1
"""Stands for the optimizer step in the noise's counter: never a training step's noise."""


class Drawer:
    """The stock pipeline with the contexts of a few samples: draws them under any adapters.

    ``samples`` hold their images. Base and student draw under the student's context.
    """

    def __init__(self, config: RunConfig, samples: list[Sample], device: str) -> None:
        self.config, self.samples, self.device = config, samples, device
        self.dtype = DTYPES[config.model.dtype]
        self.family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        encoder = EncoderFactory(config, device)()
        self.contexts = [encoder.encode([sample]) for sample in samples]
        """(student's, teacher's) of each sample."""
        del encoder
        self.pipeline = self.family.load_pipeline(
            self.dtype, device, text_encoder=False, attention=config.model.attention
        )

    def load(self, student: bytes, teacher: bytes) -> None:
        """Take exported LoRA files, in place of earlier ones, as any user would."""
        from safetensors.torch import load

        if old := self.pipeline.get_list_adapters().get("transformer"):
            self.pipeline.delete_adapters(old)
        for role, payload in ((STUDENT, student), (TEACHER, teacher)):
            self.pipeline.load_lora_weights(load(payload), adapter_name=role)

    def use(self, role: str) -> None:
        """Draw as ``student`` or ``teacher``; as ``base`` (or before any ``load``) without."""
        if not self.pipeline.get_list_adapters():
            return
        if role == "base":
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(role)

    def context(self, index: int, role: str) -> Context:
        """What ``role`` sees of a sample, one row in the pipeline's dtype."""
        return self.contexts[index][1 if role == TEACHER else 0].to(self.device, self.dtype)

    def noise(self, index: int) -> Tensor:
        """The sample's fixed noise, [1, C, h, w] float32: equal for every role and version."""
        sample = self.samples[index]
        shape = self.family.latent_shape(*sample.target.shape[:2])
        noise = batch_noise(self.config.run.seed, PREVIEW_STEP, (sample.sample_id,), shape)
        return noise.to(self.device)

    def draw(self, index: int, role: str) -> Image.Image:
        """The sample's picture by the stock sampler."""
        self.use(role)
        height, width = self.samples[index].target.shape[:2]
        steps = self.config.preview.steps or self.config.method.steps
        context, noise = self.context(index, role), self.noise(index)
        with torch.no_grad():
            images: Any = self.family.draw(self.pipeline, context, noise, steps, height, width)
        picture: Image.Image = images[0]
        return picture

    def sheet(self) -> bytes:
        """PNG of the contact sheet of all samples."""
        rows = [
            [
                Image.fromarray(sample.target),
                *(self.draw(index, role) for role in ("base", STUDENT, TEACHER)),
            ]
            for index, sample in enumerate(self.samples)
        ]
        titles = (*TITLES, f"teacher (sees {self.config.context.needs.teacher_sees})")
        sheet = contact_sheet(titles, rows, [sample.prompt for sample in self.samples])
        return png_bytes(sheet)
