"""Models that lie on S3, and their copy on this node: made once, by whichever process is first.

The folder on S3 is one that `dopsd fetch --to s3://...` filled. Configs and tokenizers come when
the model is named, the weights of a part when it is loaded (:func:`bring_weights`): a head that
only checks a config holds none. Each file is compared with the record's digest before it gets its
name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import AfterValidator, BaseModel

from dopsd.errors import ModelError, StorageError
from dopsd.files import pieces, storage
from dopsd.files.disk import free_bytes, free_space, megabytes
from dopsd.ownership.ownership import FileDigest
from dopsd.readers import read_json

RECORD = "dopsd-model.json"
"""Of a model on S3, written last: a folder without it is none."""
_WEIGHTS = ".safetensors"
_SIDE_BY_SIDE = 4
"""Files that come at a time."""
_TRIES = 2
"""Of one file whose bytes are not the record's: it may just have been replaced."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or set(name) & set("\\\0"):
        raise ValueError("allowed: a path inside the folder")
    return name


class StoredModel(BaseModel):
    """What the record holds."""

    format: Literal["dopsd-model"] = "dopsd-model"
    source: str
    """Repository of the hub, or name of the folder."""
    commit: str | None = None
    files: dict[Annotated[str, AfterValidator(_inside)], FileDigest]


class _OtherBytes(Exception):
    """What was read is not what the record says; the message is its size."""


@dataclass(frozen=True)
class _Copy:
    """``url``'s copy in ``folder``; ``key`` is what the user calls the model."""

    key: str
    url: str
    folder: Path
    record: StoredModel

    def bring(self, names: Iterable[str]) -> None:
        """Fetch those of ``names`` that are not here yet. Raises ModelError in one line."""
        names = list(names)
        if not self._missing(names):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.folder}.lock"):
                self._remove_unfinished()
                missing = self._missing(names)
                self._refuse_without_room(missing)
                with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
                    list(pool.map(self._fetch, missing))
        except FileNotFoundError as error:
            raise ModelError(f"{self.key}: {error}: named by its {RECORD}, but missing") from None
        except (OSError, StorageError) as error:
            raise ModelError(f"{self.key}: {error}") from error

    def below(self, folder: Path) -> list[str]:
        """Of the files, those in ``folder`` of the copy and below it."""
        if folder != self.folder and self.folder not in folder.parents:
            return []
        part = folder.relative_to(self.folder)
        return [name for name in self.record.files if part in PurePosixPath(name).parents]

    def _missing(self, names: Iterable[str]) -> list[str]:
        files = self.record.files
        return [name for name in names if _size(self.folder / name) != files[name].bytes]

    def _fetch(self, name: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._read(name)
                return
            except _OtherBytes as error:
                if not left:
                    raise ModelError(
                        f"{self.key}: {storage.join(self.url, name)}: {error} bytes that are not "
                        f"those of its {RECORD}; allowed: what `dopsd fetch CONFIG --to s3://...` "
                        "puts there"
                    ) from None

    def _read(self, name: str) -> None:
        """Raises _OtherBytes before the file gets its name."""
        expected, digest, size = self.record.files[name], hashlib.sha256(), 0
        # A copy that a power cut left with other bytes would be taken for whole.
        with pieces.streamed_file(str(self.folder / name)) as file:
            for part in storage.read_parts(storage.join(self.url, name)):
                digest.update(part)
                size += file.write(part)
            if (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
                raise _OtherBytes(str(size))

    def _remove_unfinished(self) -> None:
        """What a process that died left: whoever holds the lock is alone."""
        for path in self.folder.rglob("*.tmp-*"):
            if storage.TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _refuse_without_room(self, missing: list[str]) -> None:
        needed = sum(self.record.files[name].bytes for name in missing)
        if needed > free_bytes(str(self.folder)):
            raise ModelError(
                f"{self.key}: {self.url} takes {megabytes(needed)} more in {self.folder}, "
                f"{free_space(str(self.folder))}; allowed: an HF_HOME on a disk with as much room"
            )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@cache
def _copy(url: str, key: str) -> _Copy:
    path = storage.join(url, RECORD)
    try:
        if not storage.exists(path):
            raise ModelError(
                f"{key}: {url} holds no {RECORD}; allowed: a folder that `dopsd fetch CONFIG --to "
                "s3://...` filled"
            )
        record = read_json(path, StoredModel, ModelError, where=f"{key}: {path}")
    except (OSError, StorageError) as error:
        raise ModelError(f"{key}: {error}") from error
    # Another content is another copy: whoever reads the old one goes on reading it.
    told = hashlib.sha256(f"{url}\n{record.model_dump_json()}".encode()).hexdigest()[:16]
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME, "dopsd", f"{url.rpartition('/')[2]}-{told}")
    return _Copy(key, url, folder, record)


_copies: dict[Path, _Copy] = {}
"""Those that this process has named."""


def local_copy(url: str, key: str) -> str:
    """The folder on this node's disk, under HF_HOME, that stands for the model at ``url``, so far
    without weights.

    Raises ModelError in the name of ``key`` for what is no model there, what the storage refuses, a
    file that is not the record's, and a disk without room.
    """
    copy = _copy(url.rstrip("/"), key)
    _copies[copy.folder] = copy
    copy.bring(name for name in copy.record.files if not name.endswith(_WEIGHTS))
    return str(copy.folder)


def bring_weights(folder: str | os.PathLike[str]) -> None:
    """All that :func:`local_copy` left away, in ``folder`` and below; a folder of anybody else, or
    a hub id, is left alone. Raises as that one does."""
    for copy in _copies.values():
        copy.bring(copy.below(Path(folder)))


def stored_identity(folder: str | os.PathLike[str]) -> str | None:
    """What identifies the files in ``folder`` of a copy, whether they are here yet or not; None for
    any other folder."""
    for copy in _copies.values():
        if names := sorted(copy.below(Path(folder))):
            digest = hashlib.sha256()
            for name in names:
                inside = (copy.folder / name).relative_to(folder)
                digest.update(f"{inside}:{copy.record.files[name].sha256};".encode())
            return digest.hexdigest()
    return None


def stored_bytes(url: str, key: str) -> int:
    """Of all files of the model at ``url``. Raises ModelError."""
    return sum(file.bytes for file in _copy(url.rstrip("/"), key).record.files.values())
