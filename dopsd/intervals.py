"""Means with 95% intervals: Wilson for rates, the percentile bootstrap for the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

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


def wilson(hits: float, count: int, z: float = 1.96) -> tuple[float, float]:
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
