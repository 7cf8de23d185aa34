"""`dopsd fetch --to s3://...`: the models of a run as folders for `model.base` and `model.vlm`.

Of each model one folder with a record of every file's digest, written last (models/stored.py): what
was cut is no model, and the same command goes on with it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.driver.fetch.wanted import Listed, Tell, Wanted, wanted_models
from dopsd.errors import ConfigError
from dopsd.files import pieces, storage
from dopsd.files.disk import free_bytes, free_space, megabytes
from dopsd.models.hub import hub_errors
from dopsd.models.stored import RECORD, StoredModel
from dopsd.ownership.ownership import FileDigest, OwnedFolder, digest_of
from dopsd.ownership.scratch import temporary_folder

_KIND = "model"
_CONFIGURED = ("model.base", "model.vlm")
"""Keys that take s3://."""


def fetch_to_s3(config: RunConfig, to: str, tell: Tell = lambda line: None) -> list[str]:
    """Put what a run of ``config`` reads of its models under ``to``; returns lines for people.

    What is there already stays. Raises ModelError for what the hub refuses and for a file that does
    not have the hub's digest, ConfigError for what is there and not ours and for a disk without
    room for a file on its way, StorageError for what S3 refuses.
    """
    lines, words = [], []
    taken: dict[str, str] = {}
    """URL to the key that has it."""
    for wanted in wanted_models(config, folders=True):
        if wanted.key not in _CONFIGURED:
            lines.append(f"{wanted.key}: {wanted.repository} is read from the hub, not from S3")
            continue
        name = Path(wanted.repository).name if wanted.is_folder else wanted.repository
        url = storage.join(to.rstrip("/"), name)
        if taken.setdefault(url, wanted.key) != wanted.key:
            raise ConfigError(
                f"--to: {taken[url]} and {wanted.key} would both be {url}; allowed: folders of "
                "different names"
            )
        lines.append(_Upload(wanted, url, tell).run())
        words.append(f"{wanted.key}={url}")
    if not words:
        return [*lines, "Nothing to fetch: every model of this config is embedded or lies on S3."]
    return [*lines, f"Next: dopsd train ... {' '.join(words)}"]


class _Upload:
    """Of the model ``wanted`` to the folder ``url``."""

    def __init__(self, wanted: Wanted, url: str, tell: Tell) -> None:
        self.wanted, self.url, self.tell = wanted, url, tell
        self.own = OwnedFolder(url, _KIND, "--to")
        self.commit, self.listed = wanted.listing()
        self.new = 0
        """Bytes that went up."""

    def run(self) -> str:
        names = [file.name for file in self.listed]
        self.own.claim(*names)
        files = {}
        with temporary_folder("fetch") as scratch:
            for number, file in enumerate(self.listed):
                size = megabytes(file.bytes)
                self.tell(f"{self.url}: {file.name} ({size}), {number} of {len(self.listed)}")
                files[file.name] = self._put(file, scratch)
        self.own.remove(self.own.entries().keys() - {*names, RECORD})  # of another revision
        source = Path(self.wanted.repository).name if self.wanted.is_folder else None
        record = StoredModel(
            source=source or self.wanted.repository, commit=self.commit, files=files
        )
        self.own.write(RECORD, f"{json.dumps(record.model_dump(), indent=1)}\n".encode())
        total = sum(file.bytes for file in files.values())
        return (
            f"{self.wanted.called(self.commit)} -> {self.url}: {len(files)} files, "
            f"{megabytes(total)} ({megabytes(self.new)} of it new)"
        )

    def _put(self, file: Listed, scratch: str) -> FileDigest:
        """What the file holds. It is read only where S3 does not hold the hub's digest already."""
        there = self._there(file.name)
        if there and there.sha256 == file.sha256:
            return there
        path, found = self._local(file, scratch)
        if found != there:
            self.own.remove([RECORD])  # half of another one is no model
            self.own.seal({file.name: None})
            with open(path, "rb") as source, pieces.streamed_file(self.own.file(file.name)) as to:
                shutil.copyfileobj(source, to, storage.PART)
            self.own.seal({file.name: found})
            self.new += found.bytes
        if not self.wanted.is_folder:
            os.unlink(path)
        return found

    def _there(self, name: str) -> FileDigest | None:
        """What a whole file of ours holds; None for one that is missing or was cut."""
        sealed = self.own.entries().get(name)
        path = self.own.file(name)
        whole = sealed and storage.exists(path) and storage.size(path) == sealed.bytes
        return sealed if whole else None

    def _local(self, file: Listed, scratch: str) -> tuple[str, FileDigest]:
        """Path and digest of the file on this machine. Raises as :func:`fetch_to_s3`."""
        wanted = self.wanted
        if wanted.is_folder:
            path = os.path.join(wanted.repository, file.name)
            return path, digest_of(storage.read_parts(path))
        from huggingface_hub import hf_hub_download

        if file.bytes > free_bytes(scratch):
            raise ConfigError(
                f"--to: {file.name} of {wanted.repository} takes {megabytes(file.bytes)} in "
                f"{tempfile.gettempdir()} on its way, {free_space(scratch)}; allowed: a TMPDIR on "
                "a disk with as much room"
            )
        for force in (False, True):
            with hub_errors(wanted.key, wanted.repository, wanted.revision):
                path = hf_hub_download(
                    wanted.repository,
                    file.name,
                    revision=self.commit,
                    local_dir=scratch,
                    force_download=force,
                )
            found = digest_of(storage.read_parts(path))
            if file.is_whole(found):
                return path, found
        raise wanted.other_bytes(file, found)
