"""Metrics: one JSON line per step, roles' totals turned into shares of the step."""

import json

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
