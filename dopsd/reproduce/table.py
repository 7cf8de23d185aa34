"""The comparison's table: every variant on every concept, seeds pooled, beside the base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from dopsd.intervals import Value, mean, wilson
from dopsd.reproduce.variants import Trial

BASE_TITLE = "base, not tuned"

Score = Callable[[str, str, str], tuple[Value, int]]
"""(model, group of prompts, column) -> its value and the number of pictures behind it."""


@dataclass(frozen=True)
class Line:
    """One variant on one concept.

    ``concept``: pictures for ``[V]`` that show it. On prior prompts: ``ok``, pictures with every
    named attribute right that belong to the world, and ``palette_error``. ``kept`` and ``blur``
    divide these by the base's: 1 is no change.
    """

    concept_name: str
    title: str
    seeds: int
    concept: Value
    ok: Value
    palette_error: Value
    kept: float
    blur: float


def lines_of(trials: Sequence[Trial], base: str, prior: str, score: Score) -> list[Line]:
    """Pool each variant's seeds; the base comes first for every concept.

    Args:
        trials: those that were evaluated.
        base: the base's name in the evaluation.
        prior: the group of the prompts about what the base knew.
        score: reads a cell of the evaluation.
    """
    lines = []
    for concept in dict.fromkeys(trial.concept for trial in trials):
        start = _line(concept, BASE_TITLE, [base], prior, score, None)
        lines.append(start)
        for variant in dict.fromkeys(t.variant.name for t in trials if t.concept == concept):
            found = [t for t in trials if (t.concept, t.variant.name) == (concept, variant)]
            names = [trial.name for trial in found]
            lines.append(_line(concept, found[0].variant.title, names, prior, score, start))
    return lines


def _line(
    concept: str, title: str, models: list[str], prior: str, score: Score, base: Line | None
) -> Line:
    def rate(group: str, column: str) -> Value:
        cells = [score(model, group, column) for model in models]
        hits = sum(round(value.value * count) for value, count in cells)
        total = sum(count for _, count in cells)
        return Value(hits / total, *wilson(hits, total))

    errors = [score(model, prior, "palette_error")[0] for model in models]
    ok, error = rate(prior, "ok"), Value(*(mean([getattr(e, f) for e in errors]) for f in _ENDS))
    return Line(
        concept_name=concept,
        title=title,
        seeds=len(models),
        concept=rate(concept, "concept"),
        ok=ok,
        palette_error=error,
        kept=ok.value / base.ok.value if base else 1.0,
        blur=error.value / base.palette_error.value if base else 1.0,
    )


_ENDS = ("value", "low", "high")


def markdown(lines: Sequence[Line]) -> str:
    """The table as people read it."""
    head = ("concept", "trained by", "seeds", "`[V]` drawn", "prior ok", "kept", "palette error")
    rows = ["| " + " | ".join((*head, "x base")) + " |", "|---" * (len(head) + 1) + "|"]
    for line in lines:
        cells = (
            line.concept_name,
            line.title,
            str(line.seeds),
            str(line.concept),
            str(line.ok),
            f"{line.kept:.0%}",
            str(line.palette_error),
            f"{line.blur:.2f}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def to_json(lines: Sequence[Line]) -> str:
    """The table as programs read it."""
    return json.dumps([asdict(line) for line in lines], indent=1) + "\n"


def verdicts(lines: Sequence[Line]) -> list[str]:
    """What the comparison set out to find, for each concept, and whether it was found."""
    said = []
    for concept in dict.fromkeys(line.concept_name for line in lines):
        rows = {line.title: line for line in lines if line.concept_name == concept}
        base = rows[BASE_TITLE]
        for title, row in rows.items():
            if title.startswith("D-OPSD (") or title == "SFT":
                said.append(_verdict(concept, title, row, base))
    return said


def _verdict(concept: str, title: str, row: Line, base: Line) -> str:
    learned = row.concept.value >= 2 * base.concept.value and row.concept.low > base.concept.high
    facts = (
        f"{concept}, {title}: concept {base.concept.value:.2f} -> {row.concept.value:.2f}, keeps "
        f"{row.kept:.0%} of the base's prior score, palette error x {row.blur:.2f}"
    )
    if title == "SFT":
        lost = row.kept <= 0.8 or row.blur >= 1.5
        return f"{facts} (expected: loses 20%, or palette error x 1.5: {'yes' if lost else 'NO'})"
    met = learned and row.kept >= 0.95
    return f"{facts} (target: twice the concept, 95% kept: {'met' if met else 'NOT met'})"
