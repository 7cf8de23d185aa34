"""Two models picture by picture, from the same noise: how often one is better than the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dopsd.evaluation.image_scores import ImageScores, by_noise
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.spec import BASE
from dopsd.intervals import Value, clustered_wilson, mean

Outcome = Literal["better", "worse", "no_difference_shown"]
_ALL_PAIRS = 4
"""Models of which each is compared with each; more of them are compared with the base alone."""

Cells = Mapping[tuple[str, int, str], Sequence[ImageScores]]
"""Scores by (model, steps, group of prompts)."""


@dataclass(frozen=True)
class Comparison:
    """A column of two models on the same prompts and noise.

    ``rate``: the share of pictures in which ``model`` has the better value, a tie as half of one;
    0.5 is no difference. Its interval is Wilson's, for fewer pictures where the noises of a prompt
    agree with each other more than chance would have it. ``difference``: mean of model minus other.
    """

    model: str
    against: str
    steps: int
    group: str
    column: str
    prompts: int
    pictures: int
    ties: int
    rate: Value
    difference: float
    outcome: Outcome


def compare(cells: Cells, models: Sequence[str], columns: Mapping[str, Column]) -> list[Comparison]:
    """Every model against those before it, or against the base alone where there are many."""
    comparisons = []
    for model, steps, group in cells:
        before = models[: models.index(model)]
        for other in before if len(models) <= _ALL_PAIRS else [BASE][: len(before)]:
            mark = cells.get((other, steps, group), ())
            for name, column in columns.items():
                pairs = by_noise([cells[model, steps, group], mark], name)
                if sum(map(len, pairs.values())) > 1:
                    found = _compare(list(pairs.values()), column.higher_is_better)
                    comparisons.append(Comparison(model, other, steps, group, name, *found))
    return comparisons


def _compare(
    prompts: Sequence[Sequence[tuple[float, ...]]], higher_is_better: bool
) -> tuple[int, int, int, Value, float, Outcome]:
    """The fields of a Comparison from ``prompts`` on; of each prompt its pairs, one a noise."""
    sign = 1 if higher_is_better else -1
    wins = [[_win(sign * (ours - theirs)) for ours, theirs in pairs] for pairs in prompts]
    pooled = [win for prompt in wins for win in prompt]
    low, high = clustered_wilson(wins)
    outcome: Outcome = "better" if low > 0.5 else "worse" if high < 0.5 else "no_difference_shown"
    return (
        len(prompts),
        len(pooled),
        pooled.count(0.5),
        Value(mean(pooled), low, high),
        mean([ours - theirs for pairs in prompts for ours, theirs in pairs]),
        outcome,
    )


def _win(gain: float) -> float:
    return 0.5 if gain == 0 else float(gain > 0)
