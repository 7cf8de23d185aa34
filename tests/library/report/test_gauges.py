"""Gauges of a library: told every few seconds and at the end; one that fails stops nothing."""

from __future__ import annotations

from dopsd.library.report.gauges import LibraryMetrics
from dopsd.library.scheduler import Counts
from dopsd.run_folder.trackers import Tracker


class Recorder(Tracker):
    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def step(self, step: int, values: dict[str, float]) -> None:
        self.told.append(values)


def test_values_are_told_now_and_then_and_at_the_end() -> None:
    clock, recorder = [100.0], Recorder()
    metrics = LibraryMetrics(lambda: recorder, lambda: clock[0])
    for second, done in ((100.0, 0), (104.9, 1), (105.0, 2), (106.0, 3)):
        clock[0] = second
        metrics.tell(Counts(9, 4, 2, done, 1, 0), 1.5, 0.9)
    assert metrics.close(Counts(9, 0, 0, 7, 1, 1), 2.0, 0.8) == []
    assert [values["done"] for values in recorder.told] == [0, 2, 7]
    assert recorder.told[-1] == {
        "in_flight": 0,
        "done": 7,
        "parked": 1,
        "done_per_minute": 2.0,
        "busy_fraction": 0.8,
    }


def test_gauges_that_fail_are_told_and_stop_nothing() -> None:
    def fails() -> Tracker:
        raise RuntimeError("no agent")

    metrics = LibraryMetrics(fails)
    counts = Counts(1, 0, 1, 0, 0, 0)
    metrics.tell(counts, 0.0, 0.0)
    (why,) = metrics.close(counts, 0.0, 0.0)
    assert why == ("trackers: Ray metrics failed (RuntimeError: no agent); it gets no more metrics")
