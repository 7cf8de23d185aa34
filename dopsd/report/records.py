"""What is read of a run's records for the run page and `dopsd stats`; a record may hold more."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from dopsd.errors import DataError
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


class HistoryRecord(BaseModel):
    """``preview/history.json``."""

    samples: list[SampleRecord]
    rows: list[DrawnRecord]


class Verdict(BaseModel):
    sentence: str


class PreflightRecord(BaseModel):
    """``preflight/report.json``."""

    verdict: Verdict


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
