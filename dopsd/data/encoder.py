"""What turns decoded samples into contexts, as the stream knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dopsd.data.sample import Sample
from dopsd.records import Context


class Encoder(Protocol):
    """The frozen encoders of an objective."""

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context | None, Tensor | None]:
        """Contexts of student and teacher, and latents, of B samples; teacher and latents are None
        where the objective has no use for them. A sample's do not depend on the others."""
        ...


EncoderFactory = Callable[[], Encoder]
"""Loads the encoders; called once in each actor of the pool. Must be picklable."""
