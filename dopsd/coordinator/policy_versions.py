"""What learners have published: the versions that still generate, and where a new group begins."""

from __future__ import annotations

from dopsd.checkpoint.folder import Checkpoint
from dopsd.coordinator.messages import ResumePoint
from dopsd.coordinator.resume import resume_point
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
        versions.entry, versions.bundles = resume_point(checkpoint)
        versions.version = versions.entry.step if checkpoint else -1
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
