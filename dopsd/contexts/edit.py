"""The `edit` context: the student reads the prompt, the teacher also edits from the target.

The teacher takes the model's editing branch: the target's latents as reference tokens, and the
prompt followed by an instruction sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.contexts import ContextView
from dopsd.contexts.text import TextEncoder
from dopsd.data.sample import Sample
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES, Family
from dopsd.records import Context

References = Sequence[Sequence[Tensor]]
"""Of each sample the latents [C, h, w] of its references, in order."""


class EditEncoder:
    """Text features and reference tokens, from the pipeline's own text encoder and VAE.

    ``instruction``: what follows the teacher's prompt, on a line of its own.
    """

    default_instruction: ClassVar[str] = (
        "Draw what the reference picture shows: the same subject in the same style."
    )

    def __init__(
        self, text: TextEncoder, family: Family, vae: nn.Module, instruction: str | None = None
    ) -> None:
        assert family.takes_references, "checked by the config"
        self.text, self.family, self.vae = text, family, vae
        self.instruction = self.default_instruction if instruction is None else instruction

    @classmethod
    def from_config(cls, config: RunConfig, device: str) -> EditEncoder:
        """Load text encoder and VAE of the base pipeline."""
        model = config.model
        family = FAMILIES[model.family](model.base, model.revision)
        vae = family.load_vae(DTYPES[model.dtype], device)
        text = TextEncoder.from_config(config, device)
        return cls(text, family, vae, config.context.instruction)

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context]:
        """(student's, teacher's context) of B samples, whose images are there.

        Text features as ``TextEncoder.encode`` makes them; beside them the reference tokens of
        ``Family.reference_tokens``. Every picture is encoded by itself, so that its latents do not
        depend on what else is in the micro-batch.
        """
        visible = self._latents([self._visible(sample) for sample in samples])
        targets = self._latents([[sample.target] for sample in samples])
        student = self._context([sample.prompt for sample in samples], visible)
        instructed = [self._instructed(sample) for sample in samples]
        teacher = [[*first, *last] for first, last in zip(visible, targets)]
        return student, self._context(instructed, teacher)

    def encode_student(self, samples: Sequence[Sample]) -> Context:
        visible = self._latents([self._visible(sample) for sample in samples])
        return self._context([sample.prompt for sample in samples], visible)

    def views(self, samples: Sequence[Sample]) -> list[tuple[ContextView, ContextView]]:
        views = []
        for sample in samples:
            count = len(self._visible(sample))
            student = replace(self.text.view(sample.prompt), references=count)
            teacher = replace(self.text.view(self._instructed(sample)), references=count + 1)
            views.append((student, teacher))
        return views

    def _visible(self, sample: Sample) -> Sequence[np.ndarray]:
        """The reference pictures that both roles see."""
        return ()

    def _instructed(self, sample: Sample) -> str:
        return "\n".join(filter(None, (sample.prompt, self.instruction)))

    def _latents(self, references: Sequence[Sequence[np.ndarray]]) -> References:
        return [
            [self.family.encode_images(self.vae, [image])[0] for image in images]
            for images in references
        ]

    def _context(self, texts: list[str], references: References) -> Context:
        tensors = self.text.encode(texts).tensors
        if any(references):
            tensors = {**tensors, **self.family.reference_tokens(references)}
        return Context(tensors)
