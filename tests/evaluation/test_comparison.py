"""Paired win rates: noise is told from effect, whatever prompts have in common."""

from __future__ import annotations

import numpy as np
import pytest

from dopsd.evaluation.comparison import Comparison
from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.results import summarize
from dopsd.evaluation.spec import BASE, EvaluatedModel
from dopsd.intervals import clustered_wilson, wilson

UP, DOWN = Column("good"), Column("bad", higher_is_better=False)


def compared(base, *tuned, column=UP) -> list[Comparison]:
    """Of arrays [prompts, noises]: the base's values and each tuned model's."""
    models = (EvaluatedModel(BASE), *(EvaluatedModel(f"m{n}") for n in range(len(tuned))))
    scores = [
        ImageScores(model.name, 4, "g", False, f"{prompt}", seed, {"x": float(value)})
        for model, values in zip(models, (base, *tuned), strict=True)
        for (prompt, seed), value in np.ndenumerate(values)
    ]
    return summarize(scores, models, {"x": column}, {}, {}).comparisons


def test_equal_pictures_are_ties():
    values = np.random.default_rng(0).normal(size=(6, 4))
    (found,) = compared(values, values)
    assert (found.rate.value, found.ties, found.pictures, found.prompts) == (0.5, 24, 24, 6)
    assert found.outcome == "no_difference_shown" and found.difference == 0


def test_noise_alone_is_near_a_half_and_seldom_called_an_effect():
    rng = np.random.default_rng(1)
    found = [compared(*rng.normal(size=(2, 6, 8)))[0] for _ in range(200)]
    assert np.mean([each.rate.value for each in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([each.outcome != "no_difference_shown" for each in found]) < 0.08


def test_noises_of_a_prompt_that_agree_are_no_independent_draws():
    """Prompts decide, not noises: pooled as if independent, most of these would be called one."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(200):
        suits = rng.normal(0, 3, (8, 1)) + np.zeros((8, 8))
        found.append(compared(rng.normal(size=(8, 8)), suits)[0])
    pooled = [wilson(f.rate.value * 64, 64)[0] > 0.5 for f in found]
    pooled += [wilson(f.rate.value * 64, 64)[1] < 0.5 for f in found]
    called = np.mean([each.outcome != "no_difference_shown" for each in found])
    assert called < 0.15 < 0.3 < 2 * np.mean(pooled)


@pytest.mark.parametrize(("column", "outcome"), [(UP, "better"), (DOWN, "worse")])
def test_an_effect_is_told_in_the_columns_own_direction(column, outcome):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(6, 8))
    (found,) = compared(noise, noise + rng.normal(1, 1, (6, 8)), column=column)
    assert found.outcome == outcome and found.difference == pytest.approx(1, abs=0.5)


def test_each_model_meets_those_before_it_and_many_meet_the_base_alone():
    values = np.zeros((2, 2))
    assert [(c.model, c.against) for c in compared(values, values, values)] == [
        ("m0", BASE), ("m1", BASE), ("m1", "m0")
    ]  # fmt: skip
    assert {c.against for c in compared(*[values] * 5)} == {BASE}


def test_a_single_pair_says_nothing():
    assert compared(np.zeros((1, 1)), np.ones((1, 1))) == []


def test_the_interval_lies_between_that_of_groups_and_that_of_draws():
    agree, mixed = [[1.0] * 4, [0.0] * 4] * 4, [[1.0, 0.0, 1.0, 0.0]] * 8
    assert clustered_wilson(agree) == pytest.approx(wilson(4, 8))
    assert clustered_wilson(mixed) == pytest.approx(wilson(16, 32))
    assert clustered_wilson([[1.0] * 9]) == pytest.approx(wilson(9, 9))
