"""What coordinator, learners and driver send each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import ray

from dopsd.coordinator.admission import Counts
from dopsd.policy.bundle import Bundle


@dataclass
class ObjectRefBox:
    """References that Ray must not resolve on the way: each learner fetches its own share."""

    ref: ray.ObjectRef
    real: bool
    """False for zero-weight padding."""
    index: int = 0
    losses: int = 0
    """How often this micro-batch was lost before; sent back when it is lost again."""


@dataclass
class Share:
    """Of a rank's micro-batches of a step those that are ready, in order, and how many follow."""

    boxes: list[ObjectRefBox]
    missing: int


@dataclass
class ResumePoint:
    """Where a group of learners begins."""

    step: int
    files: dict[str, ObjectRefBox] = field(default_factory=dict)
    """The learners' files of a checkpoint; none at the very start."""
    slices: tuple[str, ...] = ()
    """Of whole models in their place: paths of the files that the learners wrote."""
    bundle: Bundle | None = None
    """Of whole models: what was published at this step."""


@dataclass(frozen=True)
class PromptsToDraw:
    """Own prompts, encoded, for the workers that draw them while the run trains."""

    contexts: tuple[ray.ObjectRef, ...]
    """One of each prompt."""
    size: tuple[int, int]
    """(height, width) of the pictures, in pixels."""


@dataclass(frozen=True)
class CheckpointRequest:
    """What the coordinator wants of the learners at a version."""

    save: bool = False
    """A checkpoint now."""
    stop: bool = False
    """Train no further."""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment, for its driver, for progress and for the learners' scaling policy."""

    step: int
    """Trained steps."""
    steps: int
    """Steps of the whole run."""
    latest: dict[str, Any] = field(default_factory=dict)
    """Metrics of the newest step."""
    losses: tuple[float, float] = (math.nan, math.nan)
    """Mean loss of the first and of the last steps."""
    counts: Counts = field(default_factory=Counts)
    """Micro-batches, by how far they are."""
    roles: dict[str, str] = field(default_factory=dict)
    """What each role is doing, in words."""
    attempt: int = 0
    """The group of learners that is heard; 0 between two of them."""
    training: bool = False
    """The learners of this attempt have published: they are not starting up any more."""
    waiting: bool = False
    """They wait for micro-batches."""
    still: float = 0.0
    """Seconds since anything moved."""
    saved: int | None = None
    """Step of the newest checkpoint."""
    save_seconds: float | None = None
    """What writing the last one took; None before the first."""
    restarts: int = 0
    """Inference workers and streams that were replaced."""
    learner_restarts: int = 0
    """How much of ``learner.restarts`` is used up."""
    pictures: tuple[int, int] = (0, 0)
    """Of own prompts: those that are drawn, and those that may be before the end."""
    ended: bool = False
    """The run was asked to end before its last step."""
    notices: list[str] = field(default_factory=list)
    """What a person should know, in the order in which it happened."""
