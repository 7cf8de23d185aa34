"""`dopsd fetch`: the models of a run from the hub into a folder, before any GPU is asked for.

The folder is what the libraries call HF_HOME, so that a run finds everything there under the same
names, with HF_HUB_OFFLINE=1 and no network.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from dopsd.config import RunConfig
from dopsd.driver.fetch.wanted import Listed, Tell, Wanted, wanted_models
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.files.disk import free_bytes, free_space, megabytes
from dopsd.models.hub import hub_errors
from dopsd.models.pretrained import INDEX
from dopsd.ownership.ownership import digest_of
from dopsd.readers import Object, read_json

RECORD = "dopsd-models.json"
"""What was fetched, with digests."""
_FORMAT = "dopsd-models"


def fetch(config: RunConfig, folder: str, tell: Tell = lambda line: None) -> list[str]:
    """Download what a run of ``config`` reads of the hub into ``folder``; returns lines for people.

    What is there already is kept. Raises ModelError for what the hub refuses and for a file that
    does not have the hub's digest, ConfigError for a disk without room.
    """
    repositories: dict[str, Any] = {}
    total, lines = 0, []
    for wanted in wanted_models(config, partial(_local, folder)):
        commit, files = _fetch(wanted, folder, tell)
        size = sum(file["bytes"] for file in files)
        total += size
        repositories[wanted.repository] = {
            "revision": wanted.revision,
            "commit": commit,
            "files": files,
        }
        lines.append(f"{wanted.called(commit)}: {len(files)} files, {megabytes(size)}")
    if not repositories:
        return ["Nothing to fetch: every model of this config lies in a local folder."]
    path = storage.join(folder, RECORD)
    record = {"format": _FORMAT, "repositories": _earlier(path) | repositories}
    storage.write_bytes(path, f"{json.dumps(record, indent=1)}\n".encode())
    lines += [
        f"In all {megabytes(total)}; digests: {path}",
        f"Next: HF_HOME={folder} HF_HUB_OFFLINE=1 dopsd train ...",
    ]
    return lines


def _earlier(path: str) -> dict[str, Any]:
    """What was fetched for other configs. Raises ConfigError for a file that is none of ours."""
    if not storage.exists(path):
        return {}
    record = read_json(path, Object, ConfigError, f"--to: {path}")
    if record.get("format") != _FORMAT or not isinstance(record.get("repositories"), dict):
        raise ConfigError(f"--to: {path}: no record of dopsd fetch; allowed: another folder")
    earlier: dict[str, Any] = record["repositories"]
    return earlier


def _local(folder: str, base: str, revision: str | None) -> str:
    """Where a base lies by now."""
    if os.path.isdir(base):
        return base
    from huggingface_hub import hf_hub_download

    cache = _cache(folder)
    index = hf_hub_download(base, INDEX, revision=revision, cache_dir=cache, local_files_only=True)
    return str(Path(index).parent)


def _fetch(wanted: Wanted, folder: str, tell: Tell) -> tuple[str | None, list[dict[str, Any]]]:
    from huggingface_hub import hf_hub_download

    repository, revision = wanted.repository, wanted.revision
    commit, listed = wanted.listing()
    _refuse_without_room(wanted, folder, commit, listed)
    fetched: list[dict[str, Any]] = []
    for number, file in enumerate(listed):
        tell(f"{repository}: {file.name} ({megabytes(file.bytes)}), {number} of {len(listed)}")
        for force in (False, True):
            with hub_errors(wanted.key, repository, revision):
                path = hf_hub_download(
                    repository,
                    file.name,
                    revision=revision,
                    cache_dir=_cache(folder),
                    force_download=force,
                )
            found = digest_of(storage.read_parts(path))
            if file.is_whole(found):
                break
        else:
            raise wanted.other_bytes(file, found)
        fetched.append({"file": file.name, **found.model_dump()})
    return commit, fetched


def _refuse_without_room(
    wanted: Wanted, folder: str, commit: str | None, listed: list[Listed]
) -> None:
    snapshot = Path(_cache(folder), f"models--{wanted.repository.replace('/', '--')}")
    there = snapshot / "snapshots" / str(commit)
    lacking = sum(file.bytes for file in listed if not (there / file.name).exists())
    if lacking > free_bytes(folder):
        raise ConfigError(
            f"--to: {folder}: {free_space(folder)}, but {wanted.repository} takes "
            f"{megabytes(lacking)} more; allowed: a folder on a disk with as much room"
        )


def _cache(folder: str) -> str:
    return os.path.join(folder, "hub")
