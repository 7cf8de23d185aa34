"""What the stream makes of a micro-batch: contexts, and latents where an objective trains on them.

Preview and evaluation use the context encoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, EncoderFactory
from dopsd.data.sample import Sample
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES, Family
from dopsd.records import Context, EncodedSample, join_samples


class TrainingEncoder:
    """The frozen encoders of an objective: ``vae`` is None where no latents are needed.

    Each sample passes through them by itself. Batched kernels round otherwise for another number
    of rows or another padding; so a sample has the same bits in every micro-batch, and in the
    context cache.
    """

    def __init__(
        self, contexts: ContextEncoder, family: Family, vae: nn.Module | None, has_teacher: bool
    ) -> None:
        self.contexts, self.family, self.vae = contexts, family, vae
        self.has_teacher = has_teacher

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context | None, Tensor | None]:
        """(student's context, teacher's context, latents [B, C, h, w] float32 on the CPU)."""
        return join_samples([self.encode_sample(sample) for sample in samples])

    def encode_class(self, samples: Sequence[Sample]) -> Context:
        """The student's context of the class prompts, the same way."""
        kept = [replace(sample, prompt=sample.class_prompt or "") for sample in samples]
        return Context.joined([self.contexts.encode_student([sample]) for sample in kept])

    def encode_sample(self, sample: Sample) -> EncodedSample:
        """The same of one sample."""
        target = None
        if self.vae is not None:
            target = self.family.encode_images(self.vae, [sample.target]).cpu()
        if self.has_teacher:
            return EncodedSample(*self.contexts.encode([sample]), target)
        return EncodedSample(self.contexts.encode_student([sample]), None, target)


@dataclass(frozen=True)
class TrainingEncoderFactory:
    """Builds the encoders that ``config`` asks for; picklable, called once in each actor."""

    config: RunConfig
    device: str

    def __call__(self) -> TrainingEncoder:
        contexts = EncoderFactory(self.config, self.device)()
        model, method = self.config.model, self.config.method
        family = FAMILIES[model.family](model.base, model.revision)
        vae = None
        if method.needs_targets:
            vae = contexts.vae or family.load_vae(DTYPES[model.dtype], self.device)
        return TrainingEncoder(contexts, family, vae, method.objective != "sft")
