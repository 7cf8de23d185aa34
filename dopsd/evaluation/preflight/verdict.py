"""Whether a teacher can draw a concept: paired distances to the target, with few samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Outcome = Literal["closer", "no_closer", "unclear", "too_few"]
ENOUGH = 4
"""Samples from which on there is a verdict: noises of a few targets say nothing of others."""
_ROUNDS = 4000
_SEED = 0
"""Of the bootstrap: the same distances give the same interval."""
LEVEL = 0.95


@dataclass(frozen=True)
class TeacherVerdict:
    """Distances to the target from the same noise, teacher against student."""

    outcome: Outcome
    metric: str
    samples: int
    noises: int
    """Noises per sample."""
    closer: int
    """Samples in which the teacher's mean distance is smaller; ties do not count."""
    student: float
    """Mean distance of the student's pictures, in the metric's own unit."""
    teacher: float
    ratio: float | None
    """``teacher / student``; None where the student's distance is 0."""
    low: float | None
    """Ends of the ratio's bootstrap interval; None where they are not finite."""
    high: float | None
    margin: float

    @property
    def can_teach(self) -> bool:
        """Whether the teacher was shown to be closer, by more than the margin."""
        return self.outcome == "closer"

    def sentence(self) -> str:
        """The verdict in one line, with its numbers."""
        noises = f"{self.noises} noise{'s' if self.noises > 1 else ''} each"
        samples = f"{self.samples} sample{'s' if self.samples > 1 else ''}"
        numbers = (
            f"in {self.closer} of {samples}, mean distance ratio "
            f"{_number(self.ratio)} [{_number(self.low)}, {_number(self.high)}] against "
            f"{1 - self.margin:.2f} needed ({self.metric}, {noises})"
        )
        if self.outcome == "too_few":
            return (
                f"no verdict from {samples} (the teacher is closer {numbers}): {ENOUGH} and more "
                "are needed; look at the sheet"
            )
        if self.outcome == "closer":
            return f"the teacher is closer to the target than the student {numbers}: it can draw it"
        if self.outcome == "no_closer":
            if self.student == 0:
                return "the student draws the targets already: there is nothing to teach"
            return (
                f"the teacher is NO closer to the target than the student (closer {numbers}): "
                "what it cannot draw it cannot teach"
            )
        return (
            f"unclear whether the teacher is closer to the target than the student (closer "
            f"{numbers}): look at the sheet, or raise preflight.samples and preflight.num_noises"
        )


def judge(student: np.ndarray, teacher: np.ndarray, metric: str, margin: float) -> TeacherVerdict:
    """The verdict on distances [samples, noises] of student and teacher, paired by noise.

    Fewer than ``ENOUGH`` samples give none. The teacher is `closer` when the whole 95% interval of
    the ratio of mean distances lies below 1 - ``margin``, `no_closer` when the whole interval lies
    above it, and `unclear` otherwise. The bootstrap has two levels, samples and then the noises of
    each: pictures of one target are not independent, and with a handful of targets the second level
    offsets what the first one alone would understate.
    """
    assert student.shape == teacher.shape and student.ndim == 2 and student.size
    samples, noises = student.shape
    rng = np.random.default_rng(_SEED)
    rows = rng.integers(samples, size=(_ROUNDS, samples, 1))
    columns = rng.integers(noises, size=(_ROUNDS, samples, noises))
    ratios = _ratio(teacher[rows, columns].mean((1, 2)), student[rows, columns].mean((1, 2)))
    tail = (1 - LEVEL) / 2
    # Quantiles that are values of the sample: interpolation would make nan of two infinities.
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    ratio = _ratio(teacher.mean(), student.mean())
    bound = 1 - margin
    outcome: Outcome = "closer" if high < bound else "no_closer" if low > bound else "unclear"
    if samples < ENOUGH:
        outcome = "too_few"
    return TeacherVerdict(
        outcome=outcome,
        metric=metric,
        samples=samples,
        noises=noises,
        closer=int((teacher.mean(1) < student.mean(1)).sum()),
        student=float(student.mean()),
        teacher=float(teacher.mean()),
        ratio=_finite(ratio),
        low=_finite(low),
        high=_finite(high),
        margin=margin,
    )


def _ratio(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Elementwise; two zeros are equally close (1), a zero student alone is out of reach (inf)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(teacher / student, dtype=np.float64)
    return np.where(student == 0, np.where(teacher == 0, 1.0, np.inf), ratio)


def _finite(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.2f}"
