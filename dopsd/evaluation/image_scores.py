"""Scores of single pictures, and how those of two models are paired: by prompt, or by noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dopsd.intervals import mean


@dataclass(frozen=True)
class ImageScores:
    """What every metric said of one picture."""

    model: str
    steps: int
    group: str
    prior: bool
    prompt: str
    seed: int
    values: dict[str, float]


def by_prompt(cell: Sequence[ImageScores], column: str) -> dict[str, float]:
    """Mean over a prompt's seeds: pictures of one prompt are no independent draws."""
    values: dict[str, list[float]] = {}
    for score in cell:
        if column in score.values:
            values.setdefault(score.prompt, []).append(score.values[column])
    return {prompt: mean(scores) for prompt, scores in values.items()}


def by_noise(
    cells: Sequence[Sequence[ImageScores]], column: str
) -> dict[str, list[tuple[float, ...]]]:
    """Of each prompt the values of every cell, once for each seed that all of them have.

    Pictures of one prompt and seed are drawn from the same noise.
    """
    known = [
        {
            (score.group, score.prompt, score.seed): score.values[column]
            for score in cell
            if column in score.values
        }
        for cell in cells
    ]
    paired: dict[str, list[tuple[float, ...]]] = {}
    for key in known[0]:
        if all(key in values for values in known):
            group, prompt, _ = key
            paired.setdefault(f"{group}\n{prompt}", []).append(tuple(v[key] for v in known))
    return paired
