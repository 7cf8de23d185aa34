from __future__ import annotations

import pytest

from dopsd.config.library import LibraryStopSection
from dopsd.library.workers.stopping import stops

STOP = LibraryStopSection(every=10, patience=2, min_gain=0.01)


def ends_at(losses: list[float], section: LibraryStopSection = STOP, first: int = 0) -> int | None:
    """The version at which a run ends that resumes at ``first``."""
    known = list(enumerate(losses))
    steps = range(first + 1, len(losses) + 1)
    # At a version the loss of its last step is not known yet.
    return next((step for step in steps if stops(section, known[: step - 1], step)), None)


def test_a_concept_ends_after_looks_without_a_gain() -> None:
    falls = [1 / (1 + step) for step in range(100)]
    assert ends_at(falls) is None
    assert ends_at([1.0] * 100) == 30
    assert ends_at([1.0] * 20 + [0.5] * 80) == 60
    assert ends_at([1.0] * 100, LibraryStopSection(every=0)) is None


@pytest.mark.parametrize("first", [0, 5, 20, 29])
def test_a_resume_changes_nothing(first: int) -> None:
    assert ends_at([1.0] * 100, first=first) == 30


def test_steps_that_were_skipped_have_no_loss() -> None:
    known = [(step, 1.0) for step in range(29) if step % 3]
    assert stops(STOP, known, 30) and not stops(STOP, known[:9], 20)
