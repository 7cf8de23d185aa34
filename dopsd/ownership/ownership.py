"""What is ours: a record in each folder that a command makes things in.

Nothing is removed or replaced because of its name. A name gets into the record before it is
created, and only while nothing is there; whatever is there and not in the record is somebody
else's. Of finished files the record holds size and SHA-256, so that one that was put in the place
of ours is told from it. A folder that is not empty and has no record is not ours at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dopsd.errors import ConfigError, StorageError
from dopsd.files import storage
from dopsd.files.writable import PROBE
from dopsd.ownership.lease import LEASE
from dopsd.ownership.scratch import OWNER_FILE, is_scratch
from dopsd.readers import json_value

RECORD = ".dopsd.json"
_SHOWN = 3
"""Names of what was found that a refusal repeats."""
_SYSTEM = {"lost+found"}
"""What a file system puts into its own root."""
_PASSING = (PROBE, ".nfs")
"""How names begin of what is gone in a moment: of a look whether a folder can be written, and what
NFS keeps of a file that was removed while somebody reads it."""
_LOCK = threading.RLock()
"""The threads of a process add to a record one after the other."""


class FileDigest(BaseModel):
    """What a finished file held when it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class FolderRecord(BaseModel):
    """What ``.dopsd.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dopsd-folder"] = "dopsd-folder"
    format_version: Literal[1] = 1
    kind: str
    """What the folder is: `run`, `shards`, `evaluation`, ..."""
    entries: dict[str, FileDigest | None] = {}
    """Path inside the folder -> what the finished file held; None for a file that grows or is being
    written, and for a folder, whose path ends in "/"."""


class OwnedFolder:
    """A folder, local or on S3, in which a command writes as a certain ``kind``.

    ``key``: what a refusal calls it, such as ``run.folder``. Whatever goes wrong with the storage
    is raised as it is.
    """

    def __init__(self, path: str, kind: str, key: str) -> None:
        self.path, self.kind, self.key = path, kind, key

    def file(self, name: str) -> str:
        return storage.join(self.path, name.rstrip("/"))

    def record(self) -> FolderRecord | None:
        """None without one. Raises ConfigError for one that cannot be read, or of another kind."""
        try:
            record = FolderRecord.model_validate_json(storage.read_bytes(self.file(RECORD)))
        except FileNotFoundError:
            return None
        except StorageError as error:
            if isinstance(error.__cause__, NotADirectoryError):  # a file in the folder's place
                return None
            raise
        except ValidationError:
            raise ConfigError(
                f"{self.key}: {self.file(RECORD)} is no record of dopsd, or a damaged one; "
                "allowed: another folder, or taking that file away with what it lists"
            ) from None
        if record.kind != self.kind:
            raise ConfigError(
                f"{self.key}: {self.path} holds what dopsd made as {record.kind!r}; allowed: "
                f"another folder, or one of the kind {self.kind!r}"
            )
        return record

    def entries(self) -> dict[str, FileDigest | None]:
        """What is ours, by path inside the folder."""
        record = self.record()
        return {} if record is None else record.entries

    def check(self, *names: str) -> None:
        """Raises ConfigError unless ``names`` may be written: in a folder that is ours or empty,
        over nothing but what is ours and as we left it. Folders' names end in "/"."""
        storage.check_writable(self.key, self.path)
        record = self.record()
        if record is None:
            self._refuse(sorted(self.strangers()), "an empty folder, one that does not exist yet")
            return
        new = [name for name in names if name not in record.entries]
        self._refuse([name for name in new if self._is_taken(name)], "taking them away")
        if changed := self.replaced(names):
            raise ConfigError(
                f"{self.key}: {self.file(changed[0])}{_more(changed[1:])} not as dopsd left it; "
                "allowed: another folder, or moving it away"
            )

    def strangers(self) -> list[str]:
        """What a folder without a record holds, however little of it is in the way."""
        names = storage.names(self.path) - {RECORD, OWNER_FILE, *_SYSTEM}
        names = {name for name in names if not name.startswith((LEASE, *_PASSING))}
        return [n for n in names if self._is_taken(f"{n}/") and not is_scratch(self.file(n))]

    def _is_taken(self, name: str) -> bool:
        """Whether something is there; an empty folder, or a link to one, is free for a folder."""
        path = self.file(name)
        if storage.is_remote(path):
            below = [file for file, _ in storage.list_files(path) if file]
            return bool(below) if name.endswith("/") and below else storage.exists(path)
        if not os.path.lexists(path):
            return False
        if name.endswith("/") and os.path.isdir(path):
            return any(n not in _SYSTEM and not n.startswith(_PASSING) for n in os.listdir(path))
        return True

    def _refuse(self, found: list[str], allowed: str) -> None:
        if found:
            what = "1 thing" if len(found) == 1 else f"{len(found)} things"
            raise ConfigError(
                f"{self.key}: {self.path or '.'} holds {what} that dopsd did not make: "
                f"{', '.join(name.rstrip('/') for name in found[:_SHOWN])}{_more(found[_SHOWN:])}; "
                f"allowed: {allowed}, or another folder"
            )

    def claim(self, *names: str) -> None:
        """Put ``names`` into the record, before they are created. Raises as :meth:`check` does, but
        for files of ours that were changed since."""
        with _LOCK:
            record = self.record()
            if record is None:
                self.check(*names)
                record = FolderRecord(kind=self.kind)
            new = dict.fromkeys(name for name in names if name not in record.entries)
            self._refuse([name for name in new if self._is_taken(name)], "taking them away")
            if new:
                record.entries |= new
                self._save(record)

    def adopt(self, *names: str) -> None:
        """Put into the record what was shown to be ours by what it holds: made by a dopsd that kept
        no record."""
        if not names:
            return
        with _LOCK:
            record = self.record() or FolderRecord(kind=self.kind)
            record.entries |= {name: record.entries.get(name) for name in names}
            self._save(record)

    def forget(self, *names: str) -> None:
        """Take ``names`` out of the record, whatever is there."""
        with _LOCK:
            record = self.record()
            if record is not None and not record.entries.keys().isdisjoint(names):
                for name in names:
                    record.entries.pop(name, None)
                self._save(record)

    def seal(self, digests: Mapping[str, FileDigest | None]) -> None:
        """These files of ours are finished and hold this; None: they grow again."""
        with _LOCK:
            record = self.record()
            if record is None:
                return
            known = {name: value for name, value in digests.items() if name in record.entries}
            if any(record.entries[name] != value for name, value in known.items()):
                record.entries |= known
                self._save(record)

    def seal_as_they_are(self, *names: str) -> None:
        """The same of files that others wrote, as they are now; missing ones are left out."""
        self.seal(
            {
                name: digest_of(storage.read_parts(self.file(name)))
                for name in names
                if storage.exists(self.file(name))
            }
        )

    def write(self, name: str, payload: bytes) -> None:
        """Claim, write and seal a file. Raises as :meth:`claim` does."""
        self.write_all({name: payload})

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """The same of several files, with two writes of the record."""
        files = {name: storage.as_written(self.file(name), data) for name, data in files.items()}
        self.claim(*files)
        self.seal(dict.fromkeys(files))  # until the new content is there, either may be
        for name, payload in files.items():
            storage.write_bytes(self.file(name), payload)
        self.seal({name: digest_of([payload]) for name, payload in files.items()})

    def replaced(self, names: Iterable[str]) -> list[str]:
        """Those of ours among ``names`` in whose place something else is now: another content, a
        folder, a link."""
        entries = self.entries()
        asked = dict.fromkeys(name for name in names if name in entries)
        return [name for name in asked if not self._is_as_we_left_it(name, entries[name])]

    def _is_as_we_left_it(self, name: str, digest: FileDigest | None) -> bool:
        """True of a missing one, too: there is nothing to lose."""
        path = self.file(name)
        remote = storage.is_remote(path)
        if name.endswith("/"):
            return remote or not os.path.lexists(path) or os.path.isdir(path)
        if not remote and os.path.lexists(path) and not _is_plain_file(path):
            return False
        if digest is None or not storage.exists(path):
            return True
        if storage.size(path) != digest.bytes:
            return False
        return digest_of(storage.read_parts(path)) == digest

    def remove(self, names: Iterable[str]) -> list[str]:
        """Remove files of ours and the folders that become empty; returns what stays.

        ``names`` that are not in the record stay, as do files in whose place something else is, and
        links, with whatever they lead to.
        """
        with _LOCK:
            record = self.record()
            if record is None:
                return [name for name in names if self._is_taken(name)]
            left, asked = [], set(names)
            folders: set[str] = set()
            for name in sorted(asked):
                if name.endswith("/"):
                    folders.add(name)
                    continue
                folders |= set(_parents(name))
                if name in record.entries and self._is_as_we_left_it(name, record.entries[name]):
                    storage.remove(self.file(name))
                    record.entries.pop(name)
                elif self._is_taken(name):
                    left.append(name)
            for name in storage.names(self.path):
                whole = storage.TEMPORARY.fullmatch(name)
                if whole and whole[1] in asked - set(left):
                    self._remove_plain(self.file(name))
            # One that is left is theirs from now on.
            for name in left:
                record.entries.pop(name, None)
            for folder in sorted(folders, key=len, reverse=True):
                if not record.entries.keys().isdisjoint((folder, *_parents(folder[:-1]))):
                    self._remove_temporary(folder)
                storage.remove_if_empty(self.file(folder))
                if not storage.exists(self.file(folder)):
                    record.entries.pop(folder, None)
            self._save(record)
            return left

    def _remove_temporary(self, folder: str) -> None:
        """Files that a writer of ours, which is dead, did not finish in a folder of ours."""
        for name in storage.names(self.file(folder)):
            if storage.TEMPORARY.fullmatch(name):
                self._remove_plain(storage.join(self.file(folder), name))

    def _remove_plain(self, path: str) -> None:
        if storage.is_remote(path) or _is_plain_file(path):
            storage.remove(path)

    def _save(self, record: FolderRecord) -> None:
        if not record.entries:  # the folder is as empty as it was found
            storage.remove(self.file(RECORD))
            return
        record.entries = dict(sorted(record.entries.items()))
        text = json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
        storage.write_bytes(self.file(RECORD), text.encode(), durable=True)


def digest_of(parts: Iterable[bytes]) -> FileDigest:
    """Of a file's content, piece by piece."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def _is_plain_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _more(names: list[str]) -> str:
    return f" and {len(names)} more" if names else ""


def _parents(name: str) -> Iterator[str]:
    """The folders of a path inside a folder, ``a/b/`` and ``a/`` of ``a/b/c``."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield f"{name}/"


def carries_our_mark(path: str) -> bool:
    """Whether a safetensors file says that dopsd wrote it. False for one that cannot be read."""
    try:
        size = int.from_bytes(storage.read_bytes(path, 0, 8), "little")
        header = json_value(storage.read_bytes(path, 8, 8 + min(size, 10**8)))
        return any(key.partition(".")[0] == "dopsd" for key in header["__metadata__"])
    except (OSError, StorageError, ValueError, KeyError, TypeError, AttributeError):
        return False
