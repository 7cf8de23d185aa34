"""A secret in what a command is given is neither repeated nor written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopsd.cli.main import main

INIT = ["init", "--base", "shapes", "--data", "shapes:bars", "--cluster", "here:1", "--concept"]
JOB = ["job", "shapes", "--bucket", "s3://b"]
SECRETS = ["https://me:SECRETPASS@host/a", "s3://AK:SECRETPASS@b/x"]


@pytest.mark.parametrize("weights", ["", " ", "nowhere", "x" * 5000])
def test_weights_of_the_tiny_world_that_are_none(weights: str, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["shapes", "card", f"--weights={weights}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no base, allowed: a pipeline's" in line and len(line) < 300


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    ("command", "named"),
    [
        (INIT, "--concept"),
        ([*JOB, "--image"], "--image"),
        ([*JOB, "--image", "a:b", "--queue"], "--queue"),
        (["shapes", "concept", "bars"], "folder"),
        (["shapes", "card", "--weights"], "--weights"),
        (["shapes", "card", "--pictures"], "--pictures"),
        (["shapes", "build-base", "--out"], "--out"),
        (["shapes", "build-base", "--work"], "--work"),
    ],
)
def test_it_is_nowhere(
    command: list[str],
    named: str,
    secret: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, secret]) in (1, 2)
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert named in line and "allowed: " in line and "secretpass" not in (out + err).lower()
    assert not list(tmp_path.iterdir())
