"""What a command and every process below it cost: CPU-seconds and memory, read from /proc."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from dopsd import processes

_CPU_EVERY, _MEMORY_EVERY = 0.2, 3.0
"""Seconds between two looks. A process that ends between them takes that much CPU with it; adding
up who shares which page takes milliseconds a process."""


class Meter:
    """Follows process ``pid`` and all below it while its block lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seconds: dict[tuple[int, str], float] = {}
        """By process, which is its number and when it began."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.peak_mb = 0.0
        """Most memory of all processes together (PSS: shared pages count once), in MB."""

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_seconds(self) -> float:
        """Since their starts, of all processes that were seen, those that have ended too."""
        return sum(list(self._seconds.values()))

    def _follow(self) -> None:
        weighed = 0.0
        while not self._over.wait(_CPU_EVERY):
            alive = processes.descendants([self._pid])
            for pid, began in alive.items():
                if (seconds := processes.cpu_seconds(pid)) is not None:
                    self._seconds[pid, began] = seconds
            if time.monotonic() - weighed > _MEMORY_EVERY:
                self.peak_mb = max(self.peak_mb, sum(map(_pss_mb, alive)))
                weighed = time.monotonic()


def _pss_mb(pid: int) -> float:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
