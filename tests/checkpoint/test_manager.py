"""The saver and a storage that is slow: what waits, what is left out, and what is told."""

from __future__ import annotations

import errno
import json
import math
import threading
import time

import pytest

from dopsd.checkpoint import manager, room
from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.folder import complete_steps, steps
from dopsd.checkpoint.manager import CheckpointManager
from dopsd.checkpoint.parts import CheckpointParts
from dopsd.checkpoint.room import RoomNeeded
from dopsd.errors import DeadlineError, LeaseLost, WorkerError
from dopsd.files import storage
from dopsd.ownership.lease import BEAT_SECONDS, LEASE, claimed
from dopsd.run_folder.files import REQUEST_FILE
from tests.helpers.parts import InProcessWriter
from tests.helpers.tiny import make_config

LEFT_OUT = "no checkpoint of step 4: the one before is still written"


@pytest.fixture
def storage_door(monkeypatch):
    """A storage that writes nothing until the door is open; and the steps that it has written."""
    door, written = threading.Event(), []

    def write(root, files, *, step, **said):
        assert door.wait(60)
        written.append(step)

    monkeypatch.setattr(manager, "write_checkpoint", write)
    monkeypatch.setattr(manager, "prune", lambda *arguments: ([], []))
    yield door, written
    door.set()


def saver_of(tmp_path, deadline: float = 60.0, lock=None) -> CheckpointManager:
    config = make_config(
        "base",
        run={"folder": str(tmp_path)},
        learner={"steps": 10, "global_batch": 4, "micro_batch": 2},
        checkpoint={"every_steps": 2},
        timeouts={"step": deadline},
    )
    lock_lost: list[LeaseLost] = []
    saver = CheckpointManager(config, RunIdentity(), lambda: None, lock, lock_lost.append)
    saver.heard = lock_lost
    return saver


@pytest.fixture(autouse=True)
def no_polls(monkeypatch):
    """Requests are looked for when a test says so."""
    monkeypatch.setitem(BEAT_SECONDS, False, 1e6)


def due_after_poll(saver: CheckpointManager, step: int) -> bool:
    saver.requests.poll()
    return saver.due(step)


def test_a_request_is_answered_by_one_checkpoint_that_began_after_it(storage_door, tmp_path):
    door, written = storage_door
    saver, request = saver_of(tmp_path), tmp_path / REQUEST_FILE
    saver.save(2, {}, ())  # under way before anybody asks
    request.touch()
    assert due_after_poll(saver, 3)
    door.set()
    assert saver.wait(60) and request.exists(), "step 2 is older than the request"
    door.clear()
    saver.save(3, {}, ())
    assert not due_after_poll(saver, 5), "its answer is being written"
    door.set()
    assert saver.wait(60) and written == [2, 3] and not request.exists()
    assert not due_after_poll(saver, 5)
    request.touch()
    assert due_after_poll(saver, 5), "and another one is heard"


def test_a_folder_that_another_driver_claims_is_written_no_more(
    storage_door, tmp_path, monkeypatch
):
    door, written = storage_door
    door.set()
    monkeypatch.setitem(BEAT_SECONDS, False, 0.01)
    with claimed(str(tmp_path), "run.folder") as lease:
        saver = saver_of(tmp_path, lock=lease)
        due_after_poll(saver, 1)
        saver.save(2, {}, ())
        assert saver.wait(60) and written == [2] and saver.heard == []
        path = tmp_path / LEASE
        other = json.dumps(json.loads(path.read_text()) | {"token": "another", "pid": 7})
        storage.write_bytes(str(path), other.encode())  # atomic: the heart reads at any moment
        due_after_poll(saver, 3)
        assert "was taken over by another process (process 7 on " in str(saver.heard[0])
        saver.save(4, {}, ())
        assert saver.wait(60) and written == [2] and len(saver.heard) > 1
        path.unlink()
        due_after_poll(saver, 5)
        assert "by another process that has ended" in str(saver.heard[-1])


def test_a_lease_that_is_lost_while_tensors_are_written_completes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(BEAT_SECONDS, False, 0.01)

    class Overtaken(InProcessWriter):
        def write(self, folder, refs):
            yield from super().write(folder, refs)
            path = tmp_path / LEASE
            other = json.dumps(json.loads(path.read_text()) | {"token": "another", "pid": 7})
            storage.write_bytes(str(path), other.encode())  # atomic, as above

    with claimed(str(tmp_path), "run.folder") as lease:
        saver = saver_of(tmp_path, lock=lease)
        parts = CheckpointParts(Overtaken(), {"student.safetensors": b"s"})
        saver.save(2, {}, (), parts)
        assert saver.wait(60)
        assert "taken over by another process (process 7" in str(saver.heard[0])
        assert saver.saved is None and complete_steps(saver.root) == []


def test_a_checkpoint_that_failed_leaves_room_for_the_next(tmp_path, monkeypatch):
    saver, honest = saver_of(tmp_path), storage.write_bytes

    def full(path: str, data: bytes, durable: bool = False) -> None:
        if path.endswith("two"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        honest(path, data, durable)

    monkeypatch.setattr(storage, "write_bytes", full)
    saver.save(2, {"one": b"1", "two": b"2"}, ())
    assert saver.wait(60) and "no checkpoint of step 2: OSError" in saver.notices[0]
    assert steps(saver.root) == []


def test_a_scheduled_checkpoint_is_left_out_while_the_one_before_is_written(storage_door, tmp_path):
    door, written = storage_door
    saver = saver_of(tmp_path)
    assert saver.due(2)
    saver.save(2, {}, ())
    assert not saver.due(3)
    assert not saver.due(4) and saver.notices == [LEFT_OUT]
    saver.save(4, {}, ())  # as when the write began between the two
    assert not saver.due(6) and saver.notices == [LEFT_OUT], "told once for each write"
    door.set()
    assert saver.wait(60) and written == [2]
    assert saver.due(8)
    saver.save(8, {}, ())
    assert saver.wait(60) and written == [2, 8] and saver.notices == [LEFT_OUT]


@pytest.mark.parametrize("asked", [False, True])
def test_the_last_one_and_one_asked_for_wait(storage_door, tmp_path, asked):
    door, written = storage_door
    saver = saver_of(tmp_path)
    saver.save(2, {}, ())
    step = 5 if asked else 10
    if asked:
        saver.requests.asked = True
    assert saver.due(step)
    threading.Timer(0.3, door.set).start()
    saver.save(step, {}, ())
    assert saver.wait(60) and written == [2, step] and saver.notices == []


def test_too_little_room_is_told_once_while_it_can_be_mended(tmp_path, monkeypatch):
    saver = saver_of(tmp_path)
    saver._room = RoomNeeded(checkpoint=1, export=1000)
    free = [100]
    monkeypatch.setattr(room, "free_bytes", lambda path: free[0])
    for step in (2, 4):
        saver.save(step, {"student.safetensors": b"x" * 100}, (step,))
        saver.wait(60)
    assert saver.saved == 4 and len(saver.notices) == 1
    assert saver.notices[0].startswith(f"after step 2: {saver.root}: disk ")
    free[0] = 10**6
    saver.save(6, {}, (6,))
    saver.wait(60)
    free[0] = 100
    saver.save(8, {}, (8,))
    saver.wait(60)
    assert [line[:12] for line in saver.notices] == ["after step 2", "after step 8"]


def test_they_wait_no_longer_than_the_deadline(storage_door, tmp_path):
    saver = saver_of(tmp_path, deadline=0.2)
    (tmp_path / REQUEST_FILE).touch()
    assert saver.save(2, {}, ())
    assert not saver.save(10, {}, ())
    assert saver.notices == [
        "no checkpoint of step 10: the one before is not written after 0.2 s (timeouts.step)",
    ]
    with pytest.raises(DeadlineError, match=r"the last checkpoint is not written after 0\.2 s"):
        saver.end()


def test_two_who_save_at_once_write_one_after_the_other(storage_door, tmp_path):
    door, written = storage_door
    saver = saver_of(tmp_path)
    saver.save(2, {}, ())
    late = [threading.Thread(target=saver.save, args=(10, {}, ())) for _ in range(2)]
    for thread in late:
        thread.start()
    door.set()
    for thread in late:
        thread.join(60)
    assert saver.wait(60) and written == [2, 10, 10]


def test_who_has_to_wait_for_a_write_stops_when_nobody_wants_it(storage_door, tmp_path):
    door, written = storage_door
    saver, asked = saver_of(tmp_path), []
    saver.save(10, {}, ())
    assert not saver.settle(time.monotonic() + 1.2, lambda: asked.append("still wanted"))
    assert asked and not written, "no longer than it may take"

    def stale():
        raise WorkerError("stale attempt")

    with pytest.raises(WorkerError):
        saver.settle(math.inf, stale)
    waiting = threading.Thread(target=saver.settle, args=(math.inf, lambda: None), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    door.set()
    waiting.join(60)
    assert not waiting.is_alive() and written == [10]
