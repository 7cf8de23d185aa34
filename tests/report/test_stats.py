"""`dopsd stats`: medians of runs side by side."""

import json

import pytest

from dopsd.errors import DataError
from dopsd.report.stats import stats_table


def write_run(folder, lag, idle):
    folder.mkdir()
    summary = {"seconds": 100.4, "seconds_to_first_step": 20.2, "steps": 6, "max_policy_lag": lag}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {
            "step": step,
            "wall_seconds": 30.0 if step == 0 else float(step),
            "rollout_seconds": 0.5,
            "rollout_peak_memory_mb": 400.0 + step,
            "learner_idle_fraction": idle,
        }
        for step in range(6)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def test_medians_after_the_warm_up_side_by_side(tmp_path):
    runs = [write_run(tmp_path / "a", 0, 0.5), write_run(tmp_path / "b", 1, 0.125)]
    rows = dict(
        (cells[1].strip(), [cell.strip() for cell in cells[2:4]])
        for cells in (line.split("|") for line in stats_table(runs).splitlines())
    )
    assert rows[""] == runs
    assert rows["seconds to the end"] == ["100", "100"]
    assert rows["max_policy_lag"] == ["0", "1"]
    assert rows["seconds per step"] == ["4.00", "4.00"], "the first three steps do not count"
    assert rows["learner: idle fraction"] == ["0.50", "0.12"]
    assert rows["rollout: peak memory, MB per process"] == ["405", "405"]


def test_a_folder_that_is_no_finished_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"summary.json: missing; allowed: the folder of a fin"):
        stats_table([str(tmp_path)])
