"""Pictures that are the same to the eye: other files, sizes or compressions of one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_NEAR = 10
"""Levels of 255 by which the cells of two prints of one picture differ at most."""
_MOST = 20_000
"""Pictures that are compared with their like; among more only equal prints are found."""


def near_copies(prints: Sequence[str]) -> list[list[int]]:
    """Groups of positions whose prints (``PictureFacts.print``) are nearly equal, each of two or
    more, in order of their first."""
    if len(prints) < 2:
        return []
    cells = np.stack([np.frombuffer(bytes.fromhex(each), np.uint8) for each in prints])
    near = _NEAR if len(prints) <= _MOST else 0
    # Prints that are near have near means: only those next to one another in that order compare.
    means = cells.mean(axis=1)
    order = np.argsort(means, kind="stable")
    group = list(range(len(prints)))

    def top(at: int) -> int:
        while group[at] != at:
            at = group[at]
        return at

    sorted_means, sorted_cells = means[order], cells[order].astype(np.int16)
    for place in range(len(order) - 1):
        end = int(np.searchsorted(sorted_means, sorted_means[place] + near, side="right"))
        others = sorted_cells[place + 1 : end]
        if not len(others):
            continue
        close = np.abs(others - sorted_cells[place]).max(axis=1) <= near
        for other in np.flatnonzero(close):
            one, two = sorted((top(int(order[place])), top(int(order[place + 1 + other]))))
            group[two] = one
    found: dict[int, list[int]] = {}
    for at in range(len(prints)):
        found.setdefault(top(at), []).append(at)
    return [members for members in found.values() if len(members) > 1]
