"""Learning rate: warm-up, then constant or cosine."""

import math

import pytest

from dopsd.config import LearnerSection
from dopsd.learner.learner import learning_rate


def test_warm_up_then_cosine_to_zero():
    learner = LearnerSection(lr=1.0, steps=10, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(step, learner) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[7] == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 6)))
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert learning_rate(10, learner) == pytest.approx(0.0)


def test_constant_after_warm_up():
    learner = LearnerSection(lr=2.0, steps=5, warmup_steps=2)
    assert [learning_rate(step, learner) for step in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]
