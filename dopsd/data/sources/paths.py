"""Paths in lists, as people and programs write them: of Windows, of a repository, of another place.

A path that is right as it stands is taken so. Otherwise one may be meant relative to a folder
above its list, or repeat the name of its list's folder.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from dopsd.data.sources.fields import shown
from dopsd.files import storage

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_LEVELS = 3
"""Folders above a list that its paths may be relative to."""


def beside(folder: str, path: str) -> str:
    """The file that a list in ``folder`` names: anywhere, since somebody wrote the list here.

    Raises ValueError where another file is there that is likely meant.
    """
    if "://" in path:
        return path
    as_written = storage.join(folder, path)
    if storage.is_remote(folder):
        return storage.join(folder, _slashed(path))
    if os.path.exists(as_written):
        return as_written
    for candidate in _candidates(os.path.abspath(folder).split("/"), path):
        if os.path.exists(found := os.path.join(folder, candidate)):
            return found
    parts = _slashed(path).split("/")
    for start in range(1, len(parts)):
        if os.path.isfile(os.path.join(folder, end := "/".join(parts[start:]))):
            raise ValueError(_elsewhere(path, end))
    return as_written


def inside(root: str, place: str, path: str, names: Mapping[str, str]) -> str:
    """The name, among ``names`` of files below ``root``, that a list in its sub-folder ``place``
    gives as ``path``. Raises ValueError: lists inside a source travel with it, and shall not choose
    among all files of the machine that trains.
    """
    for candidate in (path, *_candidates([*root.split("/"), *_parts(place)], path)):
        name = posixpath.normpath(posixpath.join(place, candidate))
        if posixpath.isabs(name) and not storage.is_remote(root):
            name = os.path.relpath(name, os.path.abspath(root))
        if name in names:
            return name
    slashed = _slashed(path)
    if (
        "://" in path
        or posixpath.isabs(slashed)
        or posixpath.normpath(posixpath.join(place, slashed)).startswith("..")
    ):
        raise ValueError(
            f"image path leaves its source: {shown(path)}, allowed: one inside (a list that is "
            "data.source itself may name files anywhere)"
        )
    parts = slashed.split("/")
    ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
    for end in ends:
        if posixpath.join(place, end) in names:
            raise ValueError(_elsewhere(path, end))
    raise ValueError(f"missing image: no such file {shown(posixpath.join(place, slashed))}")


def _candidates(folder: Sequence[str], path: str) -> Iterator[str]:
    """What ``path`` may mean, relative to the list's ``folder``, which is given by its parts."""
    slashed = _slashed(path)
    if slashed != path:
        yield slashed
    if _DRIVE.match(path) or posixpath.isabs(slashed):
        return
    parts = slashed.split("/")
    for count in range(len(parts) - 1, 0, -1):
        if parts[:count] == list(folder[-count:]):
            yield "/".join(parts[count:])
    for level in range(1, _LEVELS + 1):
        yield "../" * level + slashed


def _elsewhere(path: str, end: str) -> str:
    why = "a path of another machine" if _DRIVE.match(path) or path.startswith("/") else "not there"
    return f"missing image: {shown(path)} is {why}, and {end} lies beside the list; write that"


def _slashed(path: str) -> str:
    return path.replace("\\", "/")


def _parts(place: str) -> list[str]:
    return [part for part in place.split("/") if part]
