"""The pictures of an evaluation: which there are, and where each lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dopsd import storage
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.spec import EvaluatedModel


@dataclass(frozen=True)
class ImageEntry:
    """One picture of a set: its prompt, its seed and its file name."""

    prompt: EvalPrompt
    seed: int
    name: str


@dataclass
class ImageSet:
    """The pictures of one model at one number of steps, in one folder of their own."""

    model: EvaluatedModel
    steps: int
    folder: str
    images: list[ImageEntry]
    existing: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.folder.rsplit("/", 1)[-1]

    def path(self, image: ImageEntry) -> str:
        return storage.join(self.folder, image.name)

    def chunks(self, size: int) -> Iterator[list[ImageEntry]]:
        """Always cut alike, so that a resumed evaluation draws in the same batches."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]
