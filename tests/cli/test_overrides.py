"""An override that a command would not heed is refused, and named."""

from __future__ import annotations

import pytest

from dopsd.cli.main import main
from dopsd.config.load import as_override, overridden

PAPER = ["reproduce", "paper", "--concept", "x", "--cost"]
JOB = ["job", "shapes", "--image", "r/n:t", "--bucket", "s3://b"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--resume", "runs/a", "run.folder=runs/b"], "run.folder: given beside --resume"),
        (["train", "--resume", "runs/a", "run.resume=never"], "run.resume: given beside --resume"),
        (
            ["train", "shapes", "--resume-if-there", "run.resume=never"],
            "run.resume: given beside --resume-if-there",
        ),
        ([*PAPER, "data.source=y"], "data.source: given beside --concept"),
        ([*PAPER, "run={folder: y}"], "run.folder: given beside --folder"),
        ([*PAPER, "--adapter", "a", "model.merge=[b]"], "model.merge: given beside --adapter"),
        ([*JOB, "run.folder=x"], "run.folder: given beside --bucket"),
        ([*JOB, "run.overwrite=true"], "run.overwrite: given beside a job (false)"),
    ],
)
def test_it_is_refused(command: list[str], said: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dopsd: {said}") and "allowed: one of them" in line


@pytest.mark.parametrize("name", ["cat", "null", "a: b", "[V]", "", "6e10", "é", "~", "a#b", " x"])
def test_a_text_is_typed_so_that_it_reads_back(name: str) -> None:
    assert overridden([as_override("data.source", name)])["data.source"] == name
    assert as_override("data.source", "cat") == "data.source=cat"
