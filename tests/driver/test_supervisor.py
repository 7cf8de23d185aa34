"""The supervisor beside a coordinator that is not there any more, or learners that stand still."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from dopsd import signals
from dopsd.coordinator.client import CoordinatorLost
from dopsd.coordinator.messages import RunStatus
from dopsd.driver import supervisor as supervise
from dopsd.driver.supervisor import Supervisor
from dopsd.errors import InterruptedRun, WorkerError
from tests.helpers.tiny import make_config


def supervisor_of(tmp_path, fit, answers, monkeypatch, launched) -> Supervisor:
    config = make_config("base", run={"folder": str(tmp_path)}, learner={"restart_backoff_s": 0.0})
    monkeypatch.setattr(
        supervise, "ask", lambda coordinator, method, *values, limit=0: answers(method, *values)
    )

    def launch(restarts: int) -> str:
        launched.append(restarts)
        return "coordinator"

    return Supervisor(config, launch, fit, lambda phase, status: None, time.monotonic())


def test_a_coordinator_that_dies_after_training_costs_nothing(tmp_path, monkeypatch):
    lines = [{"step": step, "loss": float(step)} for step in range(20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    launched: list[int] = []

    def answers(method: str):
        if method == "status":
            raise CoordinatorLost("coordinator died: gone")

    supervisor = supervisor_of(tmp_path, lambda: None, answers, monkeypatch, launched)
    monkeypatch.setattr(supervise, "threading", Done)
    status = supervisor.run()
    assert launched == [0], "no other one was started"
    assert (status.step, status.latest, status.ended) == (20, lines[-1], False)
    assert status.losses == (4.5, 14.5)
    assert supervisor.notices == [
        "coordinator died: gone; after training finished: its output is complete"
    ]


def test_learners_that_failed_are_told_even_without_a_coordinator(tmp_path, monkeypatch):
    def fit() -> None:
        raise WorkerError("out of memory")

    def answers(method: str):
        if method == "status":
            raise CoordinatorLost("coordinator died: gone")

    supervisor = supervisor_of(tmp_path, fit, answers, monkeypatch, [])
    monkeypatch.setattr(supervise, "threading", Done)
    with pytest.raises(WorkerError, match="out of memory"):
        supervisor.run()


class Done:
    """`threading`, with threads that have ended when they have been started."""

    @staticmethod
    def current_thread() -> None:
        pass

    @staticmethod
    def main_thread() -> str:
        return "another one"

    class Thread:
        def __init__(self, target, daemon: bool) -> None:
            self.start = target

        def join(self, timeout: float) -> None:
            pass

        def is_alive(self) -> bool:
            return False


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """What a shell starts in its background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", signals.ENDS)
def test_signals_ask_for_a_checkpoint_and_for_the_end(tmp_path, monkeypatch, number):
    """And what the process did with them before is as it was afterwards."""
    asked: list[bool] = []
    steps = iter(range(10**6))
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, *signals.ENDS)]

    def answers(method: str, *values: bool):
        if method == "ask_checkpoint":
            asked.extend(values)
        if method == "status":
            return RunStatus(step=next(steps), steps=9, waiting=True)

    def fit() -> None:
        while not supervisor.first_step:
            time.sleep(0.05)
        for sent, count in ((signal.SIGUSR1, 1), (number, 2)):
            os.kill(os.getpid(), sent)
            until = time.monotonic() + 30
            while len(asked) < count and time.monotonic() < until:
                time.sleep(0.05)

    supervisor = supervisor_of(tmp_path, fit, answers, monkeypatch, [])
    with pytest.raises(InterruptedRun) as ended, signals.interruptible("step 3 is saved"):
        supervisor.run()
        signals.end_if_asked()
    name = signal.Signals(number).name
    assert str(ended.value) == f"interrupted by {name}; step 3 is saved"
    assert ended.value.exit_code == 128 + number
    assert asked == [False, True]
    assert supervisor.notices[0].startswith(
        f"{name}: a checkpoint is being saved, and then the run ends"
    )
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, *signals.ENDS)] == before


@pytest.mark.parametrize(
    ("trained", "signals_sent", "window"), [(False, 1, 900.0), (True, 2, 900.0), (True, 1, 0.1)]
)
def test_a_run_ends_at_once(tmp_path, monkeypatch, trained, signals_sent, window):
    """Before its first step, at a second signal, and when saving takes too long."""
    steps, asked = iter(range(10**6)), threading.Event()

    def answers(method: str, *values: bool):
        if method == "ask_checkpoint":
            asked.set()
        if method == "status":
            return RunStatus(step=next(steps) if trained else 0, steps=9, waiting=True)

    def fit() -> None:
        while trained and not supervisor.first_step:
            time.sleep(0.05)
        for sent in range(signals_sent):
            os.kill(os.getpid(), signal.SIGINT)
            assert sent or asked.wait(30)
        time.sleep(60)

    supervisor = supervisor_of(tmp_path, fit, answers, monkeypatch, [])
    supervisor.config.timeouts.step = window
    began = time.monotonic()
    with pytest.raises(InterruptedRun) as ended, signals.interruptible(lambda: "and so on"):
        supervisor.run()
    assert time.monotonic() - began < 30
    assert str(ended.value) == "interrupted by SIGINT; and so on"


@pytest.mark.parametrize(("waiting", "killed"), [(True, []), (False, ["kill_learners"])])
def test_learners_that_wait_for_the_coordinator_do_not_hang(tmp_path, monkeypatch, waiting, killed):
    asked: list[str] = []
    supervisor = supervisor_of(tmp_path, lambda: None, asked.append, monkeypatch, [])
    status = RunStatus(3, 9, training=True, waiting=waiting, still=1e6, attempt=1)
    supervisor.check_stalled(status, 1e6)
    assert asked == killed
