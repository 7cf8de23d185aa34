"""How a role sees a sample: frozen encoders that turn images and prompts into contexts.

Contexts do not depend on the policy, so they are computed upstream of it, once per micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dopsd.config import RunConfig
from dopsd.process import set_up
from dopsd.types import Context


@dataclass(frozen=True)
class ContextView:
    """One context as the encoder reads it, for people to check."""

    text: str
    """The templated prompt."""
    tokens: int
    """Tokens of the whole text, before any cut."""
    limit: int
    """Tokens that are kept."""

    @property
    def truncated(self) -> bool:
        return self.tokens > self.limit


class ContextEncoder(Protocol):
    """Encodes a micro-batch for both roles."""

    def encode(self, images: list[np.ndarray], prompts: list[str]) -> tuple[Context, Context]:
        """(student's context, teacher's context) of B images uint8 [H, W, 3] and B prompts."""
        ...

    def encode_text(self, prompts: list[str]) -> Context:
        """The student's context of B prompts."""
        ...

    def views(
        self, images: list[np.ndarray], prompts: list[str]
    ) -> list[tuple[ContextView, ContextView]]:
        """(student's, teacher's) text and tokens of each sample; nothing is computed."""
        ...


class EncoderFactory:
    """Builds the encoder that ``config`` asks for; picklable, called once in each actor."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config = config
        self.device = device

    def __call__(self) -> ContextEncoder:
        from dopsd.contexts.vlm import VlmEncoder

        set_up(self.device)
        return VlmEncoder.from_config(self.config, self.device)


__all__ = ["ContextEncoder", "ContextView", "EncoderFactory"]
