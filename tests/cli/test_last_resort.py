"""What nobody foresaw is one line, and its frames lie in a file for their owner alone."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from dopsd.cli.main import main

SECRET = "https://me:PLANTED@host/x"


def test_an_unforeseen_error_is_one_line_and_a_file(monkeypatch, tmp_path, capsys) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError(f"first\nsecond {SECRET} {'x' * 100_000}")

    monkeypatch.setattr("dopsd.cli.run.inspect.load_config", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["config", "shapes"]) == 70
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and len(printed) < 1000 and "PLANTED" not in printed
    assert printed.startswith(
        "dopsd: internal error: RuntimeError: first second https://***@host/x"
    )
    (path,) = re.findall(r"the frames are in (\S+\.log), please report it", printed)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    frames = Path(path).read_text()
    assert "Traceback" in frames and "test_last_resort.py" in frames and "PLANTED" not in frames


def test_a_temp_folder_that_takes_nothing_is_told(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("dopsd.cli.run.inspect.load_config", lambda *arguments: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert main(["config", "shapes"]) == 70
    assert "ZeroDivisionError: division by zero; the frames could not be" in capsys.readouterr().err


NUMBERS = ("inf", "nan", "-1", "1e309", "9" * 5000, str(2**70), "", "\x1b[31m", "x" * 100_000)
OPTIONS = [
    *(["generate", "x", f"--{name}"] for name in ("seed", "steps", "width", "height")),
    *(["evaluate", f"--{name}"] for name in ("seeds", "count", "steps", "width", "batch")),
    *(["evaluate", f"--{name}"] for name in ("height", "workers", "cpus", "gpus")),
    *(["reproduce", "shapes", f"--{name}"] for name in ("seeds", "first-seed", "steps")),
    *(["reproduce", "shapes", f"--{name}"] for name in ("prompts", "at-once")),
    *(["shapes", "concept", "bars", "x", f"--{name}"] for name in ("count", "seed")),
    *(["shapes", "card", f"--{name}"] for name in ("samples", "seeds", "threads", "effect-seeds")),
    *(["shapes", "build-base", f"--{name}"] for name in ("base-steps", "turbo-rounds", "threads")),
    ["checkpoint", "x", "--wait"],
]


TEXTS = {
    "NUL": "a\0b",
    "long": "x" * 100_000,
    "secret": SECRET,
    "control": "\x1b[31m[bold]\u202e",
    "empty": "",
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_a_number_that_cannot_be_is_one_line(words: list[str], capsys) -> None:
    for number in NUMBERS:
        assert main([*words, number]) in (1, 2), number[:20]
        printed = capsys.readouterr().err
        assert printed.startswith("dopsd: ") and printed.count("\n") == 1, printed[:300]
        assert len(printed) < 1600 and printed.strip().isprintable()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "words",
    [
        ["config", "{}"],
        ["config", "shapes", "{}"],
        ["config", "shapes", "learner.lr={}"],
        ["config", "shapes", "{}=1"],
        ["train", "--resume", "{}"],
        ["report", "{}"],
        ["verify", "{}"],
        ["stats", "{}"],
        ["checkpoint", "{}"],
        ["generate", "x", "--base", "{}"],
        ["generate", "x", "--family", "{}"],
        ["generate", "x", "--lora", "{}.safetensors"],
        ["generate", "x", "--transformer", "{}"],
        ["generate", "x", "--reference", "{}"],
        ["evaluate", "--prompts", "{}"],
        ["evaluate", "--prior", "{}"],
        ["evaluate", "--metric", "{}"],
        ["evaluate", "--device", "{}"],
        ["evaluate", "--lora", "{}"],
        ["reproduce", "pool", "{}"],
        ["reproduce", "shapes", "--row", "{}"],
        ["shapes", "concept", "{}", "x"],
        ["{}"],
    ],
    ids=" ".join,
)
def test_a_text_that_cannot_be_is_one_line(words: list[str], text: str, capsys) -> None:
    assert main([word.format(text) for word in words]) in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith("dopsd: ") and printed.count("\n") == 1, printed[:300]
    assert len(printed) < 1600 and printed.strip().isprintable() and "PLANTED" not in printed
