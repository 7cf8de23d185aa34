"""Metrics: one JSON line per step, roles' totals turned into shares of the step."""

import json
import os

import pytest

from dopsd.run_folder.log import RunLog


def test_lines_hold_each_steps_share(tmp_path):
    log = RunLog(str(tmp_path))
    log.step(0, {"loss": 1.0, "rollout_busy_seconds": 3.0}, {"rollout": 2})
    log.step(1, {"loss": 0.5, "rollout_busy_seconds": 3.5}, {"rollout": 2})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert [line["rollout_seconds"] for line in lines] == [3.0, 0.5]
    assert all(0.0 <= line["rollout_idle_fraction"] <= 1.0 for line in lines)
    assert "rollout_busy_seconds" not in lines[0]
    assert log.latest == lines[1]
    assert log.losses() == (1.0, 0.5), "of different steps"


SPAN = {"lane": "learner-0", "task": "train", "step": 0, "start": 0.0, "end": 1.0}
DAMAGE = {
    "timeline.jsonl": [{"colour": "red"}, {"end": 1e300}, {"step": "0"}, {"count": 0}],
    "metrics.jsonl": [{"loss": [1.0]}, {"step": -1}, {"step": None}, {"loss": 10**400}],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_lines_are_left_out_with_one_notice(tmp_path, name):
    good = SPAN if name == "timeline.jsonl" else {"step": 0, "loss": 1.0, "skipped": False}
    bad = [json.dumps(good | change).encode() for change in DAMAGE[name]]
    lines = [json.dumps(good).encode(), *bad, b"\0" * 100, b"\xff{}", b'{"step": 1']
    before = b"\n".join([*lines, json.dumps(good | {"step": 1}).encode(), b""])
    (tmp_path / name).write_bytes(before)
    log = RunLog(str(tmp_path))
    log.rewind(2)
    assert len(log.notices) == 1 and f"{tmp_path / name}: line 2 (" in log.notices[0]
    assert "and 2 more" in log.notices[0] and len(log.notices[0]) < 500
    assert (tmp_path / f"{name}.damaged").read_bytes() == before
    log.flush()
    kept = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert [entry["step"] for entry in kept] == [0, 1]
    assert RunLog(str(tmp_path)).notices == []


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_moved_out_of_the_way(tmp_path, make, name):
    make(tmp_path / name)
    log = RunLog(str(tmp_path))
    assert len(log.notices) == 1 and f"set aside as {tmp_path / name}.damaged" in log.notices[0]
    log.step(0, {"loss": 1.0}, {})
    log.flush()
    assert (tmp_path / name).is_file()
