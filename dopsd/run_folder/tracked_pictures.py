"""A picture on its way to the trackers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class TrackedPicture:
    """What the student draws for an own prompt after ``version`` optimizer steps."""

    version: int
    number: int
    """Of the prompt, from 0."""
    prompt: str
    png: bytes

    @property
    def name(self) -> str:
        """Under which its trackers show it, at every version."""
        return f"prompts/{self.number:02d}"

    @property
    def pixels(self) -> Any:
        """uint8 [H, W, 3]."""
        return np.asarray(Image.open(io.BytesIO(self.png)).convert("RGB"))
