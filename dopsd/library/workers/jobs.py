"""What passes between a library's command and its workers."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.config import RunConfig
from dopsd.data.planning.concepts import ConceptGroup
from dopsd.library.report.sheet import Sheet

Losses = list[tuple[int, float]]


@dataclass(frozen=True)
class Job:
    """One concept to train; ``config`` is that of a run of it alone."""

    concept: str
    config: RunConfig
    groups: tuple[ConceptGroup, ...]
    weight: float
    """Of ``data.concept_weights``."""
    metadata: dict[str, str]
    """Of the files that it leaves."""
    first: int
    """Step at which it begins: 0, or where an earlier attempt left a state."""
    files: dict[str, bytes]
    """Of that state, if there is one."""
    losses: Losses
    draw: bool = True
    """Its sheet, where the library keeps one."""


@dataclass(frozen=True)
class Trained:
    """What a job gave."""

    lora: bytes
    teacher: bytes | None
    steps: int
    stopped: str
    """Why before its last step, if so."""
    losses: tuple[float | None, float | None]
    """Means of the first and of the last steps."""
    adapter_sha256: str
    seconds: float
    first_step_seconds: float
    """From the job's arrival to its first finished step."""
    sheet: Sheet | None = None
    no_sheet: str = ""
    """Why there is none, where drawing failed."""


@dataclass(frozen=True)
class SavedState:
    """A learner between two steps."""

    step: int
    losses: Losses
    files: dict[str, bytes]


@dataclass(frozen=True)
class News:
    """What a worker tells while it trains."""

    concept: str
    step: int
    state: SavedState | None
    waits: int = 0
    """Grows while it waits for others, which is no hanging."""
