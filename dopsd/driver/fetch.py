"""`dopsd fetch`: the models of a run from the hub into a folder, before any GPU is asked for.

The folder is what the libraries call HF_HOME, so that a run finds everything there under the same
names, with HF_HUB_OFFLINE=1 and no network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.disk import free_bytes, free_space, megabytes
from dopsd.errors import ConfigError, ModelError
from dopsd.models.hub import hub_errors
from dopsd.models.pretrained import INDEX, resolve_base, resolve_vlm
from dopsd.readers import Object, read_json

RECORD = "dopsd-models.json"
"""What was fetched, with digests."""
_FORMAT = "dopsd-models"
_PARTS = ("processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Of a pipeline; a repository may hold the same weights once more in other forms."""
_KINDS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
_CHUNK = 2**24

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """A repository of the hub, and which of its files are read."""

    key: str
    repository: str
    revision: str | None
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Fetched:
    """One file of it, as it lies in the folder."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Listed:
    """One file of a repository, as the hub lists it."""

    name: str
    bytes: int
    sha256: str | None
    """None of small files, which the hub knows by another digest."""


def fetch(config: RunConfig, folder: str, tell: Tell = lambda line: None) -> list[str]:
    """Download what a run of ``config`` reads of the hub into ``folder``; returns lines for people.

    What is there already is kept. Raises ModelError for what the hub refuses and for a file that
    does not have the hub's digest, ConfigError for a disk without room.
    """
    repositories: dict[str, Any] = {}
    total, lines = 0, []
    for wanted in _wanted(config, folder):
        commit, files = _fetch(wanted, folder, tell)
        size = sum(file.bytes for file in files)
        total += size
        repositories[wanted.repository] = {
            "revision": wanted.revision,
            "commit": commit,
            "files": [asdict(file) for file in files],
        }
        lines.append(f"{wanted.repository}@{commit[:12]}: {len(files)} files, {megabytes(size)}")
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


def _wanted(config: RunConfig, folder: str) -> Iterator[Wanted]:
    """In the order in which they can be known: which VLM goes with a base says the base's own
    config."""
    model = config.model
    base = resolve_base(model.base)
    of_a_part = tuple(f"{part}/{kind}" for part in _PARTS for kind in _KINDS)
    if not os.path.isdir(base):
        yield Wanted("model.base", base, model.revision, (INDEX, *of_a_part))
    if config.separate_vlm:
        vlm = resolve_vlm(_local(base, model.revision, folder), model.vlm)
        if not os.path.isdir(vlm):
            yield Wanted("model.vlm", vlm, model.vlm_revision, _KINDS)
    preflight = config.preflight
    if preflight.mode != "off" and preflight.model and not os.path.isdir(preflight.model):
        yield Wanted("preflight.model", preflight.model, None, _KINDS)


def _local(base: str, revision: str | None, folder: str) -> str:
    """Where a base lies by now."""
    if os.path.isdir(base):
        return base
    from huggingface_hub import hf_hub_download

    cache = _cache(folder)
    index = hf_hub_download(base, INDEX, revision=revision, cache_dir=cache, local_files_only=True)
    return str(Path(index).parent)


def _fetch(wanted: Wanted, folder: str, tell: Tell) -> tuple[str, list[Fetched]]:
    from huggingface_hub import hf_hub_download

    repository, revision = wanted.repository, wanted.revision
    commit, listed = _listing(wanted)
    _refuse_without_room(wanted, folder, commit, listed)
    fetched = []
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
            found = _measured(path, file.name)
            if found.bytes == file.bytes and file.sha256 in (None, found.sha256):
                break
        else:
            raise ModelError(
                f"{wanted.key}: {repository}: {file.name}: {found.bytes} bytes that are not the "
                "hub's; allowed: the same command, some minutes later"
            )
        fetched.append(found)
    return commit, fetched


def _listing(wanted: Wanted) -> tuple[str, list[_Listed]]:
    """(commit, files that are read) of a repository. Raises ModelError when it has none."""
    from huggingface_hub import HfApi, constants

    with hub_errors(wanted.key, wanted.repository, wanted.revision):
        api = HfApi(endpoint=constants.ENDPOINT)
        info = api.model_info(wanted.repository, revision=wanted.revision, files_metadata=True)
    listed = [
        _Listed(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else None)
        for entry in info.siblings or []
        if any(_matches(entry.rfilename, pattern) for pattern in wanted.patterns)
    ]
    if not listed:
        raise ModelError(f"{wanted.key}: {wanted.repository}: holds nothing of a model")
    return str(info.sha), listed


def _matches(name: str, pattern: str) -> bool:
    """In the folder of the pattern, and not below it."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _refuse_without_room(wanted: Wanted, folder: str, commit: str, listed: list[_Listed]) -> None:
    snapshot = Path(_cache(folder), f"models--{wanted.repository.replace('/', '--')}")
    there = snapshot / "snapshots" / commit
    lacking = sum(file.bytes for file in listed if not (there / file.name).exists())
    if lacking > free_bytes(folder):
        raise ConfigError(
            f"--to: {folder}: {free_space(folder)}, but {wanted.repository} takes "
            f"{megabytes(lacking)} more; allowed: a folder on a disk with as much room"
        )


def _measured(path: str, name: str) -> Fetched:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return Fetched(name, os.path.getsize(path), digest.hexdigest())


def _cache(folder: str) -> str:
    return os.path.join(folder, "hub")
