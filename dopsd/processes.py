"""Processes of this machine, as Linux's /proc tells of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def place() -> str:
    """Where process ids mean the same processes: this boot of this kernel, and its pid namespace.

    A host's name says less: containers share one, and a restarted one keeps it. "" where there is
    no /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When process ``pid`` began, in ticks since the boot; None when there is none, or it is dead
    and only its parent has not asked yet. A number that is given out again began at another time.
    """
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else stat[19]


def cpu_seconds(pid: int) -> float | None:
    """Of CPU that process ``pid`` has used since its start, without its children; None when there
    is none."""
    stat = _stat(pid)
    if stat is None:
        return None
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def command(pid: int) -> str:
    """The command line of process ``pid``, its words one space apart; "" when there is none."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may hold anything: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(roots: Iterable[int] | None = None) -> dict[int, str]:
    """Every process below this one, or ``roots`` and every one below those, by when it began."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None:
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = children.get(os.getpid(), []) if roots is None else list(roots)
    while waiting:
        pid = waiting.pop()
        if (began := started(pid)) is not None:
            found[pid] = began
        waiting += children.get(pid, [])
    return found


def kill(processes: dict[int, str]) -> None:
    """End those of ``processes``, as ``descendants`` gives them, that are still there."""
    for pid, began in processes.items():
        if started(pid) == began:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
