"""Trainings beside each other: each is a Ray task that drives its own run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.config import RunConfig
from dopsd.errors import LateError
from dopsd.runtime.cluster import connect
from dopsd.runtime.failures import own_error
from dopsd.runtime.launch import train
from dopsd.runtime.supervise import ANSWER_SECONDS

_TELL_SECONDS = 1.0
"""Between two messages of a training to the board."""


@dataclass
class Lane:
    """A training that is running."""

    name: str
    config: RunConfig
    heard: float
    """``time.monotonic()`` of its last message."""
    messages: int = 0
    phase: str = "start"
    step: int = 0


class Board:
    """What every training last said of itself: the class behind an actor."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, str, int]] = {}
        self._notices: list[str] = []

    def tell(self, name: str, phase: str, step: int, notices: Sequence[str]) -> None:
        """``notices``: those that were not told before."""
        messages = self._latest.get(name, (0, "", 0))[0]
        self._latest[name] = messages + 1, phase, step
        self._notices += [f"{name}: {notice}" for notice in notices]

    def read(self) -> tuple[dict[str, tuple[int, str, int]], list[str]]:
        """Messages so far, phase and step by name; and all notices."""
        return self._latest, self._notices


def _drive(name: str, config: RunConfig, board: Any) -> float:
    """The task. Returns the seconds that the training took."""
    told: set[str] = set()
    began, last = time.monotonic(), float("-inf")

    def show(phase: str, status: dict[str, Any]) -> None:
        nonlocal last
        notices = [each for each in status.get("notices", ()) if each not in told]
        if notices or time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            told.update(notices)
            board.tell.remote(name, phase, status.get("step", 0), notices)

    train(config, show, replace=True)
    return time.monotonic() - began


class Lanes:
    """Trains some configs, a few at a time, on this node.

    ``done`` has name and seconds of each that is finished; ``running`` the others that began.
    """

    def __init__(self, configs: dict[str, RunConfig], lanes: int) -> None:
        """``configs`` by name, in the order of their beginning; ``lanes``: how many at a time."""
        self._waiting, self._lanes = list(configs.items()), lanes
        self._references: dict[Any, Lane] = {}
        self.done: list[tuple[str, float]] = []
        self.notices: list[str] = []

    @property
    def running(self) -> list[Lane]:
        """In the order of their beginning."""
        return list(self._references.values())

    def train(self, show: Callable[[], None]) -> None:
        """Until all are done; ``show`` is called about every second.

        Raises the first failure, as a DopsdError that names the training; LateError when nothing
        was heard of one for longer than its own deadlines allow. The others are ended before.
        """
        connect()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        drive = ray.remote(**options, max_retries=0)(_drive)
        board: Any = ray.remote(**options)(Board).remote()
        try:
            while self._waiting or self._references:
                while self._waiting and len(self._references) < self._lanes:
                    name, config = self._waiting.pop(0)
                    lane = Lane(name, config, time.monotonic())
                    self._references[drive.remote(name, config, board)] = lane
                ended, _ = ray.wait(list(self._references), timeout=1.0)
                for reference in ended:
                    self._take(reference)
                latest, self.notices = ray.get(board.read.remote(), timeout=ANSWER_SECONDS)
                for lane in self._references.values():
                    _hear(lane, *latest.get(lane.name, (0, lane.phase, lane.step)))
                show()
        except RayError as error:
            raise own_error(error, "the board of trainings") from None
        finally:
            self._end()
            ray.kill(board)

    def _take(self, reference: Any) -> None:
        lane = self._references.pop(reference)
        try:
            self.done.append((lane.name, ray.get(reference)))
        except RayError as error:
            own = own_error(error, "training")
            raise type(own)(f"{lane.name}: {own}") from None

    def _end(self) -> None:
        """As Ctrl-C would: a training that is told to end ends its actors."""
        for reference in self._references:
            ray.cancel(reference)
        if self._references:
            left = list(self._references)
            ray.wait(left, num_returns=len(left), timeout=ANSWER_SECONDS)


def _hear(lane: Lane, messages: int, phase: str, step: int) -> None:
    now = time.monotonic()
    if messages > lane.messages:
        lane.heard, lane.messages, lane.phase, lane.step = now, messages, phase, step
    limit = lane.config.deadline.start + lane.config.deadline.step
    if now - lane.heard > limit:
        raise LateError(
            f"{lane.name} is late: nothing was heard of it for {limit:g} s; last: {lane.phase}, "
            f"step {lane.step}"
        )
