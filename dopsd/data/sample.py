"""A prepared sample as contexts and drawings see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    @property
    def target(self) -> np.ndarray:
        """The target, where it was asked for."""
        assert self.image is not None, "the stream was not asked for images"
        return self.image
