"""Rows of a benchmark that are there are not measured again, unless their settings changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dopsd.errors import ResourceError
from dopsd.experiments.benchmark import run
from dopsd.experiments.benchmark.run import ROWS, Measured, benchmark
from dopsd.experiments.benchmark.sizes import SIZES
from dopsd.experiments.benchmark.table import markdown

NAMES = [row["name"] for row in ROWS]


class Measure:
    """Takes the place of the runs themselves; the row ``fails`` ends as one whose log says why."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.fails = ""
        monkeypatch.setattr(run, "_run_to_end", lambda words, log: self.asked.append("prepare"))
        monkeypatch.setattr(run, "_measure", self)

    def __call__(self, row, config, size, path) -> Measured:
        if row["name"] == self.fails:
            raise ResourceError("benchmark: exit code 1")
        self.asked.append(row["name"])
        number = float(len(self.asked))
        roles = {"learner": 0.5}
        return Measured(row["name"], row["title"], 8, number, 1.0, 9.0, roles, roles, None, [0.25])


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    return Measure(monkeypatch)


def go(folder: Path, again: bool = False) -> str:
    return markdown(benchmark("tiny", str(folder), lambda line: None, again))


def test_a_row_that_failed_is_all_that_is_left_to_do(measure: Measure, tmp_path: Path) -> None:
    measure.fails = "lag0"
    with pytest.raises(ResourceError):
        go(tmp_path)
    measure.fails = ""
    table = go(tmp_path)
    assert measure.asked == ["prepare", "plain", "fused", "prepare", "lag0", "lag1"]
    assert go(tmp_path) == table and len(measure.asked) == 6
    assert [
        row["name"] for row in json.loads((tmp_path / run.RESULTS).read_text())["rows"]
    ] == NAMES


def test_rows_of_other_settings_or_when_asked_are_measured_anew(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path)
    go(tmp_path, again=True)
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], warm_up=3))
    go(tmp_path)
    assert measure.asked == ["prepare", *NAMES] * 3
