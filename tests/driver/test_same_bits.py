"""What may not change a bit of a run on the CPU, as README and docs/architecture.md claim it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.loras import difference
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.nightly

RUN = [
    *("shapes", "learner.steps=6", "preflight.mode=off", "preview.samples=0"),
    *("encoder.cpus=0.1", "rollout.cpus=0.1", "teacher.cpus=0.1", "learner.cpus=0.2"),
]
TABLE = {
    "again": ([], {}),
    "rollout workers": (["rollout.workers=3"], {}),
    "teacher workers": (["teacher.workers=2"], {}),
    "encoders": (["encoder.workers=2"], {}),
    "shared inference": (["inference.shared=true"], {}),
    "shared inference, 3 workers": (["inference.shared=true", "rollout.workers=3"], {}),
    "direct transport": (["transport=rdt"], {}),
    "threads": ([], {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}),
    "hash seed 0": ([], {"PYTHONHASHSEED": "0"}),
    "hash seed 4242": ([], {"PYTHONHASHSEED": "4242"}),
}
"""What differs from the first run: overrides, and the environment."""
ADAPTERS = ("lora.safetensors", "teacher/lora.safetensors")


def train(folder: Path, overrides: list[str], environment: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "dopsd", "train", *RUN, f"run.folder={folder}", *overrides]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("first") / "run", [], {})


@pytest.mark.parametrize("row", TABLE)
def test_both_adapters_have_the_same_bits(first, tmp_path, row):
    other = train(tmp_path / "run", *TABLE[row])
    assert [difference(first / name, other / name) for name in ADAPTERS] == [0.0, 0.0]
