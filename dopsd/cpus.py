"""The CPUs that this process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Cpus:
    machine: int
    allowed: int
    """By affinity (taskset, cpusets)."""
    quota: float | None
    """CPUs' worth of time by cgroup (`docker run --cpus`, Kubernetes' limits); None: no limit."""

    @property
    def usable(self) -> int:
        """Whole CPUs, a part of one rounded up."""
        quota = self.allowed if self.quota is None else math.ceil(self.quota)
        return max(1, min(self.allowed, quota))


def usable() -> Cpus:
    """Of this process, as it stands now."""
    machine = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
    allowed = len(affinity(0)) if affinity else machine
    return Cpus(machine, allowed, min(_quotas(_ROOT, _OWN), default=None))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """Of the cgroup that ``own`` names, and of those that hold it: each of them limits."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # In a container the path may be the host's, of which only the root is mounted.
        inside = PurePosixPath(path.strip("/"))
        groups = [inside, *inside.parents]
        if not controllers:  # version 2
            yield from filter(None, (_quota(root / group / "cpu.max") for group in groups))
        elif "cpu" in controllers.split(","):
            for folder in (root / controllers, root / "cpu"):
                yield from filter(None, (_quota_v1(folder / group) for group in groups))


def _quota(file: Path) -> float | None:
    """``max 100000`` or ``150000 100000``: microseconds of CPU time in a period of so many."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
