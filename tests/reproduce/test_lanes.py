"""Trainings beside each other: the first that fails is named, and takes the others along."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dopsd.config import RunConfig
from dopsd.errors import LateError, ModelError
from dopsd.reproduce.lanes import Board, Lane, Lanes, _hear
from dopsd.reproduce.variants import FULL, NEEDS_ALL, VARIANTS, Trial, config_of
from dopsd.runtime.claim import CLAIM_FILE


def config(folder: Path, name: str, steps: int = 1, targets: list[str] | None = None) -> RunConfig:
    budget = replace(FULL, steps=steps, batch=2, images=2)
    made = config_of(Trial(VARIANTS[0], "bars", 0), budget, str(folder)).model_dump()
    made["run"] |= {"name": name, "folder": str(folder / name)}
    made["data"] |= {"shards": str(folder / f"shards-{name}"), "prior": {}}
    made["lora"] |= {"targets": targets or "default"}
    return RunConfig.model_validate(made)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_failure_is_named_and_ends_the_others(tmp_path: Path):
    configs = {
        "long": config(tmp_path, "long", steps=100_000),
        "short": config(tmp_path, "short"),
        "bad": config(tmp_path, "bad", targets=["no_such_module"]),
    }
    work = Lanes(configs, lanes=2)
    seen: set[tuple[str, ...]] = set()
    with pytest.raises(ModelError, match=r"^bad: .*no_such_module"):
        work.train(lambda: seen.add(tuple(lane.name for lane in work.running)))
    assert {("long", "short")} <= seen <= {("long", "short"), ("long", "bad"), ("long",)}
    assert [name for name, _ in work.done] == ["short"]
    assert (tmp_path / "short" / "lora.safetensors").exists()
    # It was not left to train on: its driver gave the folder back, as after Ctrl-C.
    assert (tmp_path / "long" / "config.yaml").exists()
    assert not (tmp_path / "long" / CLAIM_FILE).exists()


def test_a_training_that_falls_silent_is_late(tmp_path: Path):
    lane = Lane("bars-sft-s0", config(tmp_path, "run"), heard=time.monotonic() - 1801)
    _hear(lane, 1, "train", 7)
    assert (lane.phase, lane.step) == ("train", 7) and time.monotonic() - lane.heard < 60
    lane.heard -= 1801
    silent = r"^bars-sft-s0 is late: nothing was heard of it for 1800 s; last: train, step 7$"
    with pytest.raises(LateError, match=silent):
        _hear(lane, 1, "train", 7)


def test_the_board_keeps_what_each_said_last_and_every_notice():
    board = Board()
    board.tell("a", "train", 1, ["slow"])
    board.tell("b", "prepare", 0, [])
    board.tell("a", "train", 2, [])
    assert board.read() == ({"a": (2, "train", 2), "b": (1, "prepare", 0)}, ["a: slow"])


def test_what_is_encoded_once_serves_every_variant():
    everything = config_of(Trial(NEEDS_ALL, "bars", 0), FULL, "runs/x")
    assert everything.method.needs_targets and everything.method.objective != "sft"
