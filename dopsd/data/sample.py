"""A prepared sample as contexts and drawings see it, and what turns samples into contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # readers import this module, and start twice as fast without torch
    from torch import Tensor

    from dopsd.records import Context


@dataclass(frozen=True)
class Sample:
    """One sample of a micro-batch. Pixels are uint8 [H, W, 3]."""

    sample_id: str
    prompt: str
    """The caption drawn for it: what the student reads."""
    image: np.ndarray | None
    """The target; None where nothing looks at it."""
    references: tuple[np.ndarray, ...] = ()
    """Its own reference pictures in order, of any sizes; empty where the context takes none."""
    teacher_prompt: str | None = None
    """The caption that only the teacher reads; None where both read the same."""
    class_prompt: str | None = None
    """``prompt`` with the class word for the token, or as it is where there is nothing to preserve
    of it; None in a run that preserves nothing."""
    pictured: bool = True
    """False where ``image`` stands in for a picture that the sample does not have."""

    @property
    def target(self) -> np.ndarray:
        """The target, where it was asked for."""
        assert self.image is not None, "the stream was not asked for images"
        return self.image


class Encoder(Protocol):
    """The frozen encoders of an objective."""

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context | None, Tensor | None]:
        """Contexts of student and teacher, and latents, of B samples; teacher and latents are None
        where the objective has no use for them. A sample's do not depend on the others."""
        ...

    def encode_class(self, samples: Sequence[Sample]) -> Context:
        """The student's context of the samples' class prompts, the same way."""
        ...


EncoderFactory = Callable[[], Encoder]
"""Loads the encoders; called once in each actor of the pool. Must be picklable."""
