"""Trainings beside each other: a failure is named, and what runs is finished."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dopsd.config import RunConfig
from dopsd.errors import DeadlineError, ModelError
from dopsd.experiments.reproduce.progress_board import ProgressBoard
from dopsd.experiments.reproduce.trainings import Training, Trainings, _hear
from dopsd.experiments.reproduce.variants import FULL, VARIANTS, Trial, config_of
from tests.helpers.trainings import stand_in


def config(folder: Path, name: str) -> RunConfig:
    made = config_of(Trial(VARIANTS[0], "bars", 0, 5e-4), FULL, str(folder)).model_dump()
    made["run"] |= {"name": name, "folder": str(folder / name)}
    return RunConfig.model_validate(made)


@pytest.mark.usefixtures("ray_cluster")
def test_after_a_failure_none_begins_and_those_that_run_are_finished(tmp_path: Path):
    configs = {name: config(tmp_path, name) for name in ("bad", "good", "later")}
    work = Trainings(configs, at_once=2, run=stand_in)
    seen: set[tuple[str, ...]] = set()

    def show() -> None:
        seen.add(tuple(each.name for each in work.running))
        if seen >= {("good",)}:
            (tmp_path / "failed").touch()

    with pytest.raises(ModelError, match=r"^bad: .*no_such_module"):
        work.train(show)
    assert ("good",) in seen and not any("later" in names for names in seen)
    assert [name for name, _ in work.done] == ["good"]
    assert {path.name for path in tmp_path.glob("begun-*")} == {"begun-bad", "begun-good"}
    assert (tmp_path / "good").is_dir() and "good: good begins" in work.lines


def test_a_training_that_falls_silent_is_late(tmp_path: Path):
    training = Training("bars-sft-s0", config(tmp_path, "run"), heard=time.monotonic() - 1801)
    _hear(training, 1, "train", 7)
    assert (training.phase, training.step) == ("train", 7)
    training.heard -= 1801
    silent = r"^bars-sft-s0 timed out: no progress within 1800 s; last: train, step 7$"
    with pytest.raises(DeadlineError, match=silent):
        _hear(training, 1, "train", 7)


def test_the_board_keeps_what_each_said_last_and_every_line():
    board = ProgressBoard()
    board.tell("a", "train", 1, ["slow"])
    board.tell("b", "prepare", 0, [])
    board.tell("a", "train", 2, [])
    assert board.read() == ({"a": (2, "train", 2), "b": (1, "prepare", 0)}, ["a: slow"])
