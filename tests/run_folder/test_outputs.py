"""A run takes a folder: what of it is a run's own, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dopsd.config import RunConfig, dump_config
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.lease import LEASE
from dopsd.run_folder.files import CONFIG_FILE, RunFolder
from dopsd.run_folder.outputs import check_run_folder, owned, seal_outputs
from tests.checkpoint.test_folder import write as write_checkpoint
from tests.helpers.runs import begun
from tests.helpers.tiny import make_config

STRANGER = (
    *("checkpoints/a.pt", "wandb/run-1/x", "debug/log.txt", "preview/1.png", "preflight/1.txt"),
    *("tensorboard/events.out.tfevents.1.host", "transformer/config.json", "lora.safetensors"),
    *("summary.json", "report.html", "metrics.jsonl", "ledger.jsonl"),
)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Local, but where a test asks for S3 as well."""
    if getattr(request, "param", "") == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run"
    return str(tmp_path / "run")


both = pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)


def config_of(folder: str, **sections: object) -> RunConfig:
    run = {"folder": folder, "overwrite": True}
    return make_config("base", **{"run": run, "debug": {"dump_trajectories": 1}, **sections})


def put(folder: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(folder, name), name.encode())


def files(folder: str) -> list[str]:
    return [name for name, _ in storage.list_files(folder)]


def a_run(config: RunConfig, *, finished: bool = True) -> None:
    """What a run leaves, by the hands that write it."""
    folder = config.run.folder
    with begun(config, resume=False):
        write_checkpoint(f"{folder}/checkpoints", 4)
        put(folder, "metrics.jsonl", "timeline.jsonl")
        if finished:
            own = owned(folder)
            own.write_all({"lora.safetensors": b"ours", "summary.json": b"{}"})
            own.write_all({"preview/contact_sheet.png": b"ours", "report.html": b"ours"})
            own.adopt("tensorboard/events.1")
            put(folder, "tensorboard/events.1")
            seal_outputs(folder)


@both
@pytest.mark.parametrize(("overwrite", "resume"), [(False, False), (True, True)])
def test_a_folder_of_somebody_else_is_refused_and_stays(folder, overwrite, resume) -> None:
    put(folder, *STRANGER)
    config = config_of(folder, run={"folder": folder, "overwrite": overwrite})
    line = r"^run\.folder: .*/run holds 12 things that dopsd did not make: checkpoints, debug, "
    with pytest.raises(ConfigError, match=line):
        check_run_folder(config)
    with pytest.raises(ConfigError, match=line), begun(config, resume):
        pytest.fail("taken")
    assert files(folder) == sorted(STRANGER)


@both
def test_an_older_run_goes_and_what_lies_beside_it_stays(folder: str) -> None:
    config = config_of(folder)
    a_run(config)
    mine = {
        *("notes.txt", "checkpoints/notes.txt", "checkpoints/step-000004/extra.bin"),
        *("preview/mine.png", "tensorboard/events.2", "wandb/run-1/x", "debug/log.txt"),
    }
    put(folder, *mine)
    if not storage.is_remote(folder):
        Path(folder, "debug", "weights").mkdir()
        tensors = {"a": torch.zeros(1)}
        for name, meta in (("v000001.student", {"dopsd.version": "0"}), ("v000002.student", {})):
            path = f"debug/weights/{name}.safetensors"
            save_file(tensors, f"{folder}/{path}", metadata=meta)
            mine |= set() if meta else {path}
    told: list[str] = []
    with begun(config, False, told.extend):
        ours = {".dopsd.json", "config.yaml", "checkpoints/.dopsd.json"}
        found = {name for name in files(folder) if not name.startswith(LEASE)}
        assert found == mine | ours
    assert set(told) == mine - {"notes.txt", "wandb/run-1/x"}


def test_a_finished_file_that_was_replaced_is_named(folder: str) -> None:
    config = config_of(folder)
    a_run(config)
    put(folder, "lora.safetensors")
    for resume in (False, True):
        with (
            pytest.raises(ConfigError, match=r"lora\.safetensors not as dopsd left it"),
            begun(config, resume),
        ):
            pytest.fail("taken")
    assert storage.read_bytes(f"{folder}/lora.safetensors") == b"lora.safetensors"
    assert "checkpoints/step-000004/checkpoint.json" in files(folder)


def test_a_name_that_another_run_did_not_use_may_be_taken_meanwhile(folder: str) -> None:
    a_run(config_of(folder))
    put(folder, "transformer/config.json")
    a_run(config_of(folder))
    with pytest.raises(ConfigError, match=r"holds 1 thing that dopsd did not make: transformer; "):
        check_run_folder(config_of(folder, adapters="full", debug={}))


def test_resuming_keeps_what_a_run_goes_on_from(folder: str) -> None:
    config = config_of(folder)
    a_run(config)
    with begun(config, resume=True):
        left = set(files(folder))
    assert {"metrics.jsonl", "lora.safetensors", "checkpoints/step-000004/checkpoint.json"} <= left
    assert left.isdisjoint({"summary.json", "report.html"})
    put(folder, "metrics.jsonl")  # it grew
    with begun(config, resume=True):
        pass


def test_the_run_of_a_dopsd_that_kept_no_record_is_resumed_and_not_replaced(folder: str) -> None:
    config = config_of(folder)
    write_checkpoint(f"{folder}/checkpoints", 4)
    storage.remove(f"{folder}/checkpoints/.dopsd.json")
    put(folder, "metrics.jsonl", "mine.txt")
    RunFolder(folder).write(CONFIG_FILE, dump_config(config).encode())
    with pytest.raises(ConfigError, match="holds 4 things that dopsd did not make: checkpoints"):
        check_run_folder(config)
    with begun(config, resume=True):
        assert {"metrics.jsonl", "checkpoints/"} <= owned(folder).entries().keys()
    with begun(config, resume=False):
        assert {"mine.txt", "config.yaml"} < set(files(folder))
        assert not RunFolder(folder).has("checkpoints/step-000004/checkpoint.json")


def test_a_link_to_a_scratch_disk_stays_a_link(tmp_path: Path) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "run"
    scratch.mkdir()
    folder.mkdir()
    (folder / "checkpoints").symlink_to(scratch)
    config = config_of(str(folder))
    a_run(config)
    (scratch / "mine.bin").write_bytes(b"mine")
    assert (scratch / "step-000004" / "checkpoint.json").exists()
    with begun(config, resume=False):
        assert (folder / "checkpoints").is_symlink()
        assert [path.name for path in scratch.iterdir()] == ["mine.bin"]
