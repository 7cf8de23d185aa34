"""One concept in one process: what its learner asks and tells, and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dopsd.checkpoint.learner_state import LearnerState, SlicedState
from dopsd.config import RunConfig
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.intervals import mean
from dopsd.learner.weights import Weights
from dopsd.library.workers.jobs import Losses, News, SavedState
from dopsd.library.workers.stopping import stops
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.log import loss_steps
from dopsd.run_folder.timeline import Span


class Progress:
    """Of a concept, handed from the thread that trains it to the one that answers."""

    def __init__(self, concept: str, step: int) -> None:
        self._lock = threading.Lock()
        self._concept, self._step, self._waits = concept, step, 0
        self._state: SavedState | None = None
        self.over = False
        self.leaves = False
        """Its concept is wanted back."""

    def stepped(self, step: int) -> None:
        with self._lock:
            self._step = step

    def waits(self) -> None:
        """It waits for others, who have deadlines of their own."""
        with self._lock:
            self._waits += 1

    def saved(self, state: SavedState) -> None:
        with self._lock:
            self._state = state

    def take(self) -> News:
        with self._lock:
            news = News(self._concept, self._step, self._state, self._waits)
            self._state = None
            return news


class ConceptRun:
    """What a coordinator is to a learner, for one concept in one process."""

    def __init__(self, config: RunConfig, losses: Losses, progress: Progress, began: float) -> None:
        self.config, self._losses, self._progress = config, list(losses), progress
        self._began, self._saved = began, time.monotonic()
        self.steps: int | None = None
        """Optimizer steps behind the weights, once there are any."""
        self.first_step_seconds = 0.0
        self.given_back: SavedState | None = None
        """Where the concept stands, if it was wanted back before its end."""
        self._gives_back = False

    def publish(self, version: int, weights: Weights) -> CheckpointRequest:
        """Nobody else takes the weights; says whether to save them, or to end. A concept that is
        wanted back does one step at least: its state is one between two steps."""
        begins, self.steps = self.steps is None, version
        if begins:
            return CheckpointRequest()
        if stops(self.config.library.stop, self._losses, version):
            return CheckpointRequest(stop=True)
        if self._progress.leaves and version < self.config.learner.steps:
            self._gives_back = True
            return CheckpointRequest(save=True, stop=True)
        section = self.config.checkpoint
        old = time.monotonic() - self._saved > 60 * section.every_minutes > 0
        due = section.every_steps and version % section.every_steps == 0
        return CheckpointRequest(save=bool(old or due) and version < self.config.learner.steps)

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.first_step_seconds = self.first_step_seconds or time.perf_counter() - self._began
        if "loss" in metrics:
            self._losses.append((step, metrics["loss"]))
        self._progress.stepped(step + 1)

    def record(self, step: int, share: TrainedShare) -> None:
        """The ledger of a library counts steps, whose samples follow from the plan."""

    def tell(self, spans: list[Span]) -> None:
        """A library has no timeline of a concept."""

    def save(
        self, state: LearnerState | SlicedState, gather: Callable[[Any], Sequence[Any]]
    ) -> None:
        assert isinstance(state, LearnerState), "adapters: lora, as the library checks"
        self._saved = time.monotonic()
        saved = SavedState(state.step, list(self._losses), state.to_files())
        if self._gives_back:
            self.given_back = saved
        else:
            self._progress.saved(saved)

    def first_and_last_loss(self) -> tuple[float | None, float | None]:
        """Means over as many steps at either end as `dopsd train` takes."""
        count = loss_steps(self.steps or 0)
        values = [loss for _, loss in self._losses]
        return (mean(values[:count]), mean(values[-count:])) if values else (None, None)
