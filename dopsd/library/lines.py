"""What a library's command says of its concepts, in lines."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd import shown
from dopsd.library.catalogue.catalogue import Catalogue, Concept
from dopsd.library.scheduler import Counts
from dopsd.library.workers.jobs import Trained


def opening_lines(catalogue: Catalogue, counts: Counts, gone: Sequence[str]) -> list[str]:
    """What there is to do, and what is not done and why; ``gone``: trained concepts that are in the
    data no more."""
    lines = [
        f"library: {counts.planned} concepts: {counts.done} done, {counts.skipped} skipped, "
        f"{counts.parked} parked, {counts.waiting} to train"
    ]
    for kind, own in catalogue.skips_by_kind():
        example = f"{shown.value(own[0].name)}: {own[0].skip}"
        lines.append(f"  skipped: {len(own)} x {kind}, e.g. {example}")
    if catalogue.unnamed:
        lines.append(f"  left aside: {catalogue.unnamed} pictures without a concept")
    if gone:
        lines.append(
            f"  kept: {len(gone)} concepts that are not in the data any more, e.g. "
            f"{shown.value(gone[0])}"
        )
    return lines


def result_line(concept: Concept, result: Trained, worker: str) -> str:
    """What a concept came to."""
    first, last = result.losses
    loss = "" if first is None or last is None else f"loss {first:.4f} -> {last:.4f}, "
    why = f" ({result.stopped})" if result.stopped else ""
    if result.sheet is not None:
        scores = result.sheet.scores
        loss += f"distance {scores.base:.3g} -> {scores.student:.3g}, "
        if scores.drawn is not None:
            loss += f"drawn {scores.drawn:.0%} (base {scores.base_drawn:.0%}), "
    undrawn = f"; no sheet: {result.no_sheet}" if result.no_sheet else ""
    return (
        f"{shown.line(concept.name)}: {loss}{result.steps} steps{why}, {result.seconds:.1f} s on "
        f"{worker}{undrawn}"
    )
