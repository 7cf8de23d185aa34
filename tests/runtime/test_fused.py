"""The coordinator of a fused run: no pools, so no Ray; blocks are made-up references."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dopsd import storage
from dopsd.errors import StorageError, WorkerError
from dopsd.json_lines import read_lines
from dopsd.runtime.coordinator import Coordinator
from dopsd.runtime.placement import resolve_roles
from dopsd.runtime.run_log import RunLog
from dopsd.runtime.weights import Bundle
from tests.tiny import make_config

STEPS, PER_STEP = 5, 2


def stream(start: int, stop: int):
    for step in range(start, stop):
        for index in range(PER_STEP):
            yield step, index, f"block {step}.{index}"


@pytest.fixture
def launch(tmp_path):
    """Starts coordinators, in a folder of the test unless another one is given."""
    coordinators = []

    def start(open_stream: Callable = stream, folder: str = "", **sections) -> Coordinator:
        config = make_config(
            "base",
            source="fused",
            run={"folder": folder or str(tmp_path)},
            learner={"steps": STEPS, "global_batch": 4, "micro_batch": 2, "restart_wait": 0.0},
            **sections,
        )
        roles, log = resolve_roles(config, 0.0), RunLog(config.run.folder)
        coordinator = Coordinator(config, roles, open_stream, lambda step: PER_STEP, log)
        coordinator._saver._look = lambda: None  # Ray is not asked for nodes that go away
        coordinators.append(coordinator)
        coordinator.start()
        return coordinator

    yield start
    for coordinator in coordinators:
        coordinator.stop()


def publish(coordinator: Coordinator, attempt: int, version: int) -> None:
    coordinator.publish(attempt, Bundle(version, {}, {}, 0))


def fetched(coordinator: Coordinator, attempt: int, step: int) -> list[str]:
    return [box.ref for box in coordinator.fetch(attempt, step, 0, 1)]


def test_a_slow_storage_does_not_silence_the_coordinator_while_it_is_rewound(launch, monkeypatch):
    coordinator = launch()
    attempt, door = coordinator.attach(), threading.Event()
    publish(coordinator, attempt, 0)
    monkeypatch.setattr(coordinator.log, "rewind", lambda step: door.wait(60))
    after: list[int] = []
    second = threading.Thread(target=lambda: after.append(coordinator.attach()))
    second.start()
    try:
        answers: list[dict] = []

        def ask() -> None:
            while not answers or answers[-1]["attempt"] == attempt:
                answers.append(coordinator.status())
                time.sleep(0.01)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(20)
        assert not asking.is_alive() and second.is_alive(), "answers while the storage is slow"
        with pytest.raises(WorkerError, match=f"attempt {attempt} is over: another goes on"):
            publish(coordinator, attempt, 1)
    finally:
        door.set()
        second.join(60)
    assert after == [attempt + 1] and coordinator.status()["attempt"] == attempt + 1
    publish(coordinator, after[0], 0)
    assert fetched(coordinator, after[0], 0) == ["block 0.0", "block 0.1"]


def test_an_attempt_is_in_the_ledger_on_s3_as_soon_as_it_begins(launch, bucket, tmp_path):
    folder = f"{bucket}/{tmp_path.name}"
    coordinator = launch(folder=folder)
    assert [line["start"] for line in read_lines(f"{folder}/ledger.jsonl")] == [0]
    coordinator.attach()
    assert coordinator.attach() == 2
    assert [line["attempt"] for line in read_lines(f"{folder}/ledger.jsonl")] == [1, 2]


def test_learners_that_come_before_the_start_wait_for_its_attempt(launch, monkeypatch):
    honest, numbers = RunLog.rewind, []

    def slow(log: RunLog, step: int) -> None:
        coming = threading.Thread(target=lambda: numbers.append(made[0].attach()))
        made.append(coming)
        coming.start()
        coming.join(0.3)
        honest(log, step)

    made: list = []
    monkeypatch.setattr(RunLog, "rewind", slow)
    start = Coordinator.start

    def noted(coordinator: Coordinator) -> None:
        made.append(coordinator)
        start(coordinator)

    monkeypatch.setattr(Coordinator, "start", noted)
    launch()
    made[1].join(60)
    assert numbers == [1]


def test_extras_that_cannot_be_written_are_told_and_outputs_are_an_error(launch, monkeypatch):
    coordinator = launch()
    attempt, honest = coordinator.attach(), storage.write_bytes

    def full(path: str, data: bytes, durable: bool = False) -> None:
        if path.endswith(".safetensors"):
            raise StorageError(f"{path}: no room")
        honest(path, data, durable)

    monkeypatch.setattr(storage, "write_bytes", full)
    for name in ("preview/weights/a", "preview/weights/b", "debug/weights/c"):
        coordinator.write(attempt, f"{name}.safetensors", b"x")
    debug, preview = coordinator.status()["notices"]
    assert debug.startswith("debug: 1 files not written; first debug/weights/c.safetensors: ")
    assert preview.startswith("preview: 2 files not written; first preview/weights/a.safetensors: ")
    with pytest.raises(StorageError, match=r"lora\.safetensors: no room"):
        coordinator.write(attempt, "lora.safetensors", b"x")
    assert coordinator.error() is None
