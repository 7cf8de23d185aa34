"""What a metric is: an ``ImageDistance`` between pictures, or any ``Metric`` of one picture.

A new metric is a class here and one line in ``metrics/__init__.py``. Models are loaded by
``load``, never at import, so that a process that measures nothing pays nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image


@dataclass(frozen=True)
class Column:
    """One number that a metric says of a picture. ``rate``: every value is 0 or 1."""

    meaning: str
    higher_is_better: bool = True
    rate: bool = False


@dataclass(frozen=True)
class MetricInput:
    """A picture and what it is held against.

    ``targets``: RGB pictures that show what it should resemble, of any size. ``expected`` and
    ``concept``: for the shapes world, the value of each attribute that the prompt names, and which
    attribute is the concept.
    """

    image: Image.Image
    prompt: str = ""
    targets: tuple[Image.Image, ...] = ()
    expected: Mapping[str, str] = field(default_factory=dict)
    concept: str | None = None


class Metric(ABC):
    """Numbers of single pictures.

    ``model``: local folder or hub id of the weights, "" for a metric without any. Cheap to
    construct; ``load`` fetches the weights and raises MissingWeights when they are not available.
    """

    name: ClassVar[str]
    columns: ClassVar[dict[str, Column]]
    default_model: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Raised when the same picture would get another number: older scores are then made anew."""

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        self.model = model or self.default_model
        self.device = device

    def check(self) -> None:  # noqa: B027 (a metric without weights has none to check)
        """Raise MissingWeights when it is plain, without loading, that ``load`` would fail."""

    def load(self) -> None:  # noqa: B027
        """Load the weights, if any, onto ``device``. Raises MissingWeights."""

    @abstractmethod
    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        """The columns of every picture; one that does not apply (no target) is left out."""


class ImageDistance(Metric):
    """A metric that compares two pictures; its one column is the mean over a picture's targets."""

    @abstractmethod
    def distance(
        self, images: Sequence[Image.Image], targets: Sequence[Image.Image]
    ) -> list[float]:
        """Distance of each RGB image to the target in the same place: 0 for equal ones, larger
        for more different ones. Images may be of different sizes."""

    def column_value(self, distance: float) -> float:
        """What the column shows of a distance: a similarity turns it around."""
        return distance

    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        pairs = [(entry.image, target) for entry in inputs for target in entry.targets]
        distances = iter(
            self.distance([a for a, _ in pairs], [b for _, b in pairs]) if pairs else []
        )
        (column,) = self.columns
        values: list[dict[str, float]] = []
        for entry in inputs:
            near = [self.column_value(next(distances)) for _ in entry.targets]
            values.append({column: sum(near) / len(near)} if near else {})
        return values
