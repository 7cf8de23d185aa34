"""Which files under ``RUN/checkpoints`` are ours, and their removal.

The folder's record lists the checkpoints that were begun there, and a checkpoint's own manifest
its files. Of one that died half written they are told by names that nobody else gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.ownership.ownership import RECORD, OwnedFolder
from dopsd.readers import json_value

MANIFEST = "checkpoint.json"
"""Written last: a folder without it is no checkpoint."""
_STEP = re.compile(r"step-(\d{6,})")
_FORMAT = "dopsd-checkpoint"
_WRITTEN = re.compile(
    r"(?:(?:student|ema|optimizer)\.safetensors|policies\.json|checkpoint\.json"
    r"|policy-\d{6,}\.\w+\.safetensors|learner-\d{5}-of-\d{5}-[0-9a-f]{8}\.safetensors"
    r"|bucket-[0-9a-f]{24}\.safetensors)(?:\.tmp-\d+-[0-9a-f]{8}){0,2}"
)
_LEARNERS = re.compile(r"learner-\d{5}-of-\d{5}-[0-9a-f]{8}\.safetensors")


def folder_of(root: str, step: int) -> str:
    """Where the checkpoint of a step lies."""
    return storage.join(root, step_name(step))


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def steps(root: str) -> list[int]:
    """Steps of the checkpoint folders under ``root``, complete or not, ascending."""
    matches = (_STEP.fullmatch(name) for name in storage.names(root))
    return sorted(int(match[1]) for match in matches if match)


def is_left_behind(name: str) -> bool:
    """Whether a file has a name that one writer of ours gave it and no other will: what an attempt
    that is over left in a folder that is not in the record yet."""
    if _WRITTEN.fullmatch(name) is None:
        return False
    return bool(storage.TEMPORARY.fullmatch(name) or _LEARNERS.fullmatch(name))


def owned_checkpoints(root: str) -> OwnedFolder:
    """The folder of the checkpoints and its record, which knows those of an older dopsd too."""
    own = OwnedFolder(root, "checkpoints", "run.folder")
    if own.record() is None:
        own.adopt(*(f"{step_name(step)}/" for step in steps(root) if _is_ours(root, step)))
    return own


def _is_ours(root: str, step: int) -> bool:
    """By what it holds: a manifest of ours, or nothing but what we write before there is one."""
    path = folder_of(root, step)
    if _listed(path) is not None:
        return True
    names = [name for name, _ in storage.list_files(path)]
    return bool(names) and all(map(_WRITTEN.fullmatch, names))


def _listed(path: str) -> dict[str, int] | None:
    """Bytes of each file that a checkpoint's manifest lists, by name; None without such a one."""
    try:
        manifest = json_value(storage.read_bytes(storage.join(path, MANIFEST)))
        if manifest["format"] != _FORMAT:
            return None
        files = {**manifest["files"], **manifest.get("large", {})}
        return {name: record["bytes"] for name, record in files.items()}
    except (OSError, StorageError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remove_step(root: str, step: int, keep: Iterable[str] = ()) -> list[str]:
    """Remove a checkpoint of ours, its manifest first: half removed is none. Returns what stays
    under ``root``: what was put beside its files or in their place.

    ``keep``: files that belong to what is to be written there next.
    """
    own, name = owned_checkpoints(root), step_name(step)
    if f"{name}/" not in own.entries():
        return [f"{name}/{file}" for file, _ in storage.list_files(folder_of(root, step))]
    path, entries = folder_of(root, step), own.entries()
    listed = _listed(path)
    if listed is not None:
        storage.remove(storage.join(path, MANIFEST))
    for file, size in storage.list_files(path):
        if listed and file in listed:
            ours = size == listed[file]
        else:
            ours = f"{name}/{file}" in entries or _WRITTEN.fullmatch(file) is not None
        if ours and file not in keep:
            storage.remove(storage.join(path, file))
    own.forget(*(entry for entry in entries if entry.startswith(f"{name}/") and entry[-1] != "/"))
    own.remove([f"{name}/"])
    left = [file for file, _ in storage.list_files(path) if file not in keep]
    return [f"{name}/{file}" for file in left]


def remove_all_steps(root: str) -> list[str]:
    """Remove all checkpoints of ours under ``root``; returns what stays there, by path inside."""
    for step in steps(root):
        remove_step(root, step)
    own = owned_checkpoints(root)
    own.remove(own.entries())
    return [name for name, _ in storage.list_files(root) if name != RECORD]
