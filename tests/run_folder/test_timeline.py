"""Spans of a run: numbered, bounded, exact in their sum."""

from __future__ import annotations

import json

import pytest

from dopsd.run_folder.timeline import Span, Timeline


def lines(timeline: Timeline) -> list[dict]:
    return [json.loads(line) for line in timeline.to_bytes().splitlines()]


def test_lines_are_in_order_and_relative_to_the_start():
    timeline = Timeline(origin=100.0)
    timeline.add([Span("learner-0", "train", 1, 103.0, 104.5)])
    timeline.add([Span("rollout-0", "generate", 0, 101.0, 102.0)])
    assert lines(timeline) == [
        {"lane": "rollout-0", "task": "generate", "step": 0, "start": 1.0, "end": 2.0},
        {"lane": "learner-0", "task": "train", "step": 1, "start": 3.0, "end": 4.5},
    ]


def test_workers_without_a_number_get_one_when_they_appear():
    timeline = Timeline(origin=0.0)
    for name in ("b", "a", "b"):
        timeline.add([Span(f"encoder:{name}", "encode", 0, 1.0, 2.0)])
    assert [line["lane"] for line in lines(timeline)] == ["encoder-0", "encoder-0", "encoder-1"]


def test_a_long_run_is_bounded_and_no_second_of_work_is_lost():
    timeline, spans = Timeline(origin=0.0, limit=100), 5000
    for number in range(spans):
        start = float(number)
        timeline.add([Span(f"rollout-{number % 3}", "generate", number, start, start + 0.25)])
    kept = lines(timeline)
    assert 30 < len(kept) <= 100
    work = sum(line.get("busy", line["end"] - line["start"]) for line in kept)
    assert work == pytest.approx(spans * 0.25, rel=1e-3)
    assert sum(line.get("count", 1) for line in kept) == spans
    assert "count" not in kept[-1], "the end of the run is kept span by span"
    for lane in range(3):
        own = [line for line in kept if line["lane"] == f"rollout-{lane}"]
        assert all(a["end"] <= b["start"] for a, b in zip(own, own[1:]))
