"""The GPUs of this machine, without a CUDA context in the process that asks."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

_QUERY = "name,memory.total,driver_version"


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    """Bytes."""
    driver: str


def installed() -> list[Gpu]:
    """As nvidia-smi lists them; none where it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in done.stdout.splitlines() if (gpu := _parsed(line))]


def _parsed(line: str) -> Gpu | None:
    name, _, rest = line.partition(",")
    memory, _, driver = rest.partition(",")
    try:
        return Gpu(name.strip(), int(memory) * 2**20, driver.strip())
    except ValueError:
        return None  # "[N/A]", as of a part of a card under MIG
