"""Published weights of whole models, into a checkpoint's files and out of them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dopsd.checkpoint.folder import Checkpoint
from dopsd.checkpoint.policies import bucket_files, restored_bundles
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import bucket_key
from dopsd.policy.bundle import Bundle
from tests.helpers.bundles import pack_bucket


def test_versions_that_share_buckets_come_back_as_they_were_published(tmp_path: Path) -> None:
    taken: list[str] = []
    made = {name: pack_bucket({name: torch.randn(3, 4)}) for name in ("a0", "a1", "b0", "b1", "c0")}

    def bundle(version: int, student: tuple[str, ...], teacher: tuple[str, ...]) -> Bundle:
        refs = {STUDENT: student, TEACHER: teacher}
        checksums = {
            bucket_key(adapter, n): made[name][1]
            for adapter, names in refs.items()
            for n, name in enumerate(names)
        }
        return Bundle(version, refs, checksums, 4, streamed=True, teacher_version=0)

    bundles = {3: bundle(3, ("a0", "a1"), ("c0",)), 4: bundle(4, ("b0", "b1"), ("c0",))}
    files, refs = bucket_files(bundles)
    assert sorted(refs.values()) == sorted(made), "what versions share is one file"
    for name, ref in refs.items():
        (tmp_path / name).write_bytes(made[ref][0])

    def put(payload: bytes) -> str:
        name = next(name for name, (bucket, _) in made.items() if bucket == payload)
        assert name not in taken, "read once"
        taken.append(name)
        return name

    manifest: Any = None
    assert restored_bundles(Checkpoint(str(tmp_path), manifest, files), put) == bundles
