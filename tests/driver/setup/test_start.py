"""Start or resume: what a run does about what its folder holds, row by row of the table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from dopsd.checkpoint.folder import MANIFEST, write_checkpoint
from dopsd.checkpoint.learner_state import FILES
from dopsd.cli.main import main
from dopsd.config import RunConfig, dump_config
from dopsd.config.load import shown_values
from dopsd.data.manifest import save_manifest
from dopsd.driver.setup.start import decide
from dopsd.driver.summary import Summary
from dopsd.errors import CheckpointError, ConfigError, DataError
from dopsd.files import storage
from dopsd.files.seal import sealed, unsealed
from dopsd.run_folder.files import SUMMARY_FILE, RunFolder
from tests.data.test_manifest import example
from tests.helpers.runs import write_images
from tests.helpers.tiny import make_config


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run"


def config_of(folder: str, **learner: Any) -> RunConfig:
    """Fused: its checkpoints hold no published weights."""
    learner = {"steps": 8, "schedule": "constant", **learner}
    return make_config("base", run={"folder": folder}, source="fused", learner=learner)


def begun(folder: str, **learner: Any) -> RunConfig:
    """A run that has written its config, and nothing more."""
    config = config_of(folder, **learner)
    RunFolder(folder).write("config.yaml", dump_config(config).encode())
    return config


def saved(config: RunConfig, step: int) -> str:
    """With a checkpoint of ``step``; returns its folder."""
    return write_checkpoint(
        RunFolder(config.run.folder).checkpoints,
        dict.fromkeys(FILES, b"weights"),
        step=step,
        policy_versions=(),
        config=shown_values(config),
        data="f",
        plan="p",
        learners=1,
    )


def finished(folder: str, page: str | None = "page") -> RunConfig:
    config = begun(folder)
    summary = Summary(folder, "lora", None, page, 8, 60.0, 9.0, 0, 0.5, 0.25)
    RunFolder(folder).write(SUMMARY_FILE, json.dumps(asdict(summary)).encode())
    return config


def test_nothing_there_begins(folder):
    assert decide(config_of(folder), "never") == "begin"
    assert decide(config_of(folder), "auto") == "begin"
    with pytest.raises(ConfigError, match=r"^run.resume: require, but .* holds no run; allowed: "):
        decide(config_of(folder), "require")


def test_an_unfinished_run_goes_on_from_what_is_saved(folder):
    config = begun(folder)
    saved(config, 4)
    assert decide(config, "auto") == decide(config, "require") == "go on"
    with pytest.raises(ConfigError, match="holds a run already"):
        decide(config, "never")
    # Whatever does not change what is computed may be another one.
    assert decide(config_of(folder, workers=1, steps=20), "auto") == "go on"


def test_a_finished_run_is_left_alone_and_never_begun_anew(folder):
    said: list[str] = []
    config = finished(folder)  # without a checkpoint: it was removed to save room
    assert decide(config, "require", tell=said.append) == "finished"
    assert "this run is finished, all 8 steps are trained" in said[0]
    assert decide(config, "auto") == "finished"
    with pytest.raises(CheckpointError, match="no good checkpoint of the finished run to train on"):
        decide(config_of(folder, steps=20), "auto")
    with pytest.raises(ConfigError, match=r"--overwrite with run.resume: auto, allowed: "):
        decide(config, "auto", replace=True)


def test_an_unfinished_run_without_a_checkpoint_begins_anew(folder):
    said: list[str] = []
    config = begun(folder)
    assert decide(config, "auto", tell=said.append) == "begin"
    assert len(said) == 1 and "no checkpoint yet: it begins anew, its shards stay" in said[0]
    with pytest.raises(CheckpointError, match=r"no checkpoint, nothing to resume; allowed: run.re"):
        decide(config, "require")
    path = saved(config, 4)
    storage.remove(f"{path}/{MANIFEST}")  # torn: it was being written
    assert decide(config, "auto") == "begin"


def test_a_damaged_checkpoint_is_none(folder):
    config = begun(folder)
    storage.write_bytes(f"{saved(config, 4)}/{FILES[0]}", b"wEights")
    assert decide(config, "auto") == "begin"
    saved(config, 2)
    assert decide(config, "auto") == "go on"


def test_another_config_is_refused_and_nothing_is_lost(folder):
    saved(begun(folder), 4)
    with pytest.raises(CheckpointError, match=r"learner.lr: 0.1, the checkpoint has "):
        decide(config_of(folder, lr=0.1), "auto")


def test_what_another_dopsd_saved_is_not_begun_anew(folder):
    config = begun(folder)
    path = f"{saved(config, 4)}/{MANIFEST}"
    values = unsealed(json.loads(storage.read_bytes(path))) | {"format_version": 3}
    storage.write_bytes(path, sealed(values))
    with pytest.raises(CheckpointError, match=r"format_version: 3, .* that wrote it"):
        decide(config, "auto")


def test_a_finished_run_is_left_alone(folder):
    config = finished(folder)
    said: list[str] = []
    assert decide(config, "auto", tell=said.append) == "finished"
    assert said == [f"The run in {folder} is finished: nothing is trained now"]
    config.run.overwrite = True  # as recipes have it
    assert decide(config, "auto") == "finished"
    assert decide(config, "never") == "begin"


def test_a_finished_run_that_is_asked_for_more_goes_on(folder):
    saved(finished(folder), 8)
    assert decide(config_of(folder, steps=9), "auto") == "go on"


def test_a_finished_run_is_not_taken_for_another(folder):
    finished(folder)
    for learner, key in (({"lr": 0.1}, "learner.lr: 0.1"), ({"steps": 7}, "learner.steps: 7")):
        with pytest.raises(ConfigError, match=rf"^{key}, the finished run in .* has "):
            decide(config_of(folder, **learner), "auto")
    save_manifest(f"{folder}/shards", example())
    with pytest.raises(DataError, match=r"^data.source: .*unused, but .* was prepared from"):
        decide(config_of(folder), "auto")


def test_a_run_that_was_killed_behind_its_export_says_what_is_missing(folder):
    finished(folder, page=None)
    assert Summary.read(folder).problems == [f"no run page; dopsd report {folder} writes it"]


def test_the_command_ends_well_where_nothing_is_left_to_do(
    tmp_path, tiny_base, capsys, monkeypatch
):
    """`dopsd train --resume-if-there`, a second time: the summary, and no cluster."""
    monkeypatch.setattr(
        "dopsd.driver.setup.run_setup.connect", lambda: pytest.fail("a cluster started")
    )
    folder = str(tmp_path / "run")
    config = finished(folder)
    config.model.base = str(tiny_base)
    config.data.source = str(write_images(tmp_path / "images", [(32, 32)]))
    config.data.pixel_area, config.data.bucket_multiple = 1024, 8
    file = tmp_path / "config.yaml"
    for path in (file, tmp_path / "run" / "config.yaml"):
        path.write_text(dump_config(config))
    assert main(["train", str(file), "--resume-if-there"]) == 0
    said = capsys.readouterr().out
    assert "is finished: nothing is trained now" in said
    assert "Done: 8 steps in 1:00 (first step after 0:09); loss 0.5000 -> 0.2500" in said
    assert main(["train", str(file), "run.resume=auto"]) == 0


@pytest.mark.parametrize("other", [["--resume", "x"], ["--overwrite"]])
def test_two_ways_at_once_are_refused(other, capsys):
    assert main(["train", "shapes", "--resume-if-there", *other]) == 1
    assert "--resume-if-there" in capsys.readouterr().err
