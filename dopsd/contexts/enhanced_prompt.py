"""The `enhanced_prompt` context: the student reads a short caption, the teacher a detailed one.

Text alone: the base pipeline's own text encoder reads both, and no VLM or VAE is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.config import RunConfig
from dopsd.contexts import ContextView
from dopsd.contexts.text import TextEncoder
from dopsd.data.sample import Sample
from dopsd.records import Context


class EnhancedPromptEncoder:
    """Text features of both captions of each sample."""

    vae = None

    def __init__(self, text: TextEncoder) -> None:
        self.text = text

    @classmethod
    def from_config(cls, config: RunConfig, device: str) -> EnhancedPromptEncoder:
        return cls(TextEncoder.from_config(config, device))

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context]:
        detailed = [_detailed(sample) for sample in samples]
        return self.encode_student(samples), self.text.encode(detailed)

    def encode_student(self, samples: Sequence[Sample]) -> Context:
        return self.text.encode([sample.prompt for sample in samples])

    def views(self, samples: Sequence[Sample]) -> list[tuple[ContextView, ContextView]]:
        return [(self.text.view(s.prompt), self.text.view(_detailed(s))) for s in samples]


def _detailed(sample: Sample) -> str:
    assert sample.teacher_prompt is not None, "the stream draws pairs for this context"
    return sample.teacher_prompt
