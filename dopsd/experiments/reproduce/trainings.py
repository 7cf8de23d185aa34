"""Trainings beside each other: each is a Ray task that drives its own run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.config import RunConfig
from dopsd.coordinator.client import ANSWER_SECONDS
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Event, Report
from dopsd.driver.train import train
from dopsd.errors import DeadlineError, DopsdError
from dopsd.experiments.reproduce.progress_board import ProgressBoard
from dopsd.ray_cluster.connect import connect
from dopsd.ray_cluster.failures import unwrap_error

_END_SECONDS = 10.0
"""What a training may take to end when it is told to."""
_TELL_SECONDS = 1.0
"""Between two messages of a training to the board."""


@dataclass
class Training:
    """One that is running."""

    name: str
    config: RunConfig
    heard: float
    """``time.monotonic()`` of its last message."""
    messages: int = 0
    phase: str = "start"
    step: int = 0


def _drive(
    run: Callable[..., Any], name: str, config: RunConfig, take_over: bool, board: Any
) -> float:
    """The task. Returns the seconds that the training took, once the board has what it told."""
    sent: set[str] = set()
    began, last = time.monotonic(), float("-inf")
    told: Any = None

    def show(phase: str, event: Event) -> None:
        nonlocal last, told
        step, lines = 0, []
        if isinstance(event, RunStatus):
            step, lines = event.step, [line for line in event.notices if line not in sent]
        elif isinstance(event, Report):
            lines = [line for line in event.lines if line not in sent]
        if lines or time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            sent.update(lines)
            told = board.tell.remote(name, phase, step, lines)

    try:
        run(config, show, replace=True, take_over=take_over)
        return time.monotonic() - began
    finally:
        if told is not None:  # what it told before has come by then, in order
            ray.wait([told], timeout=ANSWER_SECONDS)


class Trainings:
    """Trains some configs, a few at a time, on this node.

    ``done`` has name and seconds of each that is finished; ``running`` the others that began;
    ``lines`` what they had to tell people.
    """

    def __init__(
        self,
        configs: dict[str, RunConfig],
        at_once: int,
        take_over: bool = False,
        run: Callable[..., Any] = train,
    ) -> None:
        """``configs``, with absolute paths, by name, in the order of their beginning;
        ``take_over``: their folders, even from living processes; ``run`` trains one."""
        self._waiting, self._at_once, self._take_over = list(configs.items()), at_once, take_over
        self._run = run
        self._references: dict[Any, Training] = {}
        self._error: DopsdError | None = None
        self.done: list[tuple[str, float]] = []
        self.lines: list[str] = []

    @property
    def running(self) -> list[Training]:
        """In the order of their beginning."""
        return list(self._references.values())

    def train(self, show: Callable[[], None]) -> None:
        """Until all are done; ``show`` is called about every second.

        After a failure none is begun, but those that are running are finished. Raises the first
        failure, as a DopsdError that names the training; DeadlineError when nothing was heard of
        one for longer than its own timeouts allow, and then the others are ended.
        """
        connect()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        drive = ray.remote(**options, max_retries=0)(_drive)
        board: Any = ray.remote(**options)(ProgressBoard).remote()
        try:
            while self._waiting or self._references:
                while self._waiting and len(self._references) < self._at_once:
                    name, config = self._waiting.pop(0)
                    training = Training(name, config, time.monotonic())
                    task = drive.remote(self._run, name, config, self._take_over, board)
                    self._references[task] = training
                ended, _ = ray.wait(list(self._references), timeout=1.0)
                for reference in ended:
                    self._take(reference)
                self._listen(board)
                show()
        finally:
            self._end()
            ray.kill(board)
        if self._error:
            raise self._error

    def _take(self, reference: Any) -> None:
        training = self._references.pop(reference)
        try:
            self.done.append((training.name, ray.get(reference)))
        except RayError as error:
            own = unwrap_error(error, "training")
            self._error = self._error or type(own)(f"{training.name}: {own}")
            self._waiting.clear()

    def _listen(self, board: Any) -> None:
        """A board that does not answer is no news: the trainings continue without it."""
        latest: dict[str, tuple[int, str, int]] = {}
        with suppress(RayError):
            latest, self.lines = ray.get(board.read.remote(), timeout=ANSWER_SECONDS)
        for training in self._references.values():
            _hear(training, *latest.get(training.name, (0, "", 0)))

    def _end(self) -> None:
        """End what is still running, at first as Ctrl-C would: a run then gives its folder back."""
        for force in (False, True):
            if left := list(self._references):
                for reference in left:
                    ray.cancel(reference, force=force)
                ended, _ = ray.wait(left, num_returns=len(left), timeout=_END_SECONDS)
                for reference in ended:
                    del self._references[reference]


def _hear(training: Training, messages: int, phase: str, step: int) -> None:
    now = time.monotonic()
    if messages > training.messages:
        training.heard, training.messages = now, messages
        training.phase, training.step = phase, step
    limit = training.config.timeouts.startup + training.config.timeouts.step
    if now - training.heard > limit:
        raise DeadlineError(
            f"{training.name} timed out: no progress within {limit:g} s; last: "
            f"{training.phase}, step {training.step}"
        )
