"""What the stream makes of a micro-batch: contexts, and latents where an objective trains on them.

Preview and evaluation use the context encoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, EncoderFactory
from dopsd.data.sample import Sample
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

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context | None, Tensor | None]:
        """(student's context, teacher's context, latents [B, C, h, w] float32 on the CPU)."""
        target = None
        if self.vae is not None:
            targets = [sample.target for sample in samples]
            target = self.family.encode_images(self.vae, targets).cpu()
        if self.has_teacher:
            return *self.contexts.encode(samples), target
        return self.contexts.encode_student(samples), None, target


class TrainingEncoderFactory:
    """Builds the encoders that ``config`` asks for; picklable, called once in each actor."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config, self.device = config, device

    def __call__(self) -> TrainingEncoder:
        contexts = EncoderFactory(self.config, self.device)()
        model, method = self.config.model, self.config.method
        family = FAMILIES[model.family](model.base, model.revision)
        vae = None
        if method.needs_targets:
            vae = contexts.vae or family.load_vae(DTYPES[model.dtype], self.device)
        return TrainingEncoder(contexts, family, vae, method.objective != "sft")
