"""The coordinator without Ray: a fused run has no pools, and blocks are made-up references."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.errors import DeadlineError, StorageError, WorkerError
from dopsd.files import storage
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.run_folder.jsonl import read_lines
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.outputs import take_run_folder
from tests.helpers.shares import whole_share
from tests.helpers.tiny import make_config

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
            learner={"steps": STEPS, "global_batch": 4, "micro_batch": 2, "restart_backoff_s": 0.0},
            **sections,
        )
        take_run_folder(config, resume=bool(folder))
        roles, log = resolve_roles(config, 0.0), RunLog(config.run.folder)
        coordinator = Coordinator(config, roles, open_stream, lambda step: PER_STEP, log)
        coordinators.append(coordinator)
        coordinator.start()
        return coordinator

    yield start
    for coordinator in coordinators:
        coordinator.stop()


def publish(coordinator: Coordinator, attempt: int, version: int) -> None:
    coordinator.publish(attempt, Bundle(version, {}, {}, 0))


def train(coordinator: Coordinator, attempt: int, start: int, stop: int) -> list[str]:
    """The blocks of some steps, as learners get them."""
    found = []
    for step in range(start, stop):
        found += fetched(coordinator, attempt, step)
        publish(coordinator, attempt, step + 1)
    return found


class Streams:
    """Opens streams whose blocks say of which opening they are; one may hang at a place."""

    def __init__(self, hangs: dict[int, tuple[int, int]] | None = None) -> None:
        self.hangs, self.starts, self.closed = hangs or {}, [], []

    def __call__(self, start: int, stop: int) -> Streams.One:
        self.starts.append(start)
        return self.One(self, len(self.starts), start, stop)

    class One:
        def __init__(self, streams: Streams, number: int, start: int, stop: int) -> None:
            self._streams, self._number, self._ends = streams, number, threading.Event()
            self._keys = ((s, i) for s in range(start, stop) for i in range(PER_STEP))

        def __iter__(self) -> Streams.One:
            return self

        def __next__(self) -> tuple[int, int, str]:
            step, index = next(self._keys)
            if self._streams.hangs.get(self._number) == (step, index):
                assert self._ends.wait(60)
                raise RuntimeError("the pipeline was shut down")
            return step, index, f"block {step}.{index} of stream {self._number}"

        def close(self) -> None:
            self._ends.set()
            self._streams.closed.append(self._number)


def fetched(coordinator: Coordinator, attempt: int, step: int) -> list[str]:
    return [box.ref for box in whole_share(coordinator, attempt, step)]


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
            while not answers or answers[-1].attempt == attempt:
                answers.append(coordinator.status())
                time.sleep(0.01)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(20)
        assert not asking.is_alive() and second.is_alive(), "answers while the storage is slow"
        with pytest.raises(WorkerError, match=rf"stale attempt {attempt} \(current: none yet\)"):
            publish(coordinator, attempt, 1)
    finally:
        door.set()
        second.join(60)
    assert after == [attempt + 1] and coordinator.status().attempt == attempt + 1
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

    def full(path: str, data: bytes, **options: bool) -> None:
        if path.endswith(".safetensors"):
            raise StorageError(f"{path}: no room")
        honest(path, data, **options)

    monkeypatch.setattr(storage, "write_bytes", full)
    for name in ("preview/weights/a", "preview/weights/b", "debug/weights/c"):
        coordinator.write(attempt, f"{name}.safetensors", b"x")
    debug, preview = coordinator.status().notices
    assert debug.startswith("debug: 1 files not written; first debug/weights/c.safetensors: ")
    assert preview.startswith("preview: 2 files not written; first preview/weights/a.safetensors: ")
    with pytest.raises(StorageError, match=r"lora\.safetensors: no room"):
        coordinator.write(attempt, "lora.safetensors", b"x")
    assert coordinator.error() is None


def test_a_block_that_is_gone_is_encoded_again(launch):
    streams = Streams()
    coordinator = launch(streams)
    attempt = coordinator.attach()
    publish(coordinator, attempt, 0)
    train(coordinator, attempt, 0, 1)
    assert fetched(coordinator, attempt, 1) == [f"block 1.{i} of stream 1" for i in range(2)]
    for _ in range(2):  # told twice, it counts once
        coordinator.lost(attempt, 1, 1, 0)
    assert fetched(coordinator, attempt, 1) == ["block 1.0 of stream 1", "block 1.1 of stream 2"]
    coordinator.lost(attempt, 1, 1, 1)
    coordinator.lost(attempt, 1, 0, 0)
    again = train(coordinator, attempt, 1, STEPS)
    keys = [f"block {step}.{index}" for step in range(1, STEPS) for index in range(PER_STEP)]
    assert [block.partition(" of")[0] for block in again] == keys
    assert set(streams.starts) == {0, 1} and again[1] != "block 1.1 of stream 2"
    counts = coordinator.status().counts
    assert counts.trained == counts.planned == STEPS * PER_STEP


def test_a_block_that_goes_again_and_again_ends_the_run_in_one_line(launch):
    coordinator = launch(Streams(), inference={"max_restarts": 0})
    attempt = coordinator.attach()
    publish(coordinator, attempt, 0)
    for losses in range(4):
        assert coordinator.error() is None
        whole_share(coordinator, attempt, 0)
        coordinator.lost(attempt, 0, 1, losses)
    with pytest.raises(WorkerError, match=r"^step 0 micro-batch 1 was lost 4 times$"):
        whole_share(coordinator, attempt, 0)


def test_an_encoder_that_hangs_is_replaced_and_nothing_is_missing(launch):
    streams = Streams({1: (1, 1), 2: (3, 0)})
    coordinator = launch(streams, timeouts={"step": 0.5}, inference={"max_restarts": 2})
    attempt = coordinator.attach()
    publish(coordinator, attempt, 0)
    blocks = train(coordinator, attempt, 0, STEPS)
    assert blocks == [
        *(f"block {step}.{index} of stream 1" for step, index in ((0, 0), (0, 1), (1, 0))),
        *(f"block {step}.{index} of stream 2" for step, index in ((1, 1), (2, 0), (2, 1))),
        *(f"block {step}.{index} of stream 3" for step in (3, 4) for index in range(2)),
    ]
    assert streams.starts == [0, 1, 2] and {1, 2} <= set(streams.closed)
    told = coordinator.status()
    assert told.restarts == 2 and len(told.notices) == 2
    assert told.notices[0].startswith("encoder timed out after ")
    assert told.notices[0].endswith("(timeouts.step=0.5); replaced it, from step 1")


def test_an_encoder_that_hangs_too_often_is_named(launch):
    streams = Streams({number: (0, 1) for number in range(1, 4)})
    coordinator = launch(streams, timeouts={"step": 0.3}, inference={"max_restarts": 2})
    attempt = coordinator.attach()
    message = r"^encoder timed out after \d+ s while encoding step 0 micro-batch 1 .*; restart"
    publish(coordinator, attempt, 0)
    with pytest.raises(DeadlineError, match=message):
        whole_share(coordinator, attempt, 0)
    assert streams.starts == [0, 0, 0]


def test_encoders_that_do_not_load_in_time_are_replaced_too(launch):
    def late(start: int, stop: int):
        opened.append(start)
        if len(opened) == 1:
            raise DeadlineError("encoder timed out: not loaded within 3 s")
        yield from stream(start, stop)

    opened: list[int] = []
    coordinator = launch(late)
    attempt = coordinator.attach()
    publish(coordinator, attempt, 0)
    assert fetched(coordinator, attempt, 0) == ["block 0.0", "block 0.1"]
    assert "not loaded within 3 s; replaced it" in coordinator.status().notices[0]


class Reference(str):
    """What a reference to an object is to whoever does not fetch it."""

    def hex(self) -> str:
        return str(self)


class OnePool:
    """A pool whose calls end as the test says."""

    def __init__(self) -> None:
        self.workers, self.events, self.lost_objects, self.calls = [], 0, set(), []
        self.lost: list[tuple[int, int]] = []

    def load(self, bundle, most) -> None:
        pass

    def free_worker(self, bundle) -> str:
        return "worker"

    def submit(self, worker, key, bundle, *inputs) -> None:
        self.calls.append((key, *inputs))

    def collect(self) -> tuple[list, list]:
        lost, self.lost = self.lost, []
        return [], lost

    def drain_spans(self) -> list:
        return []

    def reset(self) -> None:
        pass


def test_a_pool_whose_input_is_gone_waits_for_it_to_be_encoded_again():
    config = make_config("base", learner={"steps": STEPS, "global_batch": 4, "micro_batch": 2})
    pool, key = OnePool(), (0, 0)
    flow = Dispatcher(
        config, resolve_roles(config, 0.0), lambda step: PER_STEP, lambda *_: None, list
    )
    flow.pools = [pool]
    flow.rewind(0)
    flow.blocks.append((key, Reference("old")))
    bundles = {0: Bundle(0, {}, {}, 0)}
    assert flow.advance(0, bundles) and pool.calls == [(key, "old")]
    pool.lost, pool.lost_objects = [key], {"something else"}
    flow.collect()
    assert flow.advance(0, bundles) and pool.calls[1:] == [(key, "old")], "only generated again"
    pool.lost, pool.lost_objects = [key], {"old"}
    flow.collect()
    assert flow.missing == {key} and not flow.advance(0, bundles)
    flow.renew(key, Reference("new"))
    assert flow.advance(0, bundles) and pool.calls[2:] == [(key, "new")] and not flow.missing
