"""The learner's loop over an engine that only counts: normalisation, and steps that are skipped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dopsd.checkpoint.learner_state import LearnerState
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.errors import WorkerError
from dopsd.learner.learner import Learner, LearnerMicroBatch
from dopsd.method.off_policy import Targets
from dopsd.method.terms import target_terms
from dopsd.policy.flat import FlatLayout
from dopsd.records import Context, SampleInfo
from tests.helpers.tiny import make_config

STATES, SAMPLES = 4, 6
"""Of a global batch, in micro-batches of 2 and one of padding."""


class Engine:
    """The student's weight grows by one at each step that is not skipped; velocities are zero."""

    rank, world = 0, 1

    def __init__(self, skips: set[int]) -> None:
        self.skips, self.step = skips, -1
        self.breaks: set[int] = set()
        """Steps whose update is not finite."""
        self.weight = torch.zeros(1)
        self.losses: list[torch.Tensor] = []

    def layout(self) -> FlatLayout:
        return FlatLayout({"weight": (1,)}, torch.float32)

    def start_average(self) -> None:
        self.average = self.weight.clone()

    def update_average(self, weight: float) -> None:
        self.average.lerp_(self.weight, weight)

    def set_average(self, average: dict[str, torch.Tensor]) -> None:
        self.average = average["weight"]

    def set_lr(self, lr: float) -> None:
        self.step += 1

    def velocity(self, state: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(state)

    def backward(self, loss: torch.Tensor) -> bool:
        self.losses.append(loss)
        return True

    def skipped(self) -> bool:
        self.weight += self.step not in self.skips
        return self.step in self.skips

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return values

    def grad_norm(self) -> float:
        return 1.0

    def found_rate(self) -> float | None:
        return None

    def nonfinite(self) -> str:
        return "" if self.step not in self.breaks else "student weight"

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Client:
    def __init__(self) -> None:
        self.shares: list[Any] = []
        self.lines: list[dict[str, Any]] = []
        self.saved: list[Any] = []

    def save(self, state: Any, gather: Any) -> None:
        self.saved.append(state)

    def record(self, step: int, share: Any) -> None:
        self.shares.append(share)

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.lines.append(metrics)

    def tell(self, spans: Any) -> None:
        pass


def micro_batches(step: int):
    """Targets of one everywhere: each state of each sample has the loss 1."""
    ones = torch.ones(STATES, 2, 1, 2, 2)
    for index, real in enumerate((True, True, True, False)):
        targets = Targets(ones, torch.ones(STATES), ones, torch.ones(STATES))
        info = SampleInfo(step, index, (f"{index}a", f"{index}b"), ("", ""), 2, 2, SAMPLES)
        terms = target_terms(targets, Context({}))
        yield LearnerMicroBatch(terms, info, real, step, step, {})


def learner_of(
    skips: set[int], save: bool = False, **learner: Any
) -> tuple[Learner, Engine, Client]:
    method = {"steps": STATES, "ema_decay": 0.5}
    config = make_config("base", method=method, learner={"steps": 3, **learner})
    engine, client = Engine(skips), Client()
    published: list[int] = []
    client.published = published

    def publish(version: int, weights: Any) -> CheckpointRequest:
        published.append(version)
        return CheckpointRequest(save=save)

    stands_in: tuple[Any, ...] = (engine, micro_batches, client, publish)
    made = Learner(config, *stands_in)
    made.weights.state = lambda step: LearnerState(step, {}, {"weight": engine.average}, step, {})
    return made, engine, client


def test_the_loss_is_a_mean_over_the_global_batch_and_padding_counts_nothing() -> None:
    learner, engine, client = learner_of(set())
    assert learner.run(0, 1)
    assert client.lines[0]["loss"] == pytest.approx(1.0)
    losses = [float(loss) for loss in engine.losses]
    assert losses == pytest.approx([2 / (SAMPLES * STATES)] * 12 + [0.0] * 4)
    assert client.shares[0].micro_batches == {n: (f"{n}a", f"{n}b") for n in range(3)}


class Reads(TorchDispatchMode):
    """Counts how often a value of a tensor is read, for which a GPU has to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_loss_is_read_once_in_a_step_however_many_states_it_has() -> None:
    learner, engine, _ = learner_of(set())
    with Reads() as reads:
        assert learner.run(0, 3)
    assert len(engine.losses) == 3 * 4 * STATES and reads.count == 3


def test_a_skipped_step_moves_no_teacher_and_has_no_loss() -> None:
    learner, engine, client = learner_of({1})
    assert learner.run(0, 3)
    # Steps 0 and 2 moved the student to 1 and 2: 0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 2.
    assert float(engine.average) == 1.25
    assert [share.skipped for share in client.shares] == [False, True, False]
    assert ["loss" in line for line in client.lines] == [True, False, True]
    assert not any(math.isnan(line.get("loss", 0.0)) for line in client.lines)


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    learner, _, client = learner_of({0, 1, 2}, max_nonfinite=1)
    with pytest.raises(WorkerError, match=r"^step 1: loss or gradients are not finite, 2 steps"):
        learner.run(0, 3)
    assert len(client.shares) == 2, "the ledger knows them"


def test_weights_that_are_not_finite_are_neither_published_nor_saved() -> None:
    learner, engine, client = learner_of(set(), save=True, lr=1e308)
    engine.breaks = {1}
    with pytest.raises(
        WorkerError,
        match=r"^step 2: weights are not finite \(student weight\), .*learner.lr, 1e\+308",
    ):
        learner.run(0, 3)
    assert client.published == [0, 1] and [state.step for state in client.saved] == [1]
    assert len(client.shares) == 2, "the ledger knows the step"


def test_a_run_whose_last_steps_were_skipped_is_not_done_even_when_resumed() -> None:
    learner, _, client = learner_of({1, 2}, save=True)
    with pytest.raises(WorkerError, match=r"^the last 2 of 3 steps were skipped"):
        learner.run(0, 3)
    assert [state.skipped for state in client.saved] == [0, 1, 2]
    again = LearnerState.from_files(client.saved[-1].to_files())
    learner, engine, _ = learner_of(set())
    engine.restore = lambda *state: None
    learner.restore(again)
    with pytest.raises(WorkerError, match=r"^the last 2 of 3 steps were skipped"):
        learner.run(3, 3)
    assert learner.run(3, 4), "one that is trained mends it"
