"""Files that are nice to have and a storage that does not answer."""

from __future__ import annotations

import threading

from dopsd.files import storage
from dopsd.run_folder import best_effort as extras
from dopsd.run_folder.best_effort import BestEffortWriter


def test_a_storage_that_hangs_delays_nobody_and_what_is_missing_is_told(monkeypatch):
    begun, door, written = threading.Event(), threading.Event(), []

    def write(path: str, payload: bytes) -> None:
        begun.set()
        assert door.wait(60)
        written.append(path)

    monkeypatch.setattr(storage, "write_bytes", write)
    monkeypatch.setattr(extras, "_AHEAD", 2)
    files = BestEffortWriter("s3://bucket/run")
    files.write("debug/0", b"")
    assert begun.wait(60)
    for number in range(1, 4):  # the last finds no place
        files.write(f"debug/{number}", b"")
    files.wait(0.1)
    (told,) = files.notices
    assert told.startswith(
        "debug: 4 files not written; first debug/3: the storage is too far behind"
    )
    door.set()
    files.wait(60)
    assert written == [f"s3://bucket/run/debug/{number}" for number in range(3)]
