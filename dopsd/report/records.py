"""What is read of a run's records for the run page and `dopsd stats`; a record may hold more."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from dopsd.errors import DataError
from dopsd.intervals import Value
from dopsd.readers import checked

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SummaryRecord(BaseModel):
    """``summary.json``."""

    steps: Annotated[int, Field(ge=0)]
    seconds: Finite
    seconds_to_first_step: Finite
    first_loss: float | None = None
    last_loss: float | None = None
    max_policy_lag: int = 0
    problems: list[str] = []


class SpanRecord(BaseModel):
    """A line of ``timeline.jsonl``."""

    lane: str
    task: str
    step: int
    start: Finite
    end: Finite
    busy: Finite | None = None
    count: int | None = None


class StateRecord(BaseModel):
    sigma: Finite
    difference: float


class DrawnRecord(BaseModel):
    version: Annotated[int, Field(ge=0)]
    sample: Annotated[int, Field(ge=0)]
    states: list[StateRecord]


class SampleRecord(BaseModel):
    prompt: str


class PictureRecord(BaseModel):
    version: Annotated[int, Field(ge=0)]
    prompt: Annotated[int, Field(ge=0)]


class HistoryRecord(BaseModel):
    """``preview/history.json``."""

    samples: list[SampleRecord]
    rows: list[DrawnRecord]
    prompts: list[SampleRecord] = []
    pictures: list[PictureRecord] = []
    """Both empty in those of an older dopsd."""


class Verdict(BaseModel):
    sentence: str


class PreflightRecord(BaseModel):
    """``preflight/report.json``."""

    verdict: Verdict
    framing: Verdict | None = None
    """None in those of an older dopsd."""


class ValueRecord(BaseModel):
    """A mean or ratio with its interval; null for an end without a bound."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return str(Value.read(self.model_dump()))


class PointRecord(BaseModel):
    steps: Annotated[int, Field(ge=1)]
    value: ValueRecord
    ratio: ValueRecord | None


class CurveRecord(BaseModel):
    model: str
    column: str
    prior: bool
    prompts: int
    points: list[PointRecord]


class StepsVerdictRecord(BaseModel):
    model: str
    outcome: str
    sentence: str


class StepsKeptRecord(BaseModel):
    verdicts: list[StepsVerdictRecord] = []
    curves: list[CurveRecord] = []


class DiversityRecord(BaseModel):
    model: str
    steps: int
    group: str
    distance: str
    prompts: int
    drawings: int
    value: ValueRecord
    ratio: ValueRecord | None


class EvaluationRecord(BaseModel):
    """``results.json`` of an evaluation; those of an older dopsd have neither."""

    steps_kept: StepsKeptRecord = StepsKeptRecord()
    diversity: list[DiversityRecord] = []


def spans(entries: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The lines of a timeline. Raises DataError for one that is no span."""
    records = checked(entries, where, list[SpanRecord], DataError)
    return [record.model_dump(exclude_none=True) for record in records]


def numbers(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers in the lines of ``metrics.jsonl``."""
    return [
        {key: value for key, value in entry.items() if isinstance(value, int | float)}
        for entry in entries
    ]
