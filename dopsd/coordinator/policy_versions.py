"""What learners have published: the versions that still generate, where a new group begins, and
what a checkpoint is made of."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from dopsd.checkpoint.folder import Checkpoint
from dopsd.checkpoint.learner_state import FILES, PREFIX
from dopsd.checkpoint.parts import CheckpointParts, FileRecord, PartWriter
from dopsd.checkpoint.policies import bucket_files, restored_bundles, whole_files
from dopsd.coordinator.messages import ObjectRefBox, ResumePoint
from dopsd.files import storage
from dopsd.policy.bundle import Bundle
from dopsd.policy.versions import policy_version


class PolicyVersions:
    """Versions are published in order; those older than ``lag`` steps are let go."""

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self.version = -1
        """The newest one; -1 before the first."""
        self.entry = ResumePoint(0)
        """What learners begin with; emptied once they have taken it."""
        self.bundles: dict[int, Bundle] = {}

    @classmethod
    def restored_from(cls, lag: int, checkpoint: Checkpoint | None) -> PolicyVersions:
        """As it was when a checkpoint was written; without one, before the first version."""
        versions = cls(lag)
        if checkpoint:
            versions.version = checkpoint.step
            versions.bundles = restored_bundles(checkpoint, ray.put)
            versions.entry = _resume_point(checkpoint, versions.bundles.get(checkpoint.step))
        return versions

    @property
    def advanced(self) -> bool:
        """Whether a step was trained since the beginning."""
        return self.version > self.entry.step

    def add(self, bundle: Bundle) -> bool:
        """Take a version; False when it is known, as the first after a checkpoint is."""
        self.entry = ResumePoint(self.entry.step)  # every rank has read it: gathering took all
        if bundle.version <= self.version:
            return False
        assert bundle.version == self.version + 1, "versions are published in order"
        self.version = bundle.version
        self.bundles[bundle.version] = bundle
        oldest = policy_version(bundle.version, self._lag)
        for version in [v for v in self.bundles if v < oldest]:
            del self.bundles[version]
        return True


def _resume_point(checkpoint: Checkpoint, published: Bundle | None) -> ResumePoint:
    files = {
        name: ObjectRefBox(ray.put(checkpoint.files[name]), True)
        for name in FILES
        if name in checkpoint.files
    }
    slices = [name for name in checkpoint.manifest.large if name.startswith(PREFIX)]
    return ResumePoint(
        checkpoint.step,
        files,
        tuple(storage.join(checkpoint.path, name) for name in slices),
        published if published and published.streamed else None,
    )


def checkpoint_files(
    files: dict[str, ObjectRefBox],
    bundles: dict[int, Bundle],
    writer: PartWriter,
    slices: Mapping[str, FileRecord],
) -> tuple[dict[str, bytes], tuple[int, ...], CheckpointParts]:
    """What a checkpoint is made of: contents by name (the list of whole models), the versions that
    still generate, and the tensors, by reference: the learners' ``files`` and what was published
    of those versions. ``slices``: what learners have written."""
    index, buckets = bucket_files(bundles)
    whole = {name: box.ref for name, box in files.items()} | whole_files(bundles)
    versions = tuple(v for v in sorted(bundles) if bundles[v].refs)
    return index, versions, CheckpointParts(writer, whole, buckets, slices)
