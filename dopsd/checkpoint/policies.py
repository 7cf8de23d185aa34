"""Published weights in checkpoints: those of the versions that still generate.

Of LoRAs a file per version and adapter, as it travels. Of whole models a file per bucket, and
``policies.json`` with what each version is made of: versions share buckets, as those of one teacher
do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from dopsd.checkpoint.folder import Checkpoint, policy_file
from dopsd.files import storage
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import bucket_key, unpack_bucket
from dopsd.policy.bundle import Bundle

POLICIES = "policies.json"

Put = Callable[[bytes], Any]


def whole_files(bundles: Mapping[int, Bundle]) -> dict[str, Any]:
    """{file name: reference} of published LoRAs."""
    return {
        policy_file(version, adapter): ref
        for version, bundle in bundles.items()
        if not bundle.streamed
        for adapter, ref in bundle.refs.items()
    }


def bucket_files(bundles: Mapping[int, Bundle]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(the list of versions as a file, {file name: reference} of the buckets) of whole models."""
    versions: dict[int, dict[str, Any]] = {}
    refs: dict[str, Any] = {}
    for version, bundle in bundles.items():
        if not bundle.streamed:
            continue
        files: dict[str, list[str]] = {}
        for adapter, buckets in bundle.refs.items():
            digests = [bundle.checksums[bucket_key(adapter, n)] for n in range(len(buckets))]
            files[adapter] = [f"bucket-{digest}.safetensors" for digest in digests]
            refs |= zip(files[adapter], buckets)
        versions[version] = {
            "files": files,
            "modules": bundle.modules,
            "teacher_version": bundle.teacher_version,
        }
    if not versions:
        return {}, {}
    return {POLICIES: json.dumps(versions, indent=1).encode()}, refs


def restored_bundles(checkpoint: Checkpoint, put: Put) -> dict[int, Bundle]:
    """The bundles of a checkpoint; ``put`` stores bytes, as ray.put does."""
    if POLICIES in checkpoint.files:
        return _restored_buckets(checkpoint, put)
    return {
        version: Bundle.restored(
            version,
            {
                role: checkpoint.files[policy_file(version, role)]
                for role in (STUDENT, TEACHER)
                if policy_file(version, role) in checkpoint.files
            },
            put,
        )
        for version in checkpoint.manifest.policy_versions
    }


def _restored_buckets(checkpoint: Checkpoint, put: Put) -> dict[int, Bundle]:
    @cache
    def stored(name: str) -> tuple[Any, str]:
        """A bucket's reference and its checksum, computed anew: files are held to their SHA-256."""
        payload = storage.read_bytes(storage.join(checkpoint.path, name))
        return put(payload), checksum(unpack_bucket(payload))

    return {
        int(version): Bundle(
            int(version),
            {
                adapter: tuple(stored(name)[0] for name in names)
                for adapter, names in entry["files"].items()
            },
            {
                bucket_key(adapter, index): stored(name)[1]
                for adapter, names in entry["files"].items()
                for index, name in enumerate(names)
            },
            entry["modules"],
            streamed=True,
            teacher_version=entry["teacher_version"],
        )
        for version, entry in json.loads(checkpoint.files[POLICIES]).items()
    }
