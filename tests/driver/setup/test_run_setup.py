"""What one command refuses of a config, every command refuses: in the same line, without Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from dopsd.cli.main import main
from dopsd.config import load_config
from dopsd.data.manifest import MANIFEST
from dopsd.driver.setup import run_setup
from dopsd.driver.setup.run_setup import CheckedRun, RunSetup
from dopsd.errors import ConfigError, DataError
from dopsd.files import storage

COMMANDS = (["train"], ["preflight"], ["prepare"], ["prepare", "--cache-contexts"])


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("driver.setup.run_setup", "evaluation.run"):
        monkeypatch.setattr(f"dopsd.{module}.connect", lambda: pytest.fail("a cluster started"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["learner.deepspeed=zero9"], "learner.deepspeed: 'zero9', allowed: zero1"),
        (["trackers=[mlflow]"], "trackers: mlflow"),
        (["model.base=./gone"], "model.base: './gone' is no folder"),
        (["model.vlm=./gone"], "model.vlm: './gone' is no folder"),
        (["model.attention=flashy"], "model.attention: 'flashy', allowed: "),
        (["model.attention=flash_hub"], "model.attention: 'flash_hub' cannot be used here: "),
        (
            ["preflight.mode=strict", "preflight.metric=dino", "preflight.model={tmp}"],
            "dino: {tmp} has no config.json",
        ),
        (["lora.dora=true", "learner.deepspeed=zero3"], "lora.dora: true with ZeRO stage 3"),
        (["lora.targets=[nowhere]"], "lora.targets: "),
        (["data.prior.prompts={tmp}/gone.txt"], "prompts {tmp}/gone.txt: no such file"),
        (["run.folder={tmp}/file/run"], "run.folder: {tmp}/file/run cannot be made, {tmp}/file is"),
        (["data.shards={tmp}/file/shards"], "data.shards: {tmp}/file/shards cannot be made"),
        (["data.pixel_area=1048576"], "image of 1024x1024 pixels: this base has positions for 256"),
        (["data.bucket_multiple=3"], "image of 33x33 pixels: this base allows multiples of 4"),
        (["lora.rank=400"], "lora.rank: 400, allowed: at most "),
        (["context.text_tokens=8"], "context.text_tokens: 8, but the chat template alone takes 8"),
        (["context.text_tokens=4096"], "context.text_tokens: 4096, allowed: at most 2048"),
        (
            ["context.image_max_pixels=1048576", "context.image_min_pixels=1048576"],
            "context.image_text_tokens: 224 are read, but template and an image (context.image_max",
        ),
        (["data.source={tmp}/gone"], "data.source: {tmp}/gone: no such folder, .jsonl, .csv"),
        (["data.source=null", "data.shards={tmp}/gone"], "data.source: missing, and data.shards ("),
    ],
)
def test_every_command_refuses_in_the_same_line(
    command: list[str],
    overrides: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "mlflow" else known(n))
    words = [f"run.folder={tmp_path}/run", *(word.format(tmp=tmp_path) for word in overrides)]
    assert main([*command, "shapes", *words]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith(f"dopsd: {line.format(tmp=tmp_path)}")


@pytest.mark.parametrize("command", COMMANDS[:2], ids=" ".join)
def test_a_worker_that_this_machine_cannot_hold(command, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = [f"run.folder={tmp_path}/run", "learner.cpus=5000"]
    assert main([*command, "shapes", *words]) == 1
    assert "dopsd: learner.cpus: 5000, allowed: at most " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--base", "./gone", "--prompts", "shapes:bars"], "base: './gone' is no folder"),
        (
            ["--out", "{tmp}/file/out"],
            "out: {tmp}/file/out cannot be made, {tmp}/file is no folder",
        ),
        (["--lora", "{tmp}/gone.safetensors"], "{tmp}/gone.safetensors: no such LoRA file"),
    ],
)
def test_evaluate_refuses_before_prompts_are_written(
    options: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("dopsd.api.pictures._prompts", lambda *_: pytest.fail("prompts"))
    words = [word.format(tmp=tmp_path) for word in options]
    assert main(["evaluate", *words]) == 1
    assert capsys.readouterr().err.startswith(f"dopsd: {line.format(tmp=tmp_path)}")


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    storage.check_writable("run.folder", str(tmp_path / "new" / "run"))
    storage.check_writable("run.folder", "s3://bucket/nowhere")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^run.folder: .* is no folder; allowed: a folder that"):
        storage.check_writable("run.folder", str(tmp_path / "file" / "run"))


def test_the_old_flag_is_refused_with_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "shapes", "--encode"]) == 1
    assert capsys.readouterr().err == "dopsd: --encode: unknown, did you mean --cache-contexts?\n"


def test_data_that_is_there_is_refused_before_the_run_waits_for_a_turn(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise DataError("a caption")

    monkeypatch.setattr(run_setup, "has_shards", lambda config: True)
    monkeypatch.setattr(run_setup, "check_masks", lambda *_: None)
    monkeypatch.setattr(run_setup, "check_captions", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    config = load_config("shapes", [])
    run = CheckedRun(config, {}, {}, None)
    with pytest.raises(DataError, match="a caption"):
        RunSetup.open(run, lambda *_: None, None, run_setup.no_roles, lambda *_: None)


def test_masks_of_shards_that_are_there_are_judged_once_and_before_the_cluster(monkeypatch) -> None:
    monkeypatch.setattr(run_setup, "has_shards", lambda config: True)
    monkeypatch.setattr(run_setup, "check_captions", lambda *_: None)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    run = CheckedRun(load_config("shapes", ["data.masks=true"]), {}, {}, None)
    data = SimpleNamespace(masks=2, samples=3, fingerprint="x")
    with pytest.raises(ConfigError, match="2 of 3 samples have a mask"):
        RunSetup.open(run, lambda *_: None, None, run_setup.no_roles, lambda *_: data)


def test_shards_that_are_there_may_lie_where_nothing_can_be_written(tmp_path, monkeypatch) -> None:
    class Through(Exception):
        pass

    def through(config: object) -> None:
        raise Through

    asked: list[str] = []
    monkeypatch.setattr(storage, "check_writable", lambda key, folder: asked.append(key))
    monkeypatch.setattr(run_setup, "check_folders", through)
    config = load_config("shapes", [f"run.folder={tmp_path}/run", f"data.shards={tmp_path}"])
    told: list[list[str]] = []
    for anew in (False, False, True):
        asked.clear()
        with pytest.raises(Through):
            run_setup.check_run(config, lambda *_: None, anew=anew)
        told.append(list(asked))
        (tmp_path / MANIFEST).touch()
    both = ["run.folder", "data.shards"]
    assert told == [both, ["run.folder"], both]
