"""The preflight's statistics: paired, honest about few samples, never a division by zero."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dopsd.evaluation.preflight.verdict import judge


def distances(ratio: float, samples: int, noises: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets of different difficulty, a teacher that suits some better than others, noise."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 0.3, (samples, 1)))
    suits = np.exp(rng.normal(0, 0.25, (samples, 1)) - 0.25**2 / 2)
    student, teacher = (np.exp(rng.normal(0, 0.2, (samples, noises))) for _ in range(2))
    return base * student, ratio * base * suits * teacher


def test_a_clear_teacher_gets_its_numbers():
    student, teacher = distances(0.4, 8, 2, 0)
    verdict = judge(student, teacher, "latent", 0.1)
    assert verdict.outcome == "closer" and verdict.can_teach
    assert verdict.ratio == pytest.approx(teacher.mean() / student.mean())
    assert verdict.low < verdict.ratio < verdict.high < 0.9
    assert (verdict.closer, verdict.samples, verdict.noises) == (8, 8, 2)
    assert verdict.sentence() == (
        "the teacher is closer to the target than the student in 8 of 8 samples, mean distance "
        f"ratio {verdict.ratio:.2f} [{verdict.low:.2f}, {verdict.high:.2f}] against 0.90 "
        "needed (latent, 2 noises each): it can draw it"
    )
    assert judge(student, teacher, "latent", 0.1) == verdict, "no chance in it"


def test_a_teacher_that_sees_no_more_is_no_closer():
    student, _ = distances(1.0, 8, 2, 0)
    verdict = judge(student, student.copy(), "latent", 0.1)
    assert verdict.outcome == "no_closer" and verdict.closer == 0, "ties do not count"
    assert (verdict.ratio, verdict.low, verdict.high) == (1.0, 1.0, 1.0)
    assert "NO closer to the target than the student (closer in 0 of 8" in verdict.sentence()


def test_mixed_samples_are_not_called_a_result():
    student = np.array([[1.0], [1.0], [1.0], [1.0]])
    verdict = judge(student, np.array([[0.5], [0.6], [1.3], [0.9]]), "latent", 0.1)
    assert verdict.outcome == "unclear" and not verdict.can_teach
    assert "raise preflight.samples" in verdict.sentence()


@pytest.mark.parametrize(("ratio", "most"), [(1.0, 0.03), (0.9, 0.1)])
def test_a_teacher_without_the_margin_seldom_passes(ratio, most):
    """With the default of 8 samples and 2 noises, over 200 data sets."""
    passed = [judge(*distances(ratio, 8, 2, seed), "x", 0.1).can_teach for seed in range(200)]
    assert np.mean(passed) <= most


def test_a_good_teacher_mostly_passes():
    passed = [judge(*distances(0.6, 8, 2, seed), "x", 0.1).can_teach for seed in range(200)]
    assert np.mean(passed) >= 0.8


@pytest.mark.parametrize(
    ("student", "teacher", "outcome"),
    [
        ([[0, 0]] * 4, [[0, 0]] * 4, "no_closer"),
        ([[0, 0]] * 4, [[1, 0], [0, 1]] * 2, "no_closer"),
        ([[1, 1]] * 4, [[0, 0]] * 4, "closer"),
        ([[0, 0], [1, 1]] * 2, [[1, 1], [0, 0]] * 2, "unclear"),
        ([[1]], [[0.2]], "too_few"),
        ([[1, 1]] * 3, [[0.1, 0.2]] * 3, "too_few"),
    ],
)
def test_zeros_and_a_single_picture(student, teacher, outcome):
    verdict = judge(np.array(student, float), np.array(teacher, float), "oracle", 0.1)
    assert verdict.outcome == outcome
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)
    assert "nan" not in verdict.sentence()
    assert verdict.can_teach == (outcome == "closer")


def test_one_picture_gives_no_verdict():
    sentence = judge(np.array([[1.0, 1.0]]), np.array([[0.1, 0.1]]), "latent", 0.1).sentence()
    assert sentence == (
        "no verdict from 1 sample (the teacher is closer in 1 of 1 sample, mean distance ratio "
        "0.10 [0.10, 0.10] against 0.90 needed (latent, 2 noises each)): 4 and more are needed; "
        "look at the sheet"
    )
