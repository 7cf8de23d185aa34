"""The comparison's table: every variant on every concept, seeds pooled, beside the base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dopsd.errors import DataError
from dopsd.experiments.reproduce.variants import VARIANTS, Budget, Trial
from dopsd.intervals import Value, as_json, mean, wilson
from dopsd.readers import read_json
from dopsd.shown import cell

BASE_TITLE = "base, not tuned"
OURS, SFT = VARIANTS[0].title, "SFT"

Score = Callable[[str, str, str], tuple[Value, int]]
"""(model, group of prompts, column) -> its value and the number of different prompts behind it."""
Ratio = Callable[[str, str], Value]
"""(model, column) -> its mean on the prior prompts divided by the base's on the same noise."""


@dataclass(frozen=True)
class Line:
    """One variant on one concept, trained for ``steps`` at the peak rate ``lr``.

    ``concept``: pictures for ``[V]`` that show it. On prior prompts: ``ok``, pictures with every
    named attribute right that belong to the world, and ``palette_error``. ``kept`` and ``blur``
    divide these by the base's on the same noise: 1 is no change.

    Pictures of one prompt, and trainings that share their prompts, are no independent draws: a
    rate's interval is Wilson's for as many draws as there are prompts, and those of the rest are
    the means of the trainings' own.
    """

    concept_name: str
    title: str
    seeds: int
    steps: int
    lr: float
    concept: Value
    ok: Value
    palette_error: Value
    kept: Value
    blur: Value


_VALUES = ("concept", "ok", "palette_error", "kept", "blur")


def lines_of(
    trials: Sequence[Trial], budget: Budget, base: str, prior: str, score: Score, ratio: Ratio
) -> list[Line]:
    """Pool each variant's seeds; the base comes first for every concept.

    ``base``: its name in the evaluation. ``prior``: the group of the prompts about what it knew.
    ``score`` reads a cell of the evaluation, ``ratio`` how a model compares with the base.
    """
    lines = []
    for concept in dict.fromkeys(trial.concept for trial in trials):
        groups: dict[str, list[str]] = {BASE_TITLE: [base]}
        for trial in trials:
            if trial.concept == concept:
                groups.setdefault(trial.variant.title, []).append(trial.name)
        for title, models in groups.items():
            tuned = [] if title == BASE_TITLE else models
            lines.append(
                Line(
                    concept_name=concept,
                    title=title,
                    seeds=len(models),
                    steps=budget.steps,
                    lr=budget.lr,
                    concept=_rate([score(model, concept, "concept") for model in models]),
                    ok=_rate([score(model, prior, "ok") for model in models]),
                    palette_error=_mean([score(m, prior, "palette_error")[0] for m in models]),
                    kept=_mean([ratio(model, "ok") for model in tuned]),
                    blur=_mean([ratio(model, "palette_error") for model in tuned]),
                )
            )
    return lines


def _rate(cells: Sequence[tuple[Value, int]]) -> Value:
    rate, prompts = mean([value.value for value, _ in cells]), cells[0][1]
    return Value(rate, *wilson(rate * prompts, prompts))


def _mean(values: Sequence[Value]) -> Value:
    """Of nothing: 1, the base beside itself."""
    if not values:
        return Value(1.0, 1.0, 1.0)
    ends = ([getattr(value, end) for value in values] for end in ("value", "low", "high"))
    return Value(*map(mean, ends))


def markdown(lines: Sequence[Line]) -> str:
    """The table as people read it."""
    head = ("concept", "trained by", "seeds", "`[V]` drawn", "prior ok", "kept", "palette error")
    rows = ["| " + " | ".join((*head, "x base")) + " |", "|---" * (len(head) + 1) + "|"]
    for line in lines:
        values = (line.seeds, line.concept, line.ok, line.kept, line.palette_error, line.blur)
        names = [cell(line.concept_name), cell(line.title)]
        rows.append(f"| {' | '.join([*names, *map(str, values)])} |")
    return "\n".join(rows) + "\n"


def to_json(lines: Sequence[Line]) -> str:
    """The table as programs read it."""
    return json.dumps([as_json(line) for line in lines], indent=1, allow_nan=False) + "\n"


def read(path: str) -> list[Line]:
    """What :func:`to_json` wrote. Raises DataError when the file is no such table."""
    entries = read_json(path, list[_Entry], where=f"{path}: not a table.json of `dopsd reproduce`")
    return [_line(entry.model_dump()) for entry in entries]


class _End(BaseModel):
    """A value with its interval; null where it is infinite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float | None
    low: float | None
    high: float | None


class _Entry(BaseModel):
    """A :class:`Line` as the file holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    concept_name: str
    title: str
    seeds: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    lr: float
    concept: _End
    ok: _End
    palette_error: _End
    kept: _End
    blur: _End


def _line(entry: dict[str, Any]) -> Line:
    fields: dict[str, Any] = {
        name: Value.read(value) if isinstance(value, dict) else value
        for name, value in entry.items()
    }
    return Line(**fields)


def pooled(tables: Sequence[Sequence[Line]]) -> list[Line]:
    """Tables of other seeds as one: means over the trainings of each row, and of the ends of their
    intervals. Raises DataError unless all have the same rows."""
    rows: list[list[Any]] = [
        [(row.concept_name, row.title, row.steps, row.lr) for row in lines] for lines in tables
    ]
    for row_keys in rows:
        if row_keys != rows[0]:
            odd = sorted(set(row_keys) ^ set(rows[0])) or ["the order"]
            raise DataError(
                f"tables: their rows differ ({odd[0]}); allowed: equal rows, steps and lr"
            )
    lines = []
    for row in zip(*tables):
        weights = [line.seeds for line in row]
        values = {
            name: _weighted([getattr(line, name) for line in row], weights) for name in _VALUES
        }
        base = row[0].title == BASE_TITLE
        lines.append(replace(row[0], seeds=1 if base else sum(weights), **values))
    return lines


def _weighted(values: Sequence[Value], weights: Sequence[int]) -> Value:
    total = sum(weights)
    return Value(
        *(
            sum(getattr(value, end) * weight for value, weight in zip(values, weights)) / total
            for end in ("value", "low", "high")
        )
    )


def verdicts(lines: Sequence[Line]) -> list[str]:
    """What the comparison set out to find, for each concept, and whether it was found."""
    sentences = []
    for concept in dict.fromkeys(line.concept_name for line in lines):
        rows = {line.title: line for line in lines if line.concept_name == concept}
        if BASE_TITLE not in rows:
            continue
        base, ours, sft = rows[BASE_TITLE], rows.get(OURS), rows.get(SFT)
        if ours:
            learned = ours.concept.value >= 2 * base.concept.value
            learned &= ours.concept.low > base.concept.high
            met = learned and ours.kept.value >= 0.95
            sentences.append(
                f"{_facts(base, ours)} (target: twice the concept, 95% kept: {_yes(met)})"
            )
        if sft:
            lost = sft.kept.value <= 0.8
            sentences.append(f"{_facts(base, sft)} (expected: loses 20%: {_yes(lost)})")
        if ours and sft:
            better = ours.kept.low > sft.kept.high and ours.blur.high < sft.blur.low
            sentences.append(
                f"{concept}, {OURS} keeps more than {SFT} and blurs less, beyond the intervals: "
                f"{_yes(better)}"
            )
    return sentences


def _facts(base: Line, row: Line) -> str:
    return (
        f"{row.concept_name}, {row.title}: concept {base.concept.value:.2f} -> "
        f"{row.concept.value:.2f}, keeps {row.kept.value:.0%} of the base's prior score, palette "
        f"error x {row.blur.value:.2f}"
    )


def _yes(met: bool) -> str:
    return "yes" if met else "NO"
