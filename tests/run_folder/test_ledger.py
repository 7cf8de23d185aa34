"""The ledger: what is written when, and which lines count after restarts."""

from __future__ import annotations

import json
import os
import resource
import threading

import pytest

from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.run_folder import jsonl as json_lines
from dopsd.run_folder.files import LEDGER_FILE, SKIPPED_FILE
from dopsd.run_folder.jsonl import JsonLines, part_names, read_lines
from dopsd.run_folder.ledger import Ledger, TrainedShare, effective


def share(rank: int, world: int, *ids: str, skipped: bool = False) -> TrainedShare:
    parts = {rank + world * place: (name,) for place, name in enumerate(ids)}
    return TrainedShare(rank, world, parts, 3, 3, skipped)


@pytest.fixture
def full_disk():
    """A way to say how long any file may become: what a full disk does to one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_cuts_no_line_and_what_it_refused_comes_later(tmp_path, full_disk):
    path = tmp_path / "lines.jsonl"
    lines = JsonLines(str(path))
    lines.append({"step": 0})
    full_disk(path.stat().st_size + 5)
    lines.append({"step": 1})
    lines.append({"step": 2})
    assert path.read_text() == '{"step": 0}\n'
    with pytest.raises(StorageError, match=r"lines.jsonl: File too large \(EFBIG\); disk /.* free"):
        lines.flush()
    assert path.read_text() == '{"step": 0}\n'
    full_disk(-1)
    lines.append({"step": 3})
    assert [entry["step"] for entry in read_lines(str(path))] == [0, 1, 2, 3]


DAMAGE = {
    "half a line": b'{"attempt": 1, "st',
    "NULs after a power cut": b"\0" * 5000,
    "no UTF-8": b'{"attempt": 1, "start": 0, "plan": "\xff\xfe"}',
    "an unknown kind": b'{"attempt": "one", "start": 0}',
    "a list": b"[1]",
    "nested": b"[" * 100_000,
    "5,000 digits": b'{"attempt": 1, "start": ' + b"9" * 5000 + b"}",
    "not a number": b'{"attempt": 1, "start": NaN}',
    "huge": b'{"attempt": 1, "start": 0, "plan": "' + b"x" * 2**24 + b'"}',
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_costs_that_line_and_the_file_as_it_was_is_kept(tmp_path, kind):
    path, aside = tmp_path / LEDGER_FILE, tmp_path / f"{LEDGER_FILE}.damaged"
    first = Ledger(str(tmp_path))
    first.begin(0)
    for step in range(4):
        first.add(step, share(0, 1, f"sample-{step}"))
    lines = path.read_bytes().splitlines()
    before = b"\n".join([*lines[:2], DAMAGE[kind], *lines[3:], b""])
    path.write_bytes(before)
    second = Ledger(str(tmp_path))
    assert aside.read_bytes() == before
    assert second.begin(3) == 2
    told = second.notices
    assert told[0].startswith(f"{path}: line 3 (") and str(aside) in told[0]
    assert len(told) == 2 and "no record of 1 step from 1 on" in told[1]
    assert all(len(line) < 500 for line in told)
    second.add(3, share(0, 1, "sample-3"))
    steps, twice = effective(read_lines(str(path)))
    assert sorted(steps) == [0, 2, 3] and twice == []
    assert Ledger(str(tmp_path)).notices == [], "once"


def test_damage_behind_the_checkpoint_costs_nothing(tmp_path):
    first = Ledger(str(tmp_path))
    first.begin(0)
    for step in range(3):
        first.add(step, share(0, 1, f"sample-{step}"))
    with (tmp_path / LEDGER_FILE).open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    second = Ledger(str(tmp_path))
    second.begin(3)
    assert len(second.notices) == 1, "no step is lost"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_moved_out_of_the_way(tmp_path, make):
    make(tmp_path / LEDGER_FILE)
    (tmp_path / f"{LEDGER_FILE}.damaged").touch()
    ledger = Ledger(str(tmp_path))
    assert ledger.begin(0) == 1 and len(ledger.notices) == 1
    assert (tmp_path / f"{LEDGER_FILE}.damaged-2").exists(), "nothing is replaced"
    assert len(read_lines(str(tmp_path / LEDGER_FILE))) == 1


def test_a_damaged_part_on_s3_is_set_aside(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "PART_BYTES", 100)
    path = f"{bucket}/{tmp_path.name}/lines.jsonl"
    lines = JsonLines(path)
    for step in range(20):
        lines.append({"step": step, "samples": "x" * 20})
    lines.flush()
    part = json_lines.part_path(path, 1)
    storage.write_bytes(part, b"\0\n" + storage.read_bytes(part))
    again = JsonLines(path)
    assert again.notices == [f"{part}: line 1 (no JSON); left out, as it was it is {part}.damaged"]
    again.append({"step": 20})
    again.flush()
    assert [entry["step"] for entry in read_lines(path)] == list(range(21))


def test_a_step_is_written_when_every_rank_has_told(tmp_path):
    ledger = Ledger(str(tmp_path))
    assert ledger.begin(0) == 1
    ledger.add(0, share(1, 2, "b"))
    ledger.add(0, share(1, 2, "b"))
    assert len(read_lines(str(tmp_path / LEDGER_FILE))) == 1
    ledger.add(0, share(0, 2, "a", "c"))
    line = read_lines(str(tmp_path / LEDGER_FILE))[1]
    assert line["micro_batches"] == [["a"], ["b"], ["c"]] and line["policy_version"] == 3


def test_another_process_goes_on_with_the_next_attempt(tmp_path):
    first = Ledger(str(tmp_path))
    first.begin(0)
    for step in range(3):
        first.add(step, share(0, 1, f"sample-{step}", skipped=step == 2))
    first.add(3, share(0, 2, "half"))
    second = Ledger(str(tmp_path))
    assert second.begin(2) == 2
    assert read_lines(str(tmp_path / SKIPPED_FILE)) == [], "step 2 is trained again"
    second.add(2, share(0, 1, "sample-2"))
    steps, twice = effective(read_lines(str(tmp_path / LEDGER_FILE)))
    assert [(step, line["attempt"]) for step, line in steps.items()] == [(0, 1), (1, 1), (2, 2)]
    assert twice == []


def test_an_attempt_whose_start_is_lost_replaces_what_came_before():
    lines = [{"attempt": 1, "start": 0}, {"attempt": 1, "step": 0}, {"attempt": 1, "step": 1}]
    steps, twice = effective([*lines, {"attempt": 2, "step": 0}])
    assert twice == [] and [(step, line["attempt"]) for step, line in steps.items()] == [(0, 2)]


def test_a_step_that_one_attempt_trains_twice_is_found():
    lines = [{"attempt": 1, "start": 0}, {"attempt": 1, "step": 0}, {"attempt": 1, "step": 0}]
    assert effective(lines)[1] == [0]


def test_json_lines_drop_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    lines = JsonLines(str(path))
    lines.append({"step": 2})
    assert [entry["step"] for entry in read_lines(str(path))] == [0, 1, 2]
    assert lines.keep(lambda entry: entry["step"] < 2) == [{"step": 0}, {"step": 1}]
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_json_lines_on_s3_are_there_after_a_flush(bucket, tmp_path):
    path = f"{bucket}/{tmp_path.name}/lines.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 0, "name": "é"})
    assert read_lines(path) == []
    lines.flush()
    again = JsonLines(path)
    again.append({"step": 1})
    again.flush()
    assert read_lines(path) == [{"step": 0, "name": "é"}, {"step": 1}]
    assert json.dumps(read_lines(path)[0])


def test_whoever_appends_does_not_wait_for_s3(bucket, tmp_path, monkeypatch):
    path = f"{bucket}/{tmp_path.name}/slow.jsonl"
    lines, answers, honest = JsonLines(path), threading.Event(), storage.write_bytes
    tries, asked = [], threading.Event()

    def slow(path: str, data: bytes) -> None:
        tries.append(data)
        asked.set()
        assert answers.wait(60)
        if len(tries) == 1:
            raise StorageError(f"{path}: slow down")
        honest(path, data)

    monkeypatch.setattr(storage, "write_bytes", slow)
    monkeypatch.setattr(json_lines, "_REMOTE_INTERVAL", 0.0)
    for step in range(3):
        lines.append({"step": step})
    assert asked.wait(60) and read_lines(path) == [], "and S3 has not answered yet"
    answers.set()
    lines.flush()  # waits for the one that is under way
    assert len(tries) == 2, "what S3 refused is written again"
    assert [entry["step"] for entry in read_lines(path)] == [0, 1, 2]


def test_what_is_uploaded_again_is_bounded(bucket, tmp_path, monkeypatch):
    path, honest, written = f"{bucket}/{tmp_path.name}/long.jsonl", storage.write_bytes, []

    def noted(path: str, data: bytes) -> None:
        written.append((path.rpartition("/")[2], len(data)))
        honest(path, data)

    monkeypatch.setattr(storage, "write_bytes", noted)
    monkeypatch.setattr(json_lines, "PART_BYTES", 200)
    lines = JsonLines(path)
    for step in range(60):
        lines.append({"step": step, "samples": "x" * 20})
        lines.flush()
    assert max(size for _, size in written) < 300, "the tail alone"
    assert len({name for name, _ in written}) > 5 and written[0][0] == "long.jsonl"
    assert [entry["step"] for entry in read_lines(path)] == list(range(60))
    lines.keep(lambda entry: entry["step"] < 31)
    lines.append({"step": 31})
    lines.flush()
    assert [entry["step"] for entry in read_lines(path)] == list(range(32))
    again = JsonLines(path)
    for step in range(32, 60):
        again.append({"step": step, "samples": "x" * 20})
    again.flush()  # many parts at once
    assert [entry["step"] for entry in read_lines(path)] == list(range(60))
    assert again.keep(lambda entry: False) == [] and read_lines(path) == []
    assert storage.names(f"{bucket}/{tmp_path.name}") == {"long.jsonl"}
    again.append({"step": 0})
    again.flush()
    assert read_lines(path) == [{"step": 0}]


def test_parts_of_a_file_are_told_from_its_neighbours():
    there = {"a-000010.jsonl", "a.jsonl", "a-000002.jsonl", "a-b.jsonl", "ba.jsonl", "a-1.jsonl"}
    assert part_names("a.jsonl", there) == ["a.jsonl", "a-000002.jsonl", "a-000010.jsonl"]
