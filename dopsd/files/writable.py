"""Whether something can be written at a place: asked before anything is spent on it."""

from __future__ import annotations

import os
import tempfile

from dopsd import shown
from dopsd.errors import ConfigError
from dopsd.files.filesystems import is_remote

_TEMPORARY = 24
"""Bytes of a file's name while it is written (``filesystems.local_file``) beyond its own."""
PROBE = ".dopsd-"
"""How the file begins that is there for a moment where a disk has none without a name."""
_NAME = 255
"""Bytes of a name where the file system does not say."""
_PATH, _INSIDE = 4096, 400
"""Bytes that a path may have, and those of what lies inside a folder of ours."""


def check_writable(key: str, folder: str) -> None:
    """Raises ConfigError, in the name of ``key``, when no file can be written under a local folder,
    which need not exist yet. S3 is asked nothing: whether it takes an object is known when it gets
    one."""
    if not is_remote(folder) and (reason := _refused(folder)):
        raise ConfigError(
            f"{key}: {shown.brief(folder, 200)} cannot be made, {reason}; allowed: a folder that "
            "can be written, or s3://"
        )


def check_file(key: str, path: str) -> None:
    """The same of a file; whether one that is there may be replaced is its command's to say."""
    if is_remote(path):
        return
    folder, name = os.path.split(path)
    if not name or os.path.isdir(path):
        reason: str | None = "it is the name of a folder"
    else:
        reason = _refused(folder) or _too_long([name], os.path.abspath(folder), _TEMPORARY)
    if reason:
        raise ConfigError(
            f"{key}: {shown.brief(path, 200)} cannot be written, {reason}; allowed: a file in a "
            "folder that can be written, or s3://"
        )


def _refused(folder: str) -> str | None:
    """Why nothing can be written below ``folder``, found out by a file without a name in the folder
    that is there already."""
    if "\0" in folder:
        return "it holds a NUL character"
    parent, missing = os.path.abspath(folder), []
    while not os.path.lexists(parent):
        parent, name = os.path.split(parent)
        missing.append(name)
    if not os.path.isdir(parent):
        return f"{parent} is no folder"
    if long := _too_long(missing, os.path.abspath(folder)):
        return long
    try:
        with tempfile.TemporaryFile(prefix=PROBE, dir=parent):
            return None
    except PermissionError:
        return f"{parent} may not be written to"
    except OSError as error:  # a read-only or a full disk, or no disk at all as /proc
        return f"nothing can be written in {parent} ({os.strerror(error.errno or 0)})"


def _too_long(names: list[str], path: str, beside: int = 0) -> str | None:
    """Whether one of ``names``, with so many bytes ``beside`` it, or the ``path`` has no place."""
    there = path
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    most = _longest_name(there) - beside
    longest = max((len(os.fsencode(name)) for name in names), default=0)
    if longest > most:
        return f"a name in it has {longest} bytes, allowed: {most}"
    if (length := len(os.fsencode(path))) > _PATH - _INSIDE:
        return f"its path has {length} bytes, allowed: {_PATH - _INSIDE}"
    return None


def _longest_name(folder: str) -> int:
    """Bytes that a name in ``folder`` may have. Some of FUSE say 0 or -1, or nothing at all."""
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except OSError:
        return _NAME
    return most if most > 0 else _NAME
