"""What a group of learners begins with, out of a checkpoint, and what a new one is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import ray

from dopsd import storage
from dopsd.checkpoint.folder import Checkpoint
from dopsd.checkpoint.learner_slices import PREFIX
from dopsd.checkpoint.learner_state import FILES
from dopsd.checkpoint.policies import bucket_files, restored_bundles, whole_files
from dopsd.coordinator.messages import ObjectRefBox, ResumePoint
from dopsd.policy.bundle import Bundle


def resume_point(checkpoint: Checkpoint | None) -> tuple[ResumePoint, dict[int, Bundle]]:
    """Where learners begin, and the weights that still generate, by version."""
    if checkpoint is None:
        return ResumePoint(0), {}
    bundles = restored_bundles(checkpoint, ray.put)
    files = {
        name: ObjectRefBox(ray.put(checkpoint.files[name]), True)
        for name in FILES
        if name in checkpoint.files
    }
    slices = [name for name in checkpoint.manifest.large if name.startswith(PREFIX)]
    published = bundles.get(checkpoint.step)
    return ResumePoint(
        checkpoint.step,
        files,
        tuple(storage.join(checkpoint.path, name) for name in slices),
        published if published and published.streamed else None,
    ), bundles


def checkpoint_files(
    files: dict[str, ObjectRefBox], bundles: dict[int, Bundle], limit: float
) -> tuple[dict[str, bytes], tuple[int, ...], Mapping[str, Callable[[], bytes]]]:
    """What a checkpoint is made of: contents by name (the learners' ``files`` and LoRAs that still
    generate), the versions that still generate, and how to fetch the buckets, by name, of those
    that are whole models. ``limit``: seconds that a transfer may take."""
    index, buckets = bucket_files(bundles)
    refs = {name: box.ref for name, box in files.items()} | whole_files(bundles)
    payloads = dict(zip(refs, ray.get(list(refs.values()), timeout=limit)))

    def fetch(ref: ray.ObjectRef) -> bytes:
        payload: bytes = ray.get(ref, timeout=limit)
        return payload

    fetches = {name: partial(fetch, ref) for name, ref in buckets.items()}
    return payloads | index, tuple(v for v in sorted(bundles) if bundles[v].refs), fetches
