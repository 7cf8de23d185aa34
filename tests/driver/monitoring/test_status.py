"""`dopsd status`: how a run stands, from its folder alone, local and on S3."""

from __future__ import annotations

import json
import time

import pytest

from dopsd.checkpoint.folder import write_checkpoint
from dopsd.cli.main import main
from dopsd.config import dump_config
from dopsd.driver.monitoring.status import run_state
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.lease import CLOCK, LEASE, claimed
from dopsd.run_folder.files import SUMMARY_FILE, RunFolder
from tests.helpers.tiny import make_config


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> str:
    """A run of 8 steps that has trained 3 of them, in two attempts."""
    path = str(tmp_path / "run")
    if request.param == "s3":
        path = f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run"
    run = RunFolder(path)
    config = make_config("base", run={"folder": path}, learner={"steps": 8})
    run.write("config.yaml", dump_config(config).encode())
    seconds = (9.0, 2.0, 2.0)
    lines = [
        {"step": step, "wall_seconds": wall, "loss": 0.5 - step / 10, "samples": 8}
        for step, wall in enumerate(seconds)
    ]
    run.write("metrics.jsonl", _lines(lines))
    run.write("ledger.jsonl", _lines([{"attempt": n, "start": 0, "plan": "p"} for n in (1, 2)]))
    run.write("notices.txt", b"".join(b"notice %d\n" % number for number in range(9)))
    run.write("logs/rollout-7-ab.log", b"dopsd: rollout: process 7 died\n")
    options = {"policy_versions": (), "config": {}, "data": "f", "plan": "p", "learners": 1}
    write_checkpoint(run.checkpoints, {"student.safetensors": b"s"}, step=2, **options)
    return path


def _lines(entries: list[dict]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def test_a_run_that_nobody_writes(folder, capsys):
    assert main(["status", folder]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{folder}: not running, step 3 of 8"
    assert said[1:4] == [
        "  rate        2.00 s a step, 4.00 samples/s",
        "  loss        0.30000",
        "  restarts    1 of the learners",
    ]
    assert said[4].startswith("  checkpoint  step 2, 0:0") and said[4].endswith(" ago")
    assert said[5] == "  written by  nobody"
    assert said[6:] == [
        *(f"  notice      notice {number}" for number in range(4, 9)),
        f"  log         {folder}/logs/rollout-7-ab.log",
        f"  next        dopsd train --resume {folder}",
    ]


def test_a_dead_run_that_saved_nothing_begins_again(folder, capsys):
    storage.remove_tree(f"{folder}/checkpoints")
    assert main(["status", folder]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = f"dopsd train {folder}/config.yaml run.folder={folder} --overwrite (no checkpoint"
    assert words in last
    RunFolder(folder).write(SUMMARY_FILE, b"{}")
    assert main(["status", folder]) == 0
    assert "  next " not in capsys.readouterr().out


def test_a_run_that_trains_has_a_writer_and_an_end(folder):
    with claimed(folder, "run.folder"):
        state = run_state(folder)
    assert (state.state, state.seconds_left) == ("training", 2.0 * 5)
    assert state.writer is not None and state.writer.lives
    assert state.writer.beat_age is not None and state.writer.beat_age < 30
    RunFolder(folder).write(SUMMARY_FILE, b"{}")
    assert run_state(folder).state == "finished"


def test_a_writer_elsewhere_is_known_by_its_beats(folder):
    owner = {"token": "t", "host": "pod-1", "place": "there", "pid": 3, "started": "1"}
    claim = json.dumps(owner | {"since": "today"}).encode()
    storage.write_bytes(f"{folder}/{LEASE}", claim)
    for age, state in ((5, "training"), (3600, "not running")):
        at = time.strftime(CLOCK, time.localtime(time.time() - age))
        storage.write_bytes(f"{folder}/{LEASE}.t", json.dumps({"count": 1, "at": at}).encode())
        found = run_state(folder)
        assert found.state == state
        (line,) = (line for line in found.lines() if "written by" in line)
        assert line.startswith("  written by  process 3 on pod-1 since today, beat ")
        assert line.endswith(", dead") == (state == "not running")


def test_a_run_that_is_prepared(tmp_path):
    with claimed(str(tmp_path), "run.folder"):
        state = run_state(str(tmp_path))
    assert (state.state, state.step, state.steps, state.saved) == ("preparing", 0, None, None)


def test_for_programs(folder, capsys):
    assert main(["status", folder, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["step"], values["saved"]["step"]) == ("not running", 3, 2)


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(ConfigError, match="holds no run; allowed: a run folder"):
        run_state(str(tmp_path))
    assert main(["status", str(tmp_path)]) == 1
