"""Real commands, killed at random moments: what is not ours stays, byte for byte, and the next
command goes on or says in one line what is in its way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dopsd import processes
from dopsd.ownership.ownership import RECORD

pytestmark = pytest.mark.nightly

SMALL = ["learner.steps=3", "checkpoint.every_steps=1", "preflight.samples=2", "preview.samples=1"]
COMMANDS: dict[str, tuple[float, list[str]]] = {
    "train": (30.0, ["train", "shapes", *SMALL, "run.folder=run", "--overwrite"]),
    "preflight": (20.0, ["preflight", "shapes", *SMALL, "run.folder=looked"]),
    "prepare": (
        10.0,
        ["prepare", "shapes", "data.source=source", "data.shards=shards", "run.overwrite=true"],
    ),
    "evaluate": (15.0, ["evaluate", "--out", "judged", "--count", "2", "--steps", "2"]),
    "generate": (6.0, ["generate", "a red square", "a cross", "--out", "drawn"]),
}
"""Each with the seconds within which it is killed."""
KILLS = 4
NAMES = (
    *("notes.txt", "mine.png", ".hidden", "sub/deep.bin", "my lora.safetensors", "a.json"),
    *("step-000001.txt", "shard-mine.parquet", "lora.safetensors.bak", "events.out"),
)


def add_foreign(root: Path, chance: random.Random, foreign: dict[Path, bytes]) -> None:
    """Files of somebody's in some of the folders that are there now."""
    below = [path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()]
    folders = [root, *(path for path in below if path.name != "source")]  # what is in it is data
    for folder in chance.sample(folders, min(4, len(folders))):
        path = folder / chance.choice(NAMES)
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            foreign[path] = chance.randbytes(chance.randrange(2000))
            path.write_bytes(foreign[path])


def killed(words: list[str], folder: Path, after: float) -> None:
    """The command with all that it started, ended by SIGKILL after some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dopsd", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + after
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    below = processes.descendants([process.pid])
    process.send_signal(signal.SIGKILL)
    process.wait()
    processes.kill(below)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_ours_stays(command: str, tmp_path: Path) -> None:
    seconds, words = COMMANDS[command]
    chance, foreign = random.Random(command), dict[Path, bytes]()
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 9, 9)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text("a red [V] on teal")
    given = {path: path.read_bytes() for path in source.iterdir()}
    for _ in range(KILLS):
        killed(words, tmp_path, chance.uniform(0.0, seconds))
        assert {path: path.read_bytes() for path in given} == given
        assert {path: path.read_bytes() for path in foreign} == foreign
        add_foreign(tmp_path, chance, foreign)
    done = subprocess.run(
        [sys.executable, "-m", "dopsd", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert {path: path.read_bytes() for path in given | foreign} == given | foreign
    told = done.stderr.strip().splitlines()
    if done.returncode:
        # Before its first record a folder with a stranger's file is a stranger's.
        assert told and "that dopsd did not make" in told[-1], done.stderr
    else:
        assert command == "generate" or list(tmp_path.glob(f"*/{RECORD}"))
