"""The learning rate of each row: the best of three, by what it gives on a seed of its own.

Every row of every concept gets the same tries, so none is tuned less than another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dopsd.experiments.reproduce.variants import Trial, Variant


@dataclass(frozen=True)
class Tried:
    """What a rate gave: the share of pictures that show the concept, and of the base's score and
    grain on prior prompts what is kept."""

    lr: float
    concept: float
    kept: float
    contrast: float

    @property
    def score(self) -> float:
        """What a user wants all at once; more than the base has counts as what the base has."""
        return self.concept * self.preserved

    @property
    def preserved(self) -> float:
        """Of what the base could do."""
        return min(self.kept, 1.0) * min(self.contrast, 1.0)


Choices = Mapping[tuple[str, str], Sequence[Tried]]
"""By name of the row and concept, every rate that was tried."""


def chosen(tried: Sequence[Tried]) -> float:
    """The rate of the best score; of equal ones, the one that preserves more."""
    return max(tried, key=lambda each: (each.score, each.preserved)).lr


def candidates(
    variants: Sequence[Variant], concepts: Sequence[str], rates: Sequence[float], seed: int
) -> list[Trial]:
    """The trials among which rates are chosen."""
    return [
        Trial(variant, concept, seed, rate * variant.rate)
        for concept in concepts
        for variant in variants
        for rate in rates
    ]


def tried(trials: Sequence[Trial], measure: Callable[[Trial], Tried]) -> Choices:
    """What ``measure`` says of each, by row and concept."""
    found: dict[tuple[str, str], list[Tried]] = {}
    for trial in trials:
        found.setdefault((trial.variant.name, trial.concept), []).append(measure(trial))
    return found
