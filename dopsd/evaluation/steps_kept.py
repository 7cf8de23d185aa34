"""Are few steps as good as they were? Models beside the base at each number of steps.

A model whose few-step ability is gone, as SFT leaves it, is sharp with many steps and blurs with
few; one that merely draws another subject is as sharp, beside the base, with few as with many. So
the ratio to the base is taken at each number of steps, on the same prompts and noise, and then the
ratio of two of these ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dopsd.evaluation.image_scores import ImageScores, by_noise
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.spec import BASE
from dopsd.intervals import Value, divided, nested_bootstrap, ratio_of_means

STEPS = (2, 4, 8, 30)
"""What ``dopsd evaluate --steps-kept`` draws with."""
SHARPNESS = "sharpness"
"""The column that the verdict is about."""
_FEW = 4
"""The number of steps that the verdict is about, where it is drawn; else the smallest one."""
_MARGIN = 0.1
"""A loss of less is none."""

Outcome = Literal["kept", "lost", "blurred", "unclear"]
Prompts = Sequence[Sequence[tuple[float, ...]]]
"""Of each prompt its rows, one a noise: the values that are compared."""


@dataclass(frozen=True)
class Point:
    """A model at a number of steps; ``ratio``: its mean divided by the base's."""

    steps: int
    value: Value
    ratio: Value | None


@dataclass(frozen=True)
class Curve:
    """A column of a model by steps, over the prompts about what the base knows, or all others."""

    model: str
    column: str
    prior: bool
    prompts: int
    points: list[Point]


@dataclass(frozen=True)
class Verdict:
    """Sharpness beside the base's with ``few`` and with ``many`` steps.

    ``trend``: the one ratio divided by the other; 1 says that what sharpness there is does not
    depend on the number of steps more than the base's does.
    """

    model: str
    prior: bool
    prompts: int
    few: int
    many: int
    at_few: Value
    at_many: Value
    trend: Value
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class StepsKept:
    """What ``results.json`` holds of it; both are empty with one number of steps."""

    verdicts: list[Verdict]
    curves: list[Curve]


def steps_kept(
    scores: Sequence[ImageScores], models: Sequence[str], columns: Mapping[str, Column]
) -> StepsKept:
    """Curves of every column and model, the base's among them, and a verdict on each model."""
    steps = sorted({score.steps for score in scores})
    if len(steps) < 2:
        return StepsKept([], [])
    curves, verdicts = [], []
    for prior in sorted({score.prior for score in scores}, reverse=True):
        cells: dict[tuple[str, int], list[ImageScores]] = {}
        for score in scores:
            if score.prior == prior:
                cells.setdefault((score.model, score.steps), []).append(score)
        for model in models:
            for column in columns:
                if curve := _curve(cells, model, column, prior, steps):
                    curves.append(curve)
            if model != BASE and (verdict := _verdict(cells, model, prior, steps)):
                verdicts.append(verdict)
    return StepsKept(verdicts, curves)


_Cells = Mapping[tuple[str, int], Sequence[ImageScores]]


def _curve(
    cells: _Cells, model: str, column: str, prior: bool, steps: Sequence[int]
) -> Curve | None:
    points, prompts = [], 0
    for number in steps:
        cell = cells.get((model, number), ())
        if values := list(by_noise([cell], column).values()):
            base = () if model == BASE else cells.get((BASE, number), ())
            ratio = _estimate(list(by_noise([cell, base], column).values()), ratio_of_means)
            mean = _estimate(values, lambda means: means[:, 0])
            assert mean is not None
            points.append(Point(number, mean, ratio))
            prompts = len(values)
    return Curve(model, column, prior, prompts, points) if points else None


def _verdict(cells: _Cells, model: str, prior: bool, steps: Sequence[int]) -> Verdict | None:
    """None where sharpness was not measured, or the base has none."""
    few, many = _FEW if _FEW in steps[:-1] else steps[0], steps[-1]
    four = [cells.get((name, number), ()) for number in (few, many) for name in (model, BASE)]
    prompts = list(by_noise(four, SHARPNESS).values())
    at_few = _estimate(prompts, ratio_of_means)
    at_many = _estimate(prompts, lambda means: ratio_of_means(means[:, 2:]))
    trend = _estimate(
        prompts, lambda means: divided(ratio_of_means(means), ratio_of_means(means[:, 2:]))
    )
    if at_few is None or at_many is None or trend is None:
        return None
    outcome = _outcome(at_few, trend)
    sentence = (
        f"{'prompts of what the base knows' if prior else 'other prompts'}: at {few} "
        f"steps {_brief(at_few)} of the base's sharpness, at {many} steps {_brief(at_many)}; few "
        f"against many {_brief(trend)}: {_SAID[outcome]}"
    )
    return Verdict(model, prior, len(prompts), few, many, at_few, at_many, trend, outcome, sentence)


_SAID: dict[Outcome, str] = {
    "kept": "few steps are kept (blur as after SFT would fall with fewer steps)",
    "lost": "few steps are LOST, it blurs where they are few, as after SFT",
    "blurred": "few steps lose no more than many, but it is less sharp with either: blur, or a "
    "plainer subject",
    "unclear": "unclear, the interval is too wide; more prompts or more --seeds narrow it",
}


def _outcome(at_few: Value, trend: Value) -> Outcome:
    bound = 1 - _MARGIN
    if trend.high < bound:
        return "lost"
    if trend.low > bound:
        return "blurred" if at_few.high < bound else "kept"
    return "unclear"


def _estimate(prompts: Prompts, statistic: Callable[[np.ndarray], np.ndarray]) -> Value | None:
    """A statistic of the means [1, D] with its interval; None where it is no finite number."""
    if not prompts:
        return None
    means = np.array([row for prompt in prompts for row in prompt]).mean(0, keepdims=True)
    value = float(statistic(means)[0])
    return Value(value, *nested_bootstrap(prompts, statistic)) if math.isfinite(value) else None


def _brief(value: Value) -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
