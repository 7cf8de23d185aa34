"""Charts and lanes: what is drawn where."""

from __future__ import annotations

import math
import re

from dopsd.report.chart import HEIGHT, WIDTH, Series, chart, smooth
from dopsd.report.lanes import timeline


def test_a_line_stays_inside_and_gaps_stay_gaps():
    values = [1.0, 2.0, math.nan, 4.0, 1e3]
    drawn = chart("Loss", [Series("loss", values)], log=True)
    paths = re.findall(r'd="([^"]+)"', drawn)
    assert len(paths) == 2, "a NaN splits the line"
    for path in paths:
        for x, y in re.findall(r"([\d.]+),([\d.]+)", path):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_nothing_to_draw_is_empty_and_constants_have_an_axis():
    assert chart("Loss", [Series("loss", [math.nan])]) == ""
    assert chart("Loss", [Series("loss", [0.0, -1.0])], log=True) == ""
    assert "nan" not in chart("Lag", [Series("lag", [0.0, 0.0])])
    assert ">1<" in chart("One", [Series("one", [1.0])])


def test_long_series_are_averaged_down():
    drawn = chart("Loss", [Series("loss", [1.0] * 100_000)])
    assert len(drawn) < 10_000


def test_a_few_numbers_of_steps_are_labelled_evenly_with_their_intervals():
    line = Series("tuned", [0.5, 0.9, math.nan, 1.0], ends=[(0.4, 0.6), (0.8, math.inf)])
    drawn = chart("Kept", [line], at=[2, 4, 8, 30])
    labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="(?:start|mid|end)">(\d+)<', drawn)
    labels = [(float(x), name) for x, name in labels if float(x) >= 46]
    assert [name for _, name in labels] == ["2", "4", "8", "30"]
    gaps = {round(b - a, 1) for (a, _), (b, _) in zip(labels, labels[1:])}
    assert max(gaps) - min(gaps) < 0.2
    marks = re.findall(r'class="mark c0" d="M([\d.]+),([\d.]+)V([\d.]+)"', drawn)
    assert [float(x) for x, *_ in marks] == [x for x, _ in labels[:2]]
    assert all(8 <= float(top) < float(bottom) <= HEIGHT for _, top, bottom in marks)


def test_smooth_is_the_mean_of_the_last_values():
    assert smooth([1.0, 3.0, 5.0, math.nan], 2) == [1.0, 2.0, 4.0, 5.0]


def span(lane, task, start, end, **more):
    return {"lane": lane, "task": task, "step": 0, "start": start, "end": end, **more}


def test_lanes_are_in_the_order_of_the_road_and_idle_is_blank():
    drawn = timeline(
        [
            span("learner-0", "train", 0.0, 10.0),
            span("rollout-10", "generate", 0.0, 5.0),
            span("rollout-9", "generate", 0.0, 10.0, busy=2.5, count=4),
        ]
    )
    lanes = re.findall(r'<span class="lane">([^<]+)</span><svg viewBox="0 0 240', drawn)
    assert lanes == ["rollout-9", "rollout-10", "learner-0"]
    assert re.findall(r'<span class="end">(\d+%)</span>', drawn) == ["25%", "50%", "100%"]
    widths = [int(width) for width in re.findall(r'<rect [^>]*width="(\d+)" height', drawn)]
    assert widths == [240, 120, 240]


def test_every_task_has_its_own_name():
    drawn = timeline([span("teacher-0", "teach", 0.0, 5.0), span("teacher-0", "nap", 5.0, 10.0)])
    assert re.findall(r'<i class="t(\d+)"></i>([^<]+)<', drawn) == [("9", "teach"), ("10", "nap")]
    assert re.findall(r'<rect class="t(\d+)"', drawn) == ["9", "10"]
