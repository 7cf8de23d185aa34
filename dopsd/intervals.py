"""Means with 95% intervals: Wilson for rates, the percentile bootstrap for the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """A measured mean with its 95% interval (Wilson for rates, bootstrap otherwise).

    An end of a ratio's interval may be infinite; in JSON that is null.
    """

    value: float
    low: float
    high: float

    @classmethod
    def read(cls, record: dict[str, float | None]) -> Value:
        """What :func:`as_json` made of a value."""
        return cls(**{end: math.inf if v is None else v for end, v in record.items()})

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def as_json(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, with null for each number that JSON has no word for."""

    def finite(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields
        }

    return asdict(record, dict_factory=finite)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; nan for nothing."""
    return sum(values) / len(values) if values else math.nan


def wilson(hits: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (95% by default); ``hits`` may be a sum of rates."""
    if count == 0:
        return 0.0, 1.0
    rate = hits / count
    scale = 1 + z * z / count
    centre = (rate + z * z / (2 * count)) / scale
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / scale
    # Rounding can put an end of the interval a hair inside the observed rate.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def bootstrap(
    values: Sequence[T],
    statistic: Callable[[Sequence[T]], float] = mean,  # type: ignore[assignment]
    seed: int = 0,
    rounds: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of ``values``, by default their mean."""
    rng = random.Random(seed)
    drawn = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(rounds))
    tail = (1 - level) / 2
    return drawn[int(tail * rounds)], drawn[min(rounds - 1, int((1 - tail) * rounds))]


def nested_bootstrap(
    groups: Sequence[Sequence[Sequence[float]]],
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    rounds: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of means, drawn on two levels: groups, and then
    the rows of each. Rows of one group are not independent; with a handful of groups the second
    level offsets what the first one alone would understate.

    ``groups``: of each its rows of D numbers. ``statistic``: from the means over all drawn rows,
    [rounds, D], to a number for each round.
    """
    rows = np.array([row for group in groups for row in group], dtype=np.float64)
    sizes = np.array([len(group) for group in groups])
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    means = np.empty((rounds, rows.shape[1]))
    for number in range(rounds):
        drawn = rng.integers(len(groups), size=len(groups))
        counts = sizes[drawn]
        # Each drawn group gives as many rows as it has.
        picked = np.repeat(starts[drawn], counts)
        picked += rng.integers(np.repeat(counts, counts))
        means[number] = rows[picked].mean(0)
    tail = (1 - level) / 2
    # Quantiles that are values of the sample: interpolation would make nan of two infinities.
    low, high = np.quantile(statistic(means), [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def ratio_of_means(means: np.ndarray) -> np.ndarray:
    """For :func:`nested_bootstrap`: the first mean by the second, infinite by a zero."""
    return divided(means[:, 0], means[:, 1])


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise; infinite where there is nothing to divide by, be it 0 or itself infinite."""
    divides = (below != 0) & np.isfinite(below)
    return np.divide(above, below, out=np.full_like(above, np.inf), where=divides)


def clustered_wilson(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95% interval of a proportion whose draws (0, 1, or 0.5 for a tie) come in groups.

    Wilson's, for the number of draws divided by the design effect of Rao and Scott (1992): the
    variance of the pooled proportion between groups over that of as many independent draws; never
    for more than all draws, nor for fewer than there are groups. One group says nothing of others:
    its interval is about its own draws.
    """
    count = sum(map(len, groups))
    rate = sum(map(sum, groups)) / count
    effect = 1.0
    if len(groups) > 1 and 0 < rate < 1:
        spread = sum((sum(group) - rate * len(group)) ** 2 for group in groups)
        between = spread * len(groups) / (len(groups) - 1) / count**2
        effect = min(max(between / (rate * (1 - rate) / count), 1.0), count / len(groups))
    return wilson(rate * count / effect, count / effect)
