"""A long run keeps nothing: memory and descriptors of its processes do not grow with its steps."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.chaos.harness import ROLES
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.nightly

STEPS = 300
WATCHED = ("driver", "coordinator", "learner")
MOST_MB, MOST_DESCRIPTORS = 0.1, 0.02
"""Growth per step that is allowed: least squares over the second half of the steps."""
BLOCK = 5
"""Steps of which the lowest figure counts: what a step needs while it lasts is no growth."""


def watched(driver: psutil.Process) -> dict[str, psutil.Process]:
    """The processes that live as long as the run, by role and number of the process."""
    found = {"driver": driver}
    for child in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            for role in WATCHED[1:]:
                if title.startswith(ROLES[role]):
                    found[f"{role} {child.pid}"] = child
    return found


def test_three_hundred_steps_are_flat(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    words = [f"learner.steps={STEPS}", "checkpoint.every_steps=25", "preview.samples=0"]
    command = [sys.executable, "-m", "dopsd", "train", "shapes", f"run.folder={folder}", *words]
    samples: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                sample(psutil.Process(process.pid), folder, samples)
                time.sleep(1.0)
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert {name.split()[0] for name in samples} == set(WATCHED)
    for name, rows in samples.items():
        blocks = defaultdict(list)
        for row in rows:
            if row[0] >= STEPS // 2:
                blocks[row[0] // BLOCK].append(row)
        late = np.array([np.min(block, axis=0) for block in blocks.values()], dtype=float)
        assert len(late) > 20, (name, len(late))
        for column, most in ((1, MOST_MB), (2, MOST_DESCRIPTORS)):
            slope = np.polyfit(late[:, 0], late[:, column], 1)[0]
            print(f"{name}: column {column} grows by {slope:.4f} a step from {late[0, column]:.1f}")
            assert slope < most, (name, column, slope)


def sample(driver: psutil.Process, folder: Path, samples: dict[str, list]) -> None:
    """Add (steps trained, private memory in MB, descriptors) of each process."""
    ledger = folder / "metrics.jsonl"
    steps = len(ledger.read_bytes().splitlines()) if ledger.is_file() else 0
    for name, process in watched(driver).items():
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            megabytes = (memory.rss - memory.shared) / 2**20
            samples[name].append((steps, megabytes, process.num_fds()))
