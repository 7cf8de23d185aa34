"""dopsd train --resume, --overwrite, checkpoint and verify: what is refused, and how."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.cli.run.train import resumed_config
from dopsd.config import dump_config, load_config
from dopsd.data.manifest import save_manifest
from dopsd.data.run_data import prepared
from dopsd.driver.setup.checks import refuse_existing, what_is_saved
from dopsd.errors import ConfigError, DataError
from tests.checkpoint.test_folder import write
from tests.data.test_manifest import example


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run that was cut off after step 4."""
    config = load_config("configs/shapes.yaml", [f"run.folder={tmp_path}", "learner.lr=1e-3"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    write(str(tmp_path / "checkpoints"), 4)
    return tmp_path


def test_a_run_is_resumed_under_its_own_config(folder):
    run = resumed_config(str(folder), "rollout.workers=3", ["learner.workers=1"])
    assert (run.learner.lr, run.rollout.workers, run.learner.workers) == (1e-3, 3, 1)
    given = resumed_config(str(folder), "configs/shapes.yaml", None)
    assert given.learner.lr == 5e-4 and given.run.folder == str(folder)


def test_the_same_folder_may_be_said_twice(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    name = folder.name
    for resumed, said in ((f"{name}/", name), (name, f"./{name}/"), (name, str(folder))):
        assert resumed_config(resumed, None, [f"run.folder={said}"]).run.folder == resumed
    for other in ("other", "null", "s3://b/x"):
        with pytest.raises(ConfigError, match=r"^run\.folder: given beside --resume"):
            resumed_config(str(folder), None, [f"run.folder={other}"])


def test_an_unfinished_run_is_not_lost_by_the_way(folder):
    config = load_config("configs/shapes.yaml", [f"run.folder={folder}"])
    assert config.run.overwrite
    with pytest.raises(ConfigError, match="unfinished run, saved at step 4; allowed: `dopsd train"):
        refuse_existing(config)
    refuse_existing(config, replace=True)
    (folder / "summary.json").write_text("{}")
    refuse_existing(config)
    config.run.overwrite = False
    with pytest.raises(ConfigError, match=r"holds a run already.* or `dopsd train --resume .*`"):
        refuse_existing(config)


def test_an_interrupted_run_says_what_is_saved(folder):
    config = load_config("configs/shapes.yaml", [f"run.folder={folder}"])
    resume = f"resume with: dopsd train --resume {folder}"
    assert what_is_saved(config) == f"step 4 is saved, {resume}"
    shutil.rmtree(folder / "checkpoints")
    assert what_is_saved(config) == (
        "no checkpoint is saved yet; the same command with --overwrite begins again"
    )
    (folder / "summary.json").write_text("{}")
    assert what_is_saved(config).startswith(f"the run is finished, its results are in {folder};")


def test_a_run_that_goes_on_keeps_its_shards(folder, monkeypatch):
    monkeypatch.setattr("dopsd.data.run_data.prepare_shards", lambda *_: pytest.fail("lost"))
    save_manifest(str(folder / "shards"), example())
    config = load_config("configs/shapes.yaml", [f"run.folder={folder}", "data.source=elsewhere"])
    assert config.run.overwrite
    with pytest.raises(DataError, match=r"data.source: .*elsewhere, but .* from pictures; allowed"):
        prepared(config, lambda status: None, renew=False)


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    for words in (["train", "--resume"], ["checkpoint"], ["verify"]):
        assert main([*words, str(tmp_path)]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_a_checkpoint_is_asked_for_and_awaited(folder, capsys):
    def answer() -> None:
        request = folder / "checkpoint.request"
        while not request.exists():
            time.sleep(0.05)
        write(str(folder / "checkpoints"), 9)
        request.unlink()

    thread = threading.Thread(target=answer)
    thread.start()
    assert main(["checkpoint", str(folder)]) == 0
    thread.join()
    assert capsys.readouterr().out.strip() == str(folder / "checkpoints" / "step-000009")


def test_nobody_answers(folder, capsys):
    assert main(["checkpoint", str(folder), "--wait", "1"]) == 1
    assert "no response within 1 s; is this run training?" in capsys.readouterr().err
    assert not (folder / "checkpoint.request").exists()
