"""Signals to `dopsd train` as its own process, in each phase: lines, exit codes, what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dopsd import processes
from dopsd.checkpoint.folder import complete_steps
from dopsd.ownership.lease import LEASE
from dopsd.signals import ENDS

pytestmark = pytest.mark.nightly

TRAINING = r"step ([5-9]|1.)/24"


@pytest.mark.parametrize(
    ("seen", "later", "number", "count", "saved"),
    [
        ("checking the config", 0.0, signal.SIGINT, 1, False),
        ("checking the config", 4.0, signal.SIGTERM, 1, False),  # Ray starts
        ("checking the config", 8.0, signal.SIGHUP, 1, False),
        ("preparing data: (checking|writing)", 0.0, signal.SIGINT, 1, False),
        ("starting: models are loading", 0.0, signal.SIGINT, 1, False),
        *((TRAINING, 0.0, number, 1, True) for number in ENDS),
        (TRAINING, 0.0, signal.SIGTERM, 2, False),
    ],
)
def test_a_training_ends_with_one_line(seen, later, number, count, saved, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "run"
    words = ["learner.steps=24", "checkpoint.every_steps=4", "preflight.mode=off"]
    words += ["preview.samples=0", f"run.folder={folder}"]
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dopsd", "train", "shapes", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(tmp_path),
            process_group=0,
            preexec_fn=lambda: [signal.signal(end, signal.SIG_DFL) for end in ENDS],
        )
    until = time.monotonic() + 300
    while not re.search(seen, out.read_text()) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(later)
    started = processes.descendants([process.pid])
    for _ in range(count):
        os.killpg(process.pid, number)  # as a terminal and `timeout` do
        time.sleep(0.5)
    assert process.wait(120) == 128 + number
    text = out.read_text()
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("dopsd: ")]
    (line,) = lines
    assert line.startswith(f"dopsd: interrupted by {number.name}; ")
    steps = complete_steps(str(folder / "checkpoints"))
    if saved or steps:
        assert f"step {steps[-1]} is saved, resume with: dopsd train --resume {folder}" in line
    assert steps or not saved
    time.sleep(1)
    assert [pid for pid, began in started.items() if processes.started(pid) == began] == []
    assert not list(folder.glob(f"{LEASE}*"))
    assert [path.name for path in (tmp_path / "tmp").glob("dopsd-*")] == []


def environment(tmp_path: Path) -> dict[str, str]:
    """With a folder of its own for temporary files; Ray's sockets want short names, and stay."""
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "RAY_TMPDIR": "/tmp"}
