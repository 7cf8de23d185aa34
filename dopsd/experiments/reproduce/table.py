"""The comparison's table: every variant on every concept, seeds pooled, beside the base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dopsd.errors import DataError
from dopsd.experiments.reproduce.rates import Choices, Tried
from dopsd.experiments.reproduce.variants import VARIANTS, Budget, Trial
from dopsd.intervals import Value, as_json, mean, wilson
from dopsd.readers import read_json
from dopsd.shown import cell

BASE_TITLE = "base, not tuned"
OURS, SFT = VARIANTS[0].title, "SFT"
_KEPT, _LOST, _SHARPER = 0.9, 0.4, 3
"""The paper's contrast as the shapes world shows it; the same gates as `dopsd shapes card`."""

Score = Callable[[str, str, str], tuple[Value, int]]
"""(model, group of prompts, column) -> its value and the number of different prompts behind it."""
Ratio = Callable[[str, str], Value]
"""(model, column) -> its mean on the prior prompts divided by the base's on the same noise."""


@dataclass(frozen=True)
class Line:
    """One variant on one concept, trained for ``steps`` at the peak rate ``lr``, the best of what
    was ``tried``; nothing was tried of a rate that was given.

    ``concept``: pictures for ``[V]`` that show it, ``concept_crisp``: the share of crisp cells in
    all of those for ``[V]``. On prior prompts: ``ok``, pictures with every named attribute right
    that belong to the world, and ``palette_error``. ``kept``, ``blur``, ``contrast`` and ``crisp``
    divide ``ok``, ``palette_error`` and the grain's two by the base's on the same noise, and
    ``diversity`` the mean distance of drawings of one prompt: 1 is no change. ``seconds`` of a
    training, without that of the adapter under it.

    Pictures of one prompt, and trainings that share their prompts, are no independent draws: a
    rate's interval is Wilson's for as many draws as there are prompts, and those of the rest are
    the means of the trainings' own.
    """

    concept_name: str
    title: str
    seeds: int
    steps: int
    lr: float
    seconds: float
    tried: tuple[Tried, ...]
    concept: Value
    concept_crisp: Value
    ok: Value
    palette_error: Value
    kept: Value
    blur: Value
    contrast: Value
    crisp: Value
    diversity: Value


_VALUES = (
    *("concept", "concept_crisp", "ok", "palette_error", "kept", "blur"),
    *("contrast", "crisp", "diversity"),
)


@dataclass(frozen=True)
class Measured:
    """What was measured of all trials, for :func:`lines_of` to read.

    ``score``: a cell of the evaluation; ``ratio``: how a model's column compares with the base's;
    ``diversity``: the same of its distances; ``seconds`` of a training by the model's name.
    """

    score: Score
    ratio: Ratio
    diversity: Callable[[str], Value]
    seconds: Callable[[str], float]


def lines_of(
    trials: Sequence[Trial],
    budget: Budget,
    base: str,
    prior: str,
    found: Measured,
    choices: Choices,
) -> list[Line]:
    """Pool each variant's seeds; the base comes first for every concept.

    ``base``: its name in the evaluation. ``prior``: the group of the prompts about what it knew.
    """
    lines = []
    for concept in dict.fromkeys(trial.concept for trial in trials):
        groups: dict[str, list[Trial]] = {}
        for trial in trials:
            if trial.concept == concept:
                groups.setdefault(trial.variant.title, []).append(trial)
        lines.append(_line_of(concept, BASE_TITLE, [base], prior, found, ()))
        for title, rows in groups.items():
            variant, lr = rows[0].variant, rows[0].lr
            tried = tuple(choices.get((variant.name, concept), ()))
            names = [trial.name for trial in rows]
            line = _line_of(concept, title, names, prior, found, tried)
            lines.append(replace(line, steps=budget.steps * variant.length, lr=lr))
    return lines


def _line_of(
    concept: str,
    title: str,
    models: Sequence[str],
    prior: str,
    found: Measured,
    tried: tuple[Tried, ...],
) -> Line:
    tuned = [] if title == BASE_TITLE else models
    score, ratio = found.score, found.ratio
    return Line(
        concept_name=concept,
        title=title,
        seeds=len(models),
        steps=0,
        lr=0.0,
        seconds=mean([found.seconds(model) for model in tuned]) if tuned else 0.0,
        tried=tried,
        concept=_rate([score(model, concept, "concept") for model in models]),
        concept_crisp=_mean([score(model, concept, "crisp")[0] for model in models]),
        ok=_rate([score(model, prior, "ok") for model in models]),
        palette_error=_mean([score(m, prior, "palette_error")[0] for m in models]),
        kept=_mean([ratio(model, "ok") for model in tuned]),
        blur=_mean([ratio(model, "palette_error") for model in tuned]),
        contrast=_mean([ratio(model, "contrast") for model in tuned]),
        crisp=_mean([ratio(model, "crisp") for model in tuned]),
        diversity=_mean([found.diversity(model) for model in tuned]),
    )


def _rate(cells: Sequence[tuple[Value, int]]) -> Value:
    rate, prompts = mean([value.value for value, _ in cells]), cells[0][1]
    return Value(rate, *wilson(rate * prompts, prompts))


def _mean(values: Sequence[Value]) -> Value:
    """Of nothing: 1, the base beside itself."""
    if not values:
        return Value(1.0, 1.0, 1.0)
    ends = ([getattr(value, end) for value in values] for end in ("value", "low", "high"))
    return Value(*map(mean, ends))


_COLUMNS: dict[str, Callable[[Line], object]] = {
    "concept": lambda line: cell(line.concept_name),
    "trained by": lambda line: cell(line.title),
    "seeds": lambda line: line.seeds,
    "rate": lambda line: f"{line.lr:g}" if line.steps else "",
    "`[V]` drawn": lambda line: line.concept,
    "`[V]` crisp": lambda line: line.concept_crisp,
    "prior ok": lambda line: line.ok,
    "kept": lambda line: line.kept,
    "grain's contrast kept": lambda line: line.contrast,
    "crisp cells kept": lambda line: line.crisp,
    "palette error": lambda line: line.palette_error,
    "x base": lambda line: line.blur,
    "diversity": lambda line: line.diversity,
    "seconds": lambda line: f"{line.seconds:.0f}" if line.steps else "",
}


def markdown(lines: Sequence[Line]) -> str:
    """The table as people read it, and how its rates were chosen."""
    table = [" | ".join(_COLUMNS), "|".join(["---"] * len(_COLUMNS))]
    table += [" | ".join(str(show(line)) for show in _COLUMNS.values()) for line in lines]
    rows = [f"| {row} |" if "---" not in row else f"|{row}|" for row in table]
    return "\n".join([*rows, *_rates(lines)]) + "\n"


def _rates(lines: Sequence[Line]) -> list[str]:
    if not any(line.tried for line in lines):
        return []
    rows = [
        f"| {cell(line.concept_name)} | {cell(line.title)} | {each.lr:g} | {each.concept:.3f} | "
        f"{each.kept:.3f} | {each.contrast:.3f} | {each.score:.3f} | "
        f"{'yes' if each.lr == line.lr else ''} |"
        for line in lines
        for each in line.tried
    ]
    return [
        "",
        "Rates, chosen on a seed and prompts that are not in the table: score = concept drawn x "
        "prior kept x grain's contrast kept, each at most 1.",
        "",
        "| concept | trained by | rate | `[V]` drawn | kept | grain's contrast kept | score | "
        "chosen |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


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


class _Tried(BaseModel):
    """A :class:`Tried` as the file holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    lr: float
    concept: float
    kept: float
    contrast: float


class _Entry(BaseModel):
    """A :class:`Line` as the file holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    concept_name: str
    title: str
    seeds: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)]
    lr: float
    seconds: float
    tried: list[_Tried]
    concept: _End
    concept_crisp: _End
    ok: _End
    palette_error: _End
    kept: _End
    blur: _End
    contrast: _End
    crisp: _End
    diversity: _End


def _line(entry: dict[str, Any]) -> Line:
    fields: dict[str, Any] = {
        name: Value.read(value) if isinstance(value, dict) else value
        for name, value in entry.items()
    }
    fields["tried"] = tuple(Tried(**each) for each in entry["tried"])
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
        seconds = sum(line.seconds * line.seeds for line in row) / sum(weights)
        seeds = 1 if base else sum(weights)
        lines.append(replace(row[0], seeds=seeds, seconds=seconds, **values))
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
            met = learned and ours.crisp.value >= _KEPT
            sentences.append(
                f"{_facts(base, ours)} (target: twice the concept, {_KEPT:.0%} of the crisp cells: "
                f"{_yes(met)})"
            )
        if sft:
            lost = sft.crisp.value <= _LOST
            sentences.append(
                f"{_facts(base, sft)} (expected: at most {_LOST:.0%} of the crisp cells: "
                f"{_yes(lost)})"
            )
        if ours and sft:
            better = ours.crisp.low > sft.crisp.high
            better &= ours.concept_crisp.value >= _SHARPER * sft.concept_crisp.value
            sentences.append(
                f"{concept}, {OURS} keeps more crisp cells than {SFT}, beyond the intervals, and "
                f"draws [V] {_SHARPER} times as crisply: {_yes(better)}"
            )
    return sentences


def _facts(base: Line, row: Line) -> str:
    return (
        f"{row.concept_name}, {row.title}: concept {base.concept.value:.2f} -> "
        f"{row.concept.value:.2f}, keeps {row.kept.value:.0%} of the base's prior score and "
        f"{row.crisp.value:.0%} of its crisp cells"
    )


def _yes(met: bool) -> str:
    return "yes" if met else "NO"
