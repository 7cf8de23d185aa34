"""When a concept has learnt what it will: decided by its own losses alone."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.config.library import LibraryStopSection
from dopsd.intervals import mean


def stops(section: LibraryStopSection, losses: Sequence[tuple[int, float]], step: int) -> bool:
    """Whether a concept ends before ``step``, at which weights are handed over while the loss of
    the last step is not known yet.

    ``losses``: (step, loss) of what was trained; steps that were skipped have none. A look takes
    the mean over ``every`` steps; it is no gain unless it lies ``min_gain`` below the best before.
    """
    if not section.every or not step or step % section.every:
        return False
    looks: list[list[float]] = [[] for _ in range(step // section.every)]
    for number, loss in losses:
        if number < step - 1:  # the first look is a step shorter
            looks[(number + 1) // section.every].append(loss)
    best, without = float("inf"), 0
    for value in (mean(look) for look in looks if look):
        gains = value < best * (1 - section.min_gain)
        without = 0 if gains else without + 1
        best = min(best, value)
    return without >= section.patience
