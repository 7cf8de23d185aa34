"""Names and form of the drawings over training, for those who draw and those who show them."""

from __future__ import annotations

HISTORY = "preview/history.json"
"""``samples``: id and prompt of each; ``rows``: version, sample (index) and ``states``, the sigma
of each state and the mean squared difference of student's and teacher's clean estimates there."""


def strip_path(version: int, sample: int) -> str:
    """The strip of a sample under a version, inside the run folder."""
    return f"preview/history/v{version:06d}-s{sample:02d}.png"


def target_path(sample: int) -> str:
    """The target image of a sample, inside the run folder."""
    return f"preview/history/target-s{sample:02d}.png"
