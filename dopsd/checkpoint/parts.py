"""The tensor files of a checkpoint, which are written and read back where the tensors are.

Knows no Ray and no torch: a task on a learner's node that runs this is up at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from dopsd.errors import CheckpointError
from dopsd.files import storage

_READERS = 4
"""Files whose checksums are computed side by side."""

Count = Annotated[int, Field(ge=0, strict=True)]


class FileRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PartWriter(Protocol):
    """Runs :func:`write_parts` and :func:`check_parts` where the tensors are."""

    def write(self, folder: str, refs: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
        """Write what ``refs`` refer to under these names; yields the record of each."""

    def check(self, folder: str, records: Mapping[str, FileRecord]) -> None:
        """Raises CheckpointError for the first file that is not what its record says."""


@dataclass(frozen=True)
class CheckpointParts:
    """The tensor files of one checkpoint, by name, and who writes them."""

    writer: PartWriter
    whole: Mapping[str, Any] = field(default_factory=dict)
    """References to bytes. Their names are those of any checkpoint of the step: the files get them
    only when the checkpoint is committed."""
    large: Mapping[str, Any] = field(default_factory=dict)
    """The same of files whose names say what is in them: no two writers differ about them."""
    slices: Mapping[str, FileRecord] = field(default_factory=dict)
    """What learners have written into the folder already."""


def write_parts(folder: str, names: Sequence[str], *payloads: Any) -> Iterator[FileRecord]:
    """Write each of ``payloads`` (bytes, or an array of them) as a file of ``folder``, one behind
    the other, to survive a power cut. Raises whatever the storage raises."""
    for name, payload in zip(names, payloads, strict=True):
        data = bytes(payload)
        storage.write_bytes(storage.join(folder, name), data, durable=True)
        yield record_of(data)


def check_parts(folder: str, records: Mapping[str, FileRecord]) -> Iterator[str]:
    """Read files back; yields the name of each that is what its record says. Raises CheckpointError
    for the first that is not."""
    for name, record in records.items():  # first what takes no time
        check_size(folder, name, record)

    def compare(name: str) -> str:
        digest = hashlib.sha256()
        for part in storage.read_parts(storage.join(folder, name)):
            digest.update(part)
        if digest.hexdigest() != records[name].sha256:
            file = storage.join(folder, name)
            raise CheckpointError(f"{file}: damaged, its SHA-256 is not the manifest's")
        return name

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(compare, records)


def check_size(folder: str, name: str, record: FileRecord) -> None:
    """Raises CheckpointError unless the file is there, and as large as it should be."""
    file = storage.join(folder, name)
    if "/" in name or not storage.exists(file):
        raise CheckpointError(f"{file}: missing")
    try:
        size = storage.size(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if size != record.bytes:
        raise CheckpointError(f"{file}: {size} bytes, the manifest says {record.bytes}")


def record_of(payload: bytes) -> FileRecord:
    return FileRecord(bytes=len(payload), sha256=hashlib.sha256(payload).hexdigest())
