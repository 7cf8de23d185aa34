"""Fingerprints of what made a picture or a score, so that results of two makings never mix."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dopsd.files import storage
from dopsd.models.stored import local_copy, stored_identity

_PART = 2**20
"""Bytes read at either end of a large file."""


def fingerprint(values: Any) -> str:
    """12 hex digits of JSON-able ``values``."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def model_identity(model: str, revision: str | None = None) -> str:
    """What identifies weights: a local folder's files, a hub id with its commit, or a model on S3
    with its record's digests.

    Of every file of a local one: name, size, and its bytes (of large ones the first and last MiB,
    so that a model of many gigabytes is told in a moment).
    """
    if storage.is_remote(model):
        model = local_copy(model, "base")
    if identity := stored_identity(model):
        return identity
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{_commit(model, revision)}"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(_PART))
            if size > _PART:
                file.seek(max(_PART, size - _PART))
                digest.update(file.read())
    return digest.hexdigest()


def _commit(model: str, revision: str | None) -> str:
    """The commit that a hub id stands for here; the revision as given where it has no config."""
    from huggingface_hub import hf_hub_download

    for name in ("model_index.json", "config.json"):
        try:
            return Path(hf_hub_download(model, name, revision=revision)).parent.name
        except (OSError, ValueError):
            continue
    return str(revision)
