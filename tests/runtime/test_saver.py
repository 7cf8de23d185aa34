"""The saver and a storage that is slow: what waits, what is left out, and what is told."""

from __future__ import annotations

import threading

import pytest

from dopsd import checkpoint
from dopsd.errors import LateError
from dopsd.runtime.config_drift import Identity
from dopsd.runtime.saver import REQUEST_FILE, Saver
from tests.tiny import make_config

LEFT_OUT = "no checkpoint of step 4: the one before is still written"


@pytest.fixture
def storage_door(monkeypatch):
    """A storage that writes nothing until the door is open; and the steps that it has written."""
    door, written = threading.Event(), []

    def write(root, files, *, step, **said):
        assert door.wait(60)
        written.append(step)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    monkeypatch.setattr(checkpoint, "prune", lambda *arguments: None)
    yield door, written
    door.set()


def saver_of(tmp_path, deadline: float = 60.0) -> Saver:
    config = make_config(
        "base",
        run={"folder": str(tmp_path)},
        learner={"steps": 10, "global_batch": 4, "micro_batch": 2},
        checkpoint={"every_steps": 2},
        deadline={"step": deadline},
    )
    saver = Saver(config, Identity(), lambda: None)
    saver._look = lambda: None  # Ray is not asked for nodes that go away
    return saver


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
        saver.ask()
    assert saver.due(step)
    threading.Timer(0.3, door.set).start()
    saver.save(step, {}, ())
    assert saver.wait(60) and written == [2, step] and saver.notices == []


def test_they_wait_no_longer_than_the_deadline(storage_door, tmp_path):
    saver = saver_of(tmp_path, deadline=0.2)
    (tmp_path / REQUEST_FILE).touch()
    saver.save(2, {}, ())
    saver.save(10, {}, ())
    assert saver.notices == [
        "no checkpoint of step 10: the one before is not written after 0.2 s",
    ]
    with pytest.raises(LateError, match=r"the last checkpoint is not written after 0\.2 s"):
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
