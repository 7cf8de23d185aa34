"""What an evaluation found, as sections: for its own page, and for that of the run it lies in."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence

from markupsafe import Markup

from dopsd.errors import DataError
from dopsd.readers import parse_json
from dopsd.report.chart import Series, chart
from dopsd.report.records import CurveRecord, EvaluationRecord, ValueRecord
from dopsd.report.templates import fill, nothing

_TOGETHER = 3
"""Models of a chart, beside the base: there are colours for four lines."""
_BASE = "base"
_JUDGED = "sharpness"
"""The column that verdicts are about: it comes first, and beside the base's."""
_ONE_NUMBER = "Drawn with one number of steps: --steps-kept draws with 2, 4, 8 and 30."


def evaluation_page(results: str, table: str, folder: str) -> str:
    """One self-contained HTML file; ``results`` and ``table``: what results.json and results.md
    of ``folder`` hold."""
    record = parse_json(results, "results.json", EvaluationRecord, DataError)
    sections = [("Steps kept", steps_kept(record)), ("Table", fill("table", text=table))]
    name = posixpath.basename(folder.rstrip("/")) or folder
    return fill("page", sections=sections, run_name=name, folder=folder)


def steps_kept(record: EvaluationRecord) -> Markup:
    """Verdicts, a chart for each column and kind of prompts, and diversity."""
    if not record.steps_kept.curves and not record.diversity:
        return nothing(_ONE_NUMBER)
    charts = []
    for prior in (True, False):
        curves = [curve for curve in record.steps_kept.curves if curve.prior == prior]
        columns = dict.fromkeys(curve.column for curve in curves)
        for column in sorted(columns, key=lambda name: name != _JUDGED):
            charts += _charts([curve for curve in curves if curve.column == column])
    return fill(
        "steps_kept",
        verdicts=record.steps_kept.verdicts,
        charts=Markup().join(charts),
        diversity=record.diversity,
    )


def _charts(curves: Sequence[CurveRecord]) -> list[Markup]:
    """Charts of one column: its value, and before it, if it is judged, that beside the base's."""
    steps = sorted({point.steps for curve in curves for point in curve.points})
    base = [curve for curve in curves if curve.model == _BASE]
    tuned = [curve for curve in curves if curve.model != _BASE]
    prompts = "known to the base" if curves[0].prior else "other prompts"
    title = f"{curves[0].column}, {prompts}"
    charts = []
    for start in range(0, max(1, len(tuned)), _TOGETHER):
        part = tuned[start : start + _TOGETHER]
        if curves[0].column == _JUDGED and part:
            one = Series(_BASE, [1.0] * len(steps))
            lines = [one, *(_series(curve, steps, relative=True) for curve in part)]
            charts.append(chart(title, lines, "x base, by sampler steps", at=steps))
        # Without the base the colours stay those of the models.
        lines = [_series(curve, steps) for curve in base] or [Series(_BASE, [math.nan])]
        lines += [_series(curve, steps) for curve in part]
        charts.append(chart(title, lines, "by sampler steps", at=steps))
    return charts


def _series(curve: CurveRecord, steps: Sequence[int], relative: bool = False) -> Series:
    found = {point.steps: point.ratio if relative else point.value for point in curve.points}
    values = [found.get(number) or ValueRecord(value=None, low=None, high=None) for number in steps]
    ends = [(_number(value.low), _number(value.high)) for value in values]
    return Series(curve.model, [_number(value.value) for value in values], ends=ends)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
