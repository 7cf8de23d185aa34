"""Names and form of the drawings over training, for those who draw and those who show them."""

from __future__ import annotations

from dopsd.config import RunConfig
from dopsd.models.families.family import DTYPES
from dopsd.run_folder.files import PREVIEW

HISTORY = f"{PREVIEW}/history.json"
"""``samples``: id and prompt of each; ``rows``: version, sample (index) and ``states``, the sigma
of each state and the mean squared difference of student's and teacher's clean estimates there.
``prompts``: the own ones; ``pictures``: version and prompt (index) of what was drawn of them."""

PROMPTS = f"{PREVIEW}/prompts"
"""Folder of the own prompts' pictures."""


def strip_path(version: int, sample: int) -> str:
    """The strip of a sample under a version, inside the run folder."""
    return f"{PREVIEW}/history/v{version:06d}-s{sample:02d}.png"


def target_path(sample: int) -> str:
    """The target image of a sample, inside the run folder."""
    return f"{PREVIEW}/history/target-s{sample:02d}.png"


def prompt_path(version: int, prompt: int) -> str:
    """The picture of an own prompt under a version, inside the run folder."""
    return f"{PROMPTS}/v{version:06d}-p{prompt:02d}.png"


def kept_versions(config: RunConfig) -> list[int]:
    """Versions between start and end whose adapters are kept; those two need no keeping."""
    last, every = config.learner.steps, config.preview.every
    if not config.preview.draws:
        return []
    wanted = range(every, last, every) if every else (round(last * q / 4) for q in (1, 2, 3))
    return sorted({version for version in wanted if 0 < version < last})


def small_enough(config: RunConfig, numel: int) -> bool:
    """Whether an adapter of ``numel`` weights is within ``preview.max_weights_mb``."""
    return numel * DTYPES[config.model.dtype].itemsize <= config.preview.max_weights_mb * 2**20
