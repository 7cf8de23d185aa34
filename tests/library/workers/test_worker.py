"""A worker that is warm gives what a fresh one gives, and what one gives that resumes or takes up
what another gave back; drawing what it trained changes no bit of what it trains next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration


def adapters(base: Path, folder: Path, *words: str) -> dict[str, str]:
    folder.mkdir()
    out = folder / "out.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.library.warm_worker",
            str(base),
            str(folder),
            str(out),
            *words,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, str] = json.loads(out.read_text())
    return told


def test_a_warm_worker_gives_the_bits_of_a_fresh_one_and_so_does_one_that_is_resumed(
    tiny_base: Path, tmp_path: Path
) -> None:
    warm = adapters(tiny_base, tmp_path / "warm", "c", "a", "b", "b:resume", "b:back", "c")
    fresh = adapters(tiny_base, tmp_path / "fresh", "plain", "b", "a")
    assert len({warm["a"], warm["b"], warm["c"]}) == 3
    assert (warm["a"], warm["b"]) == (fresh["a"], fresh["b"])
    assert warm["b:resume"] == warm["b:back"] == warm["b"]
    sheets = {word: told for word, told in warm.items() if word.endswith(":sheet")}
    assert sheets["b:resume:sheet"] == sheets["b:sheet"] and len(set(sheets.values())) == 3
