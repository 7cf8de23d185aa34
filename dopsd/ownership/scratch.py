"""Scratch folders: gone at the end, and after a kill with the next one of their kind.

Each says inside whose it is. What names a process of this machine that lives no more is nobody's;
of other machines that cannot be known, and theirs stay.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dopsd import processes
from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.readers import json_value

OWNER_FILE = ".dopsd-owner.json"
"""Inside a scratch folder: all that it holds is scratch, and of which process."""
_FORMAT = "dopsd-scratch"


@contextmanager
def scratch_folder(parent: str, prefix: str) -> Iterator[str]:
    """A new folder ``parent/prefix...``, local or on S3, removed at the end with all it holds.

    First those go that dead processes left under the same prefix. Raises whatever the storage
    raises.
    """
    sweep(parent, prefix)
    path = storage.join(parent, f"{prefix}{uuid.uuid4().hex[:12]}")
    storage.write_bytes(storage.join(path, OWNER_FILE), json.dumps(_owner()).encode())
    try:
        yield path
    finally:
        with suppress(OSError, StorageError):
            storage.remove_tree(path)


@contextmanager
def temporary_folder(kind: str) -> Iterator[str]:
    """A scratch folder on this machine, for nobody else's eyes."""
    parent, prefix = tempfile.gettempdir(), f"dopsd-{kind}-"
    sweep(parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        Path(path, OWNER_FILE).write_text(json.dumps(_owner()))
        yield path


def sweep(parent: str, prefix: str) -> None:
    """Remove the scratch folders of dead processes under ``parent`` that begin with ``prefix``."""
    with suppress(OSError, StorageError):
        for name in storage.names(parent):
            path = storage.join(parent, name)
            if name.startswith(prefix) and is_scratch(path) and _is_dead(_read(path)):
                with suppress(OSError, StorageError):  # another process does the same
                    storage.remove_tree(path)


def is_scratch(path: str) -> bool:
    """Whether ``path`` is a folder that holds nothing but scratch."""
    if not storage.is_remote(path) and os.path.islink(path):
        return False
    return _read(path).get("format") == _FORMAT


def _read(path: str) -> dict[str, Any]:
    try:
        owner = json_value(storage.read_bytes(storage.join(path, OWNER_FILE)))
    except (OSError, StorageError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner() -> dict[str, Any]:
    pid = os.getpid()
    began = processes.started(pid)
    return {"format": _FORMAT, "place": processes.place(), "pid": pid, "started": began}


def _is_dead(owner: dict[str, Any]) -> bool:
    """Only where process ids mean the same processes this can be known."""
    here, pid = processes.place(), owner.get("pid")
    if not here or owner.get("place") != here or not isinstance(pid, int):
        return False
    return processes.started(pid) != owner.get("started")
