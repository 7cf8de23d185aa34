"""The demo's losses as they were on the CPU kind that the file names.

``python -m tests.losses`` trains the demo and writes them anew: a change of method changes
``assets/losses/shapes.json`` on purpose, or not at all.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dopsd.config import load_config
from dopsd.driver.train import train
from tests.helpers.paths import ASSETS
from tests.helpers.runs import metrics, quiet

RECIPE = "shapes"
FILE = ASSETS / "losses" / f"{RECIPE}.json"
TOLERANCE = 1e-4
"""Relative, where another CPU kind or another torch rounds otherwise."""


def cpu_kind() -> str:
    """What decides the last bit on a CPU: its kind, the instructions that torch uses, torch."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    known = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in info.splitlines())
    kind = [known.get(key, "?") for key in ("vendor_id", "cpu family", "model")]
    return " ".join([*kind, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}"])


def compare(losses: list[float]) -> None:
    """The first losses of a run of the demo against the file: bitwise on the same CPU kind."""
    known = json.loads(FILE.read_text(encoding="utf-8"))
    expected = known["losses"][: len(losses)]
    assert losses and len(losses) == len(expected)
    if known["cpu"] == cpu_kind():
        assert losses == expected
    else:
        assert losses == pytest.approx(expected, rel=TOLERANCE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run.folder={folder}", "preflight.mode=off", "preview.samples=0"]
        lines = metrics(train(load_config(RECIPE, overrides), quiet))
    values: dict[str, Any] = {"cpu": cpu_kind(), "losses": [line["loss"] for line in lines]}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
