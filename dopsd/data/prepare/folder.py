"""The folder of prepared shards and its record: what in it is ours, old and new."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.parquet as pq

from dopsd.data.manifest import MANIFEST, has_manifest
from dopsd.data.schema import FORMAT, SHARD_NAME, shard_generation
from dopsd.errors import ConfigError, DataError, StorageError
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder
from dopsd.readers import json_value

KIND = "shards"


def owned(shards: str) -> OwnedFolder:
    """The folder and its record; a data set of a dopsd that kept none is taken into one."""
    own = OwnedFolder(shards, KIND, "data.shards")
    if own.record() is None and (files := _manifest_files(shards)) is not None:
        own.adopt(MANIFEST, *files)
    return own


def check_shards_folder(shards: str) -> None:
    """Raises DataError unless ``shards`` is a data set, or may become one: a folder that is empty,
    or that dopsd made for shards."""
    own = OwnedFolder(shards, KIND, "data.shards")
    try:
        if has_manifest(shards):
            if _manifest_files(shards) is None:
                raise ConfigError(
                    f"data.shards: {storage.join(shards, MANIFEST)} is no manifest of dopsd's; "
                    "allowed: another folder"
                )
            own.record()
        else:
            own.check(MANIFEST)
    except ConfigError as error:
        raise DataError(str(error)) from None


def clear_unlisted(own: OwnedFolder) -> None:
    """Remove the shards that a preparing which died left: ours, and in no manifest."""
    listed = listed_files(own.path)
    own.remove(_ours(own, [n for n in own.entries() if SHARD_NAME.fullmatch(n)], but=listed))


def listed_files(shards: str) -> set[str]:
    """The shards of the data set that is there, if any."""
    return _manifest_files(shards) or set()


def _manifest_files(shards: str) -> set[str] | None:
    """The shards that a manifest of ours lists, of whatever version; None without one."""
    try:
        values = json_value(storage.read_bytes(storage.join(shards, MANIFEST)))
        if values["format"] != FORMAT:
            return None
        files = {group["file"] for group in values["row_groups"]}
        return {name for name in files if SHARD_NAME.fullmatch(name)}
    except (OSError, StorageError, ValueError, KeyError, TypeError):
        return None


def free_generation(own: OwnedFolder, names: Sequence[str]) -> int:
    """The first generation of which no shard's name is taken, whoever has it."""
    taken = storage.names(own.path) | own.entries().keys()
    generation = 0
    while not taken.isdisjoint(shard_generation(name, generation) for name in names):
        generation += 1
    return generation


def remove_shards(own: OwnedFolder, names: Iterable[str]) -> list[str]:
    """Remove shards of ours; returns what stays, because something else is in its place."""
    names = list(names)
    ours = _ours(own, names)
    return own.remove(ours) + [name for name in names if name not in ours]


def _ours(own: OwnedFolder, names: Iterable[str], but: Iterable[str] = ()) -> list[str]:
    """Those that are still shards, whole or half written."""
    return [name for name in names if name not in but and not _is_foreign(own.file(name))]


def _is_foreign(path: str) -> bool:
    """A whole parquet file that somebody else made."""
    try:
        with storage.open_input(path) as file:
            meta = pq.read_schema(file).metadata or {}
    except (OSError, StorageError, ValueError):  # half written, or gone
        return False
    return meta.get(b"dopsd.format") != FORMAT.encode()
