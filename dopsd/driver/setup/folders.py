"""Which folders a run may be given: none that collide, none of somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.data.prepare.folder import check_shards_folder
from dopsd.data.shapes_source import SHAPES
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.run_folder.files import SHARDS
from dopsd.run_folder.outputs import check_may_prepare


def check_folders(config: RunConfig) -> None:
    """Raises ConfigError for folders that hold one another where both are written or one is read,
    and for those that are nobody's to write into; DataError for shards of somebody else's.

    ``config`` has absolute paths but for an empty one, which would be where the command stands.
    """
    run, shards, source = config.run.folder, config.data.shards, config.data.source
    for key, folder in (("run.folder", run), ("data.shards", shards)):
        if folder is not None:
            _check_place(key, folder)
    if source is not None and not source.startswith(SHAPES):
        _refuse_overlap("data.source", source, "run.folder", run)
        _refuse_overlap("data.source", source, "data.shards", config.shards)
    if shards is not None and _lies_in(run, shards):
        raise ConfigError(
            f"run.folder: {run} is or lies in data.shards ({shards}), allowed: folders apart, or "
            f"the shards in the run's folder (RUN/{SHARDS})"
        )
    check_shards_folder(config.shards)
    if shards is None:
        check_may_prepare(config)


def _check_place(key: str, folder: str) -> None:
    if not folder.strip():
        raise ConfigError(f"{key}: {folder!r}, allowed: a folder of its own, such as runs/NAME")
    if storage.is_remote(folder):
        if not folder.split("://", 1)[1].strip("/"):
            raise ConfigError(f"{key}: {folder}, allowed: s3://BUCKET/FOLDER")
        return
    for place, what in ((Path.home(), "the home folder"), (Path("/"), "the root of all folders")):
        if os.path.realpath(folder) == os.path.realpath(place):
            raise ConfigError(
                f"{key}: {folder} is {what}, allowed: a folder of its own, such as runs/NAME"
            )


def _refuse_overlap(key: str, path: str, other_key: str, other: str) -> None:
    for inner, outer in ((path, other), (other, path)):
        if _lies_in(inner, outer):
            how = "is" if _lies_in(outer, inner) else "lies in" if inner == path else "holds"
            raise ConfigError(
                f"{key}: {path} {how} {other_key} ({other}), allowed: folders apart, since what "
                "is written there would lie among what is read"
            )


def _lies_in(inner: str, outer: str) -> bool:
    """Whether ``inner`` is ``outer`` or lies in it, through whatever links."""
    if storage.is_remote(inner) != storage.is_remote(outer):
        return False
    if storage.is_remote(inner):
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    here, there = os.path.realpath(inner), os.path.realpath(outer)
    return os.path.commonpath([here, there]) == there
