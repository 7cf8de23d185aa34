"""The disk under a path: where it is mounted, and what is free on it."""

from __future__ import annotations

import os
import shutil

_MB = 10**6


def mount_point(path: str) -> str:
    """Of the disk that holds ``path``, or would: it need not exist."""
    folder = os.path.realpath(path)
    while not os.path.ismount(folder):
        folder = os.path.dirname(folder)
    return folder


def free_bytes(path: str) -> int:
    """What may still be written on the disk of ``path``. Raises OSError."""
    return shutil.disk_usage(mount_point(path)).free


def free_space(path: str) -> str:
    """Both in words, for messages."""
    disk = mount_point(path)
    try:
        return f"disk {disk}: {megabytes(free_bytes(path))} free"
    except OSError as error:
        return f"disk {disk}: {error.strerror}"


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / _MB:.1f} MB"
