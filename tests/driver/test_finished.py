"""A finished run that is resumed says so, and touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.config import dump_config, load_config
from dopsd.driver.setup.checks import finished_already


def finished(folder: Path, trained: int = 8) -> Path:
    folder.mkdir()
    config = load_config("shapes", [f"run.folder={folder}", "learner.steps=8"])
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "summary.json").write_text(json.dumps({"steps": trained}))
    return folder


def test_the_command_says_so_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path / "run")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert main(["train", "--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "this run is finished, all 8 steps are trained; nothing was changed" in said
    assert before == {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


@pytest.mark.parametrize(("steps", "is_done"), [(7, True), (8, True), (9, False)])
def test_more_steps_are_still_to_do(tmp_path: Path, steps: int, is_done: bool) -> None:
    folder = finished(tmp_path / "run")
    config = load_config(folder / "config.yaml", [f"learner.steps={steps}"])
    assert (finished_already(config) is not None) == is_done
    (folder / "summary.json").unlink()
    assert finished_already(config) is None
