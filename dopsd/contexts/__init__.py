"""How a role sees a sample: frozen encoders that turn images and prompts into contexts.

Contexts do not depend on the policy, so they are computed upstream of it, once per micro-batch.
Each context is one file with one encoder class; ``context.name`` chooses it, and
``config.context.CONTEXT_NEEDS`` says what of a sample it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from torch import nn

from dopsd.config import RunConfig
from dopsd.data.sample import Sample
from dopsd.models.pretrained import loading_errors
from dopsd.ray_cluster.process import set_up
from dopsd.records import Context


@dataclass(frozen=True)
class ContextView:
    """One context as the encoder reads it, for people to check."""

    text: str
    """The templated prompt."""
    tokens: int
    """Tokens of the whole text, before any cut."""
    limit: int
    """Tokens that are kept."""
    references: int = 0
    """Pictures that it sees as reference tokens."""

    @property
    def truncated(self) -> bool:
        return self.tokens > self.limit


class ContextEncoder(Protocol):
    """Encodes the samples of a micro-batch for both roles."""

    vae: nn.Module | None
    """The family's frozen VAE where the context needs one: nobody then loads a second."""

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context]:
        """(student's context, teacher's context), a row for each sample."""

    def encode_student(self, samples: Sequence[Sample]) -> Context:
        """The student's context alone."""

    def views(self, samples: Sequence[Sample]) -> list[tuple[ContextView, ContextView]]:
        """(student's, teacher's) text and tokens of each sample; nothing is computed."""


CONTEXTS = {
    "vlm": "dopsd.contexts.vlm:VlmEncoder",
    "enhanced_prompt": "dopsd.contexts.enhanced_prompt:EnhancedPromptEncoder",
    "edit": "dopsd.contexts.edit:EditEncoder",
    "edit_reference": "dopsd.contexts.edit_reference:EditReferenceEncoder",
}
"""Where each context's encoder is, imported when it is built: ``Class.from_config(config,
device)``."""


def encoder_class(name: str) -> Any:
    """The class behind ``context.name``."""
    module, _, inside = CONTEXTS[name].partition(":")
    return getattr(import_module(module), inside)


@dataclass(frozen=True)
class EncoderFactory:
    """Builds the encoder that ``config`` asks for; picklable, called once in each actor."""

    config: RunConfig
    device: str

    def __call__(self) -> ContextEncoder:
        set_up(self.device, self.config.run.determinism)
        encoder = encoder_class(self.config.context.name)
        with loading_errors(self.config.model.base):
            built: ContextEncoder = encoder.from_config(self.config, self.device)
        return built
