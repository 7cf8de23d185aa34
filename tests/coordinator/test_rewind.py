"""The coordinator rewound to a checkpoint, with real actors and learners that only publish."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import ray

from dopsd.checkpoint import manager
from dopsd.checkpoint.folder import complete_steps
from dopsd.checkpoint.learner_state import FILES
from dopsd.checkpoint.parts import CheckpointParts
from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.errors import WorkerError
from dopsd.files import storage
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.log import RunLog
from tests.coordinator.test_coordinator import (
    PER_STEP,
    STEPS,
    bundle_of,
    config_of,
    parameters,
    stream,
)
from tests.helpers.parts import InProcessWriter
from tests.helpers.shares import whole_share

__all__ = ["parameters"]
pytestmark = pytest.mark.usefixtures("ray_cluster")


def launched(config, restarts: int = 0) -> Coordinator:
    coordinator = Coordinator(
        config,
        resolve_roles(config, 0.0),
        stream,
        lambda step: PER_STEP,
        RunLog(config.run.folder),
        restarts=restarts,
    )
    coordinator.start()
    return coordinator


class Learners:
    """A group of learners of one rank: trains steps with made-up weights and saves when asked."""

    def __init__(self, coordinator: Coordinator, parameters) -> None:
        self.coordinator, self.parameters = coordinator, parameters
        self.attempt = coordinator.attach()
        entry = coordinator.enter(self.attempt, 0, None)
        self.step = entry.step
        self.files = {name: ray.get(box.ref) for name, box in entry.files.items()}
        self.results: dict = {}
        coordinator.publish(self.attempt, bundle_of(parameters, self.step))

    def train(self, stop: int, lose: tuple[int, int] | None = None) -> None:
        for step in range(self.step, stop):
            boxes = whole_share(self.coordinator, self.attempt, step)
            for index in range(PER_STEP):
                if (step, index) == lose:
                    gone = boxes[index]
                    for _ in range(2):  # told twice, it counts once
                        self.coordinator.lost(self.attempt, step, index, gone.losses)
                    boxes = whole_share(self.coordinator, self.attempt, step)
                    assert boxes[index].ref != gone.ref and boxes[index].losses == 1
                self.results[(step, index)] = ray.get(boxes[index].ref)
            ids = {index: (f"sample-{step}-{index}",) for index in range(PER_STEP)}
            self.coordinator.record(self.attempt, step, TrainedShare(0, 1, ids, step, step, False))
            wish = self.coordinator.publish(self.attempt, bundle_of(self.parameters, step + 1))
            self.coordinator.report(self.attempt, step, {"loss": 1.0, "encoder_seconds": 0.0})
            if wish.save:
                files = {
                    name: ObjectRefBox(ray.put(f"{name} {step + 1}".encode()), True)
                    for name in FILES
                }
                self.coordinator.save(self.attempt, step + 1, files)
        self.step = stop


def lines(config, name: str) -> list[dict]:
    return [json.loads(line) for line in (Path(config.run.folder) / name).read_text().splitlines()]


@pytest.mark.integration
def test_new_learners_go_on_from_the_checkpoint_and_nothing_changes(
    tiny_base, parameters, tmp_path
):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    lag, section = 2, {"every_steps": 3}
    whole = config_of(tiny_base, tmp_path / "whole", lag=lag, checkpoint=section)
    coordinator = launched(whole)
    try:
        undisturbed = Learners(coordinator, parameters)
        undisturbed.train(STEPS)
        assert coordinator.checkpoints.saved == STEPS, "before the export begins"
    finally:
        assert coordinator.stop() == []
    assert complete_steps(str(tmp_path / "whole" / "checkpoints")) == [3, STEPS]

    cut = config_of(tiny_base, tmp_path / "cut", lag=lag, checkpoint=section)
    cut.learner.restart_backoff_s = 0.0
    coordinator = launched(cut)
    try:
        first = Learners(coordinator, parameters)
        assert first.files == {} and first.step == 0
        first.train(4)
        second = Learners(coordinator, parameters)
        assert second.step == 3 and second.files[FILES[0]] == b"student.safetensors 3"
        with pytest.raises(WorkerError, match=r"stale attempt 1 \(current: 2\)"):
            whole_share(first.coordinator, first.attempt, 4)
        second.train(4)
        # And another coordinator, as when the first has died.
        coordinator.stop()
        coordinator = launched(cut, restarts=1)
        third = Learners(coordinator, parameters)
        assert (third.attempt, third.step) == (3, 3)
        third.train(STEPS, lose=(4, 1))
        assert coordinator.status().counts.trained == PER_STEP * (STEPS - 3)
    finally:
        coordinator.stop()
    assert undisturbed.results == first.results | second.results | third.results
    assert [line["step"] for line in lines(cut, "metrics.jsonl")] == list(range(STEPS))
    started = [
        (line["attempt"], line["start"]) for line in lines(cut, "ledger.jsonl") if "start" in line
    ]
    assert started == [(1, 0), (2, 3), (3, 3)]


def test_restarts_are_counted_and_a_torn_checkpoint_is_told(tiny_base, parameters, tmp_path):
    config = config_of(tiny_base, tmp_path, checkpoint={"every_steps": 1})
    config.learner.restarts, config.learner.restart_backoff_s = 1, 0.0
    coordinator = launched(config)
    try:
        first = Learners(coordinator, parameters)
        for stop in (1, 2):  # or the second is left out while the first is written
            first.train(stop)
            coordinator.checkpoints.wait()
        # The first to say so tells more than those that die of its end.
        coordinator.record_death(first.attempt, 1, "OutOfMemoryError: CUDA\nout of memory")
        coordinator.record_death(first.attempt, 0, "RuntimeError: connection closed by peer")
        storage.write_bytes(str(tmp_path / "checkpoints/step-000002/ema.safetensors"), b"torn")
        assert Learners(coordinator, parameters).step == 1
        told = coordinator.status().notices
        assert "step-000002/ema.safetensors: 4 bytes, the manifest says" in told[0]
        died = "learners failed (learner 1: OutOfMemoryError: CUDA out of memory)"
        assert told[1] == f"{died}: attempt 2 resumed from step 1"
        with pytest.raises(WorkerError, match="stale attempt 1"):
            coordinator.record_death(first.attempt, 0, "late")
        coordinator.record_death(2, 0, "KeyError: 'x'")
        spent = r"failed again \(learner 0: KeyError: 'x'\); restart budget exhausted"
        with pytest.raises(WorkerError, match=spent):
            coordinator.attach()
        assert coordinator.error() is not None
    finally:
        coordinator.stop()


@pytest.mark.parametrize("end", [True, False])
def test_the_last_buckets_are_written_before_their_learner_ends(
    end, tiny_base, tmp_path, monkeypatch
):
    door, written = threading.Event(), []

    def write(root, files, *, step, parts, **said):
        assert door.wait(60)
        written.append((step, dict(parts.large)))

    monkeypatch.setattr(manager, "write_checkpoint", write)
    monkeypatch.setattr(manager, "prune", lambda *arguments: None)
    made = {}, (1,), CheckpointParts(InProcessWriter(), large={"bucket": b"weights"})
    monkeypatch.setattr("dopsd.coordinator.coordinator.checkpoint_files", lambda *_: made)
    config = config_of(tiny_base, tmp_path)
    roles = resolve_roles(config, 0.0)
    log = RunLog(config.run.folder)
    coordinator = Coordinator(config, roles, stream, lambda step: PER_STEP, log)
    coordinator.ask_checkpoint(end=end)
    thread = threading.Thread(target=coordinator.save, args=(0, 1, {}))
    thread.start()
    thread.join(1.5)
    assert thread.is_alive() == end, "training goes on while another one is written"
    door.set()
    thread.join(60)
    assert coordinator.checkpoints.wait(60) and written == [(1, {"bucket": b"weights"})]


def test_a_checkpoint_on_request_and_its_end(tiny_base, parameters, tmp_path):
    config = config_of(tiny_base, tmp_path)
    coordinator = launched(config)
    try:
        learners = Learners(coordinator, parameters)
        learners.train(1)
        (tmp_path / "checkpoint.request").touch()
        coordinator.checkpoints.requests.poll()
        learners.train(2)
        coordinator.checkpoints.wait()
        assert complete_steps(str(tmp_path / "checkpoints")) == [2]
        assert not (tmp_path / "checkpoint.request").exists()
        coordinator.ask_checkpoint(end=True)
        wish = coordinator.publish(learners.attempt, bundle_of(parameters, 2))
        assert wish.save and wish.stop
    finally:
        coordinator.stop()
