"""Results of an evaluation: means with intervals by model, steps and group of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dopsd import shown
from dopsd.evaluation.comparison import Comparison, compare
from dopsd.evaluation.diversity import Diversity
from dopsd.evaluation.image_scores import ImageScores, by_prompt
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.spec import BASE, EvaluatedModel
from dopsd.evaluation.steps_kept import StepsKept, steps_kept
from dopsd.intervals import Value, as_json, bootstrap, mean, wilson


@dataclass(frozen=True)
class Row:
    """A model at a number of steps on a group of prompts."""

    model: str
    steps: int
    group: str
    prior: bool
    prompts: int
    pictures: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Relative:
    """A model's mean divided by another's on the same prompts and noise.

    On prior prompts against the base: retention. For LoRAs loaded together, against each of them
    alone on the concepts: stackability. 1 is no change.
    """

    model: str
    against: str
    steps: int
    group: str
    column: str
    ratio: Value


@dataclass
class Results:
    """Everything that an evaluation found; ``results.json`` holds the same."""

    rows: list[Row]
    relatives: list[Relative]
    columns: dict[str, Column]
    missing: dict[str, str] = field(default_factory=dict)
    """Why a metric was not measured, by its name."""
    settings: dict[str, Any] = field(default_factory=dict)
    steps_kept: StepsKept = field(default_factory=lambda: StepsKept([], []))
    comparisons: list[Comparison] = field(default_factory=list)
    diversity: list[Diversity] = field(default_factory=list)

    def row(self, model: str, group: str) -> Row:
        """Of a table of one number of steps."""
        return next(row for row in self.rows if (row.model, row.group) == (model, group))

    def to_json(self) -> str:
        return json.dumps(as_json(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """The tables, what was not measured, and how to read them."""
        names = [name for name in self.columns if any(name in row.values for row in self.rows)]
        arrows = [f"{n} {'↑' if self.columns[n].higher_is_better else '↓'}" for n in names]
        lines = _table(
            ["model", "steps", "prompts", "pictures", *arrows],
            [
                [
                    shown.cell(row.model),
                    str(row.steps),
                    f"{shown.cell(row.group)} ({row.prompts})",
                    str(row.pictures),
                    *(str(row.values.get(name, "")) for name in names),
                ]
                for row in self.rows
            ],
        )
        if self.relatives:
            lines += [
                "",
                "Relative to another model on the same prompts and noise (1: equal):",
                "",
            ]
            lines += _table(
                ["model", "relative to", "steps", "prompts", "metric", "ratio"],
                [
                    [
                        *(
                            shown.cell(r.model),
                            shown.cell(r.against),
                            str(r.steps),
                            shown.cell(r.group),
                        ),
                        *(r.column, str(r.ratio)),
                    ]
                    for r in self.relatives
                ],
            )
        lines += self._steps_kept() + self._comparisons(names) + self._diversity()
        if self.missing:
            lines += ["", "Not measured:", ""]
            lines += [f"- {shown.cell(reason)}" for reason in self.missing.values()]
        lines += ["", "Means with 95% intervals over prompts: Wilson for rates, bootstrap for the"]
        lines += ["rest. Seeds of one prompt count as one draw.", ""]
        lines += [f"- {name}: {self.columns[name].meaning}" for name in names]
        return "\n".join(lines) + "\n"

    def _steps_kept(self) -> list[str]:
        sentences = [
            f"- {shown.cell(verdict.model)}, {verdict.sentence}"
            for verdict in self.steps_kept.verdicts
        ]
        return ["", "Steps kept:", "", *sentences] if sentences else []

    def _comparisons(self, names: Sequence[str]) -> list[str]:
        rows: dict[tuple[str, str, int, str], list[Comparison]] = {}
        for comparison in self.comparisons:
            key = (comparison.model, comparison.against, comparison.steps, comparison.group)
            rows.setdefault(key, []).append(comparison)
        if not rows:
            return []
        compared = [name for name in names if any(c.column == name for c in self.comparisons)]
        lines = ["", "Win rates from the same noise (0.5: no difference; ties are half a win):", ""]
        return lines + _table(
            ["model", "against", "steps", "prompts", "pictures", *compared],
            [
                [
                    shown.cell(model),
                    shown.cell(against),
                    str(steps),
                    f"{shown.cell(group)} ({max(c.prompts for c in row)})",
                    str(max(c.pictures for c in row)),
                    *(str(next((c.rate for c in row if c.column == n), "")) for n in compared),
                ]
                for (model, against, steps, group), row in rows.items()
            ],
        )

    def _diversity(self) -> list[str]:
        rows = [
            [
                shown.cell(found.model),
                str(found.steps),
                f"{shown.cell(found.group)} ({found.prompts})",
                str(found.drawings),
                found.distance,
                str(found.value),
                str(found.ratio or ""),
            ]
            for found in self.diversity
        ]
        if not rows:
            return []
        titles = ["model", "steps", "prompts", "drawings", "distance", "diversity", "x base"]
        text = "Diversity, the mean distance of two drawings of one prompt:"
        return ["", text, "", *_table(titles, rows)]


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def summarize(
    scores: Sequence[ImageScores],
    models: Sequence[EvaluatedModel],
    columns: dict[str, Column],
    missing: dict[str, str],
    settings: dict[str, Any],
) -> Results:
    """Tables over all pictures, in the order in which these come."""
    cells: dict[tuple[str, int, str], list[ImageScores]] = {}
    for score in scores:
        cells.setdefault((score.model, score.steps, score.group), []).append(score)
    rows = [
        Row(
            model,
            steps,
            group,
            cell[0].prior,
            len({score.prompt for score in cell}),
            len(cell),
            {
                name: _estimate(cell, name, column.rate)
                for name, column in columns.items()
                if any(name in score.values for score in cell)
            },
        )
        for (model, steps, group), cell in cells.items()
    ]
    relatives = [
        Relative(row.model, against, row.steps, row.group, name, ratio)
        for row in rows
        for against in _marks(row, models)
        for name in columns
        if (mark := cells.get((against, row.steps, row.group)))
        and (ratio := _ratio(cells[row.model, row.steps, row.group], mark, name))
    ]
    names = [model.name for model in models]
    return Results(
        rows,
        relatives,
        columns,
        missing,
        settings,
        steps_kept=steps_kept(scores, names, columns),
        comparisons=compare(cells, names, columns),
    )


def _marks(row: Row, models: Sequence[EvaluatedModel]) -> list[str]:
    """Which models a row is divided by."""
    if row.model == BASE:
        return []
    if row.prior:
        return [BASE]
    (loras,) = (model.loras for model in models if model.name == row.model)
    parts = [m.name for m in models if len(m.loras) == 1 and set(m.loras) <= set(loras)]
    return parts if len(loras) > 1 else []


def _estimate(cell: Sequence[ImageScores], column: str, rate: bool) -> Value:
    values = list(by_prompt(cell, column).values())
    if rate:
        # A prompt is one draw, whatever its seeds; a bootstrap of equal values had no width.
        return Value(mean(values), *wilson(sum(values), len(values)))
    return Value(mean(values), *bootstrap(values))


def _ratio(cell: Sequence[ImageScores], mark: Sequence[ImageScores], column: str) -> Value | None:
    """Ratio of the means over the prompts of both, or None where there is nothing to divide by."""
    ours, theirs = by_prompt(cell, column), by_prompt(mark, column)
    pairs = [(ours[prompt], theirs[prompt]) for prompt in ours if prompt in theirs]
    if not pairs or not sum(base for _, base in pairs):
        return None

    def ratio(resampled: Sequence[tuple[float, float]]) -> float:
        below = sum(base for _, base in resampled)
        return sum(value for value, _ in resampled) / below if below else float("inf")

    return Value(ratio(pairs), *bootstrap(pairs, ratio))
