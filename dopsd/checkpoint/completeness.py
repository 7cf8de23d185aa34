"""Whether a checkpoint lists all that a run resumes from: which files, of which versions, of how
many learners."""

from __future__ import annotations

import re

from dopsd.checkpoint.folder import CheckpointManifest, policy_file
from dopsd.checkpoint.learner_state import FILES, PREFIX
from dopsd.checkpoint.policies import POLICIES
from dopsd.config import RunConfig
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.versions import policy_version

_SLICES = re.compile(rf"{PREFIX}(\d+)-of-(\d+)-.*")


def missing(config: RunConfig, manifest: CheckpointManifest) -> str | None:
    """What a checkpoint of a run of this ``config`` should list and does not, or None."""
    full, step = config.adapters == "full", manifest.step
    versions = range(0)
    if config.source != "fused":  # else no weights travel
        versions = range(policy_version(step, config.max_policy_lag), step + 1)
    if lacking := set(versions) - set(manifest.policy_versions):
        return f"incomplete, version {min(lacking)} of the weights is not in it"
    needed = [] if full else [*FILES]
    if full and versions:
        needed.append(POLICIES)
    elif not full:
        # A student that nobody rolls out is not published.
        roles = (STUDENT, TEACHER) if config.method.objective == "dopsd" else (TEACHER,)
        needed += [policy_file(v, role) for v in versions for role in roles]
    if absent := [name for name in needed if name not in manifest.files]:
        return f"incomplete, {absent[0]} is not in it"
    return _missing_slices(manifest) if full else None


def _missing_slices(manifest: CheckpointManifest) -> str | None:
    matches = [match for name in manifest.large if (match := _SLICES.fullmatch(name))]
    there = sorted((int(match[1]), int(match[2])) for match in matches)
    if there != [(rank, manifest.learners) for rank in range(manifest.learners)]:
        return f"incomplete, {len(there)} learners' parts of {manifest.learners} are in it"
    return None
