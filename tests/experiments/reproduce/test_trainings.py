"""Trainings beside each other: a failure is named, and what runs is finished."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dopsd.config import RunConfig
from dopsd.errors import DeadlineError, ModelError
from dopsd.experiments.reproduce.progress_board import ProgressBoard
from dopsd.experiments.reproduce.trainings import Training, Trainings, _hear
from dopsd.experiments.reproduce.variants import FULL, VARIANTS, Trial, config_of


def config(folder: Path, name: str, steps: int = 1, targets: list[str] | None = None) -> RunConfig:
    budget = replace(FULL, steps=steps, batch=2, images=2)
    made = config_of(Trial(VARIANTS[0], "bars", 0, 5e-4), budget, str(folder)).model_dump()
    made["run"] |= {"name": name, "folder": str(folder / name)}
    made["data"] |= {"shards": str(folder / f"shards-{name}"), "prior": {}}
    made["lora"] |= {"targets": targets or "default"}
    return RunConfig.model_validate(made)


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_after_a_failure_none_begins_and_those_that_run_are_finished(tmp_path: Path):
    configs = {
        "bad": config(tmp_path, "bad", targets=["no_such_module"]),
        "good": config(tmp_path, "good"),
        "later": config(tmp_path, "later"),
    }
    work = Trainings(configs, at_once=2)
    seen: set[tuple[str, ...]] = set()
    with pytest.raises(ModelError, match=r"^bad: .*no_such_module"):
        work.train(lambda: seen.add(tuple(each.name for each in work.running)))
    assert ("good",) in seen and not any("later" in names for names in seen)
    assert [name for name, _ in work.done] == ["good"]
    assert (tmp_path / "good" / "lora.safetensors").exists()


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
