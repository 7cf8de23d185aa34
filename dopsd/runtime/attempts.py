"""What a group of learners begins with, out of a checkpoint, and what a new one is made of."""

from __future__ import annotations

import ray

from dopsd.checkpoint import Checkpoint, policy_file
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.runtime.exchange import Box, Entry
from dopsd.runtime.learner_state import FILES
from dopsd.runtime.weights import Bundle


def beginning(found: Checkpoint | None) -> tuple[Entry, dict[int, Bundle]]:
    """Where learners begin, and the weights that still generate, by version."""
    if found is None:
        return Entry(0), {}
    bundles = {}
    for version in found.manifest.policy_versions:
        payloads = {a: found.files[policy_file(version, a)] for a in (STUDENT, TEACHER)}
        bundles[version] = Bundle.restored(version, payloads, ray.put)
    files = {name: Box(ray.put(found.files[name]), True) for name in FILES}
    return Entry(found.step, files), bundles


def checkpoint_files(
    files: dict[str, Box], bundles: dict[int, Bundle], limit: float
) -> tuple[dict[str, bytes], tuple[int, ...]]:
    """Contents of a checkpoint by name, fetched within ``limit`` seconds, and the versions among
    them: the learners' ``files`` and the weights that still generate."""
    refs = {name: box.ref for name, box in files.items()}
    for version, bundle in bundles.items():
        refs |= {policy_file(version, a): ref for a, ref in bundle.refs.items()}
    payloads = dict(zip(refs, ray.get(list(refs.values()), timeout=limit)))
    return payloads, tuple(v for v in sorted(bundles) if bundles[v].refs)
