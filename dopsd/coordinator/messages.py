"""What coordinator and learners hand each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from dopsd.policy.bundle import Bundle


@dataclass
class ObjectRefBox:
    """References that Ray must not resolve on the way: each learner fetches its own share."""

    ref: ray.ObjectRef
    real: bool
    """False for zero-weight padding."""
    index: int = 0
    losses: int = 0
    """How often this micro-batch was lost before; told back when it is lost again."""


@dataclass
class ResumePoint:
    """Where a group of learners begins."""

    step: int
    files: dict[str, ObjectRefBox] = field(default_factory=dict)
    """The learners' files of a checkpoint; none at the very start."""
    slices: tuple[str, ...] = ()
    """Of whole models in their place: paths of the files that the learners wrote."""
    bundle: Bundle | None = None
    """And what was published at this step."""


@dataclass(frozen=True)
class CheckpointRequest:
    """What the coordinator wants of the learners at a version."""

    save: bool = False
    """A checkpoint now."""
    stop: bool = False
    """Train no further."""
