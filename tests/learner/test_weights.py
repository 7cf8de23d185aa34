"""Whose weights the teacher has, over an engine that only holds the student's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dopsd.learner.weights import ReplicatedWeights
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.flat import FlatLayout
from tests.helpers.tiny import make_config

UPDATES = 3


class Engine:
    """Trains by adding one, and keeps what a fused learner's teacher adapter is given."""

    def __init__(self) -> None:
        self.weights = {"up": torch.zeros(2, 3), "down": torch.randn(3, 2)}
        self.teacher: dict[str, torch.Tensor] = {}
        self.written = 0

    def layout(self) -> FlatLayout:
        return FlatLayout({n: tuple(t.shape) for n, t in self.weights.items()}, torch.float32)

    def full_weights(self, adapter: str) -> dict[str, torch.Tensor]:
        assert adapter == STUDENT
        return {name: tensor.clone() for name, tensor in self.weights.items()}

    def start_average(self) -> None:
        self.average = self.full_weights(STUDENT)

    def update_average(self, weight: float) -> None:
        for name, tensor in self.average.items():
            tensor.lerp_(self.weights[name], weight)

    def full_average(self) -> dict[str, torch.Tensor]:
        return self.average

    def write_teacher(self) -> None:
        self.teacher, self.written = self.average, self.written + 1


def trained(source: str, **method: Any) -> tuple[Engine, dict[str, torch.Tensor], Any]:
    """(engine, the student's weights at the start, weights) after some updates."""
    engine = Engine()
    decay = make_config("base", method=method).method.teacher_decay
    weights = ReplicatedWeights(engine, decay, source == "fused")
    start = engine.full_weights(STUDENT)
    for _ in range(UPDATES):
        for tensor in engine.weights.values():
            tensor += 1
        weights.update()
        weights.bind_teacher()
    return engine, start, weights


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("source", ["fused", "disaggregated"])
def test_a_frozen_teacher_stays_the_base_and_a_live_one_is_the_student(source: str) -> None:
    for teacher in ("frozen", "live"):
        engine, start, weights = trained(source, teacher=teacher)
        student = weights.full(STUDENT)
        assert equal(student, engine.weights) and not equal(student, start)
        expected = start if teacher == "frozen" else engine.weights
        assert equal(weights.full(TEACHER), expected), teacher
        # Published with the bundle, or bound to the learner's own second adapter.
        assert equal(engine.teacher, expected if source == "fused" else {}), teacher
        often = {"frozen": 1, "live": UPDATES}[teacher] if source == "fused" else 0
        assert engine.written == often, "a teacher that does not move is bound once"


def test_the_average_lags_behind_the_student() -> None:
    _, start, weights = trained("disaggregated", ema_decay=0.9)
    for name, first in start.items():
        expected = first
        for update in range(1, UPDATES + 1):
            expected = 0.9 * expected + 0.1 * (first + update)
        torch.testing.assert_close(weights.full(TEACHER)[name], expected)
