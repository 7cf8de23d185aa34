"""What the stream makes of a micro-batch: contexts, and latents where an objective trains on them.

Preview and evaluation use the context encoder alone.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, EncoderFactory
from dopsd.models import FAMILIES
from dopsd.models.base import DTYPES, Family
from dopsd.types import Context


class TrainingEncoder:
    """The frozen encoders of an objective: ``vae`` is None where no latents are needed."""

    def __init__(
        self, contexts: ContextEncoder, family: Family, vae: nn.Module | None, has_teacher: bool
    ) -> None:
        self.contexts, self.family, self.vae = contexts, family, vae
        self.has_teacher = has_teacher

    def encode(
        self, images: list[np.ndarray], prompts: list[str]
    ) -> tuple[Context, Context | None, Tensor | None]:
        """(student's context, teacher's context, latents [B, C, h, w] float32 on the CPU)."""
        target = None if self.vae is None else self.family.encode_images(self.vae, images).cpu()
        if self.has_teacher:
            return *self.contexts.encode(images, prompts), target
        return self.contexts.encode_text(prompts), None, target


class TrainingEncoderFactory:
    """Builds the encoders that ``config`` asks for; picklable, called once in each actor."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config, self.device = config, device

    def __call__(self) -> TrainingEncoder:
        contexts = EncoderFactory(self.config, self.device)()
        model, method = self.config.model, self.config.method
        family = FAMILIES[model.family](model.base, model.revision)
        vae = family.load_vae(DTYPES[model.dtype], self.device) if method.needs_targets else None
        return TrainingEncoder(contexts, family, vae, method.objective != "sft")
