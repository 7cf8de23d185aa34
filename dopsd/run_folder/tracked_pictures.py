"""A picture on its way to the trackers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dopsd.errors import DopsdError
from dopsd.files import storage


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


@dataclass(frozen=True)
class StoredPicture:
    """One that was drawn before, by where it is: there may be thousands."""

    version: int
    number: int
    prompt: str
    path: str


def loaded(pictures: Sequence[StoredPicture]) -> Iterator[TrackedPicture]:
    """Those that can be read, one after the other: for one that cannot, no tracker is given up."""
    for each in pictures:
        try:
            png = storage.read_bytes(each.path)
        except (OSError, DopsdError):
            continue
        yield TrackedPicture(each.version, each.number, each.prompt, png)
