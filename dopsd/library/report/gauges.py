"""How a library stands as gauges for Ray's dashboard and Prometheus: ``ray_dopsd_library_...``."""

from __future__ import annotations

import time
from collections.abc import Callable

from dopsd.library.scheduler import Counts
from dopsd.run_folder.trackers import Tracker, TrackerThread

_SECONDS = 5.0
"""Between two values."""
_GAUGES = {
    "in_flight": "Concepts that train now.",
    "done": "Concepts that are done, those of earlier starts included.",
    "parked": "Concepts that failed too often, until `dopsd library retry`.",
    "done_per_minute": "Concepts done per minute since this start.",
    "busy_fraction": "Share of the workers' time since this start in which they trained.",
}


class LibraryGauges(Tracker):
    """Sets the gauges; made where Ray is connected."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            name: Gauge(f"dopsd_library_{name}", description=text) for name, text in _GAUGES.items()
        }

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)


class LibraryMetrics:
    """Tells how a library stands every few seconds, and at its end; never waits for anybody."""

    def __init__(
        self,
        tracker: Callable[[], Tracker] = LibraryGauges,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._thread, self._now = TrackerThread("Ray metrics", tracker), now
        self._told = 0
        self._since = -_SECONDS

    def tell(self, counts: Counts, per_minute: float, busy: float) -> None:
        """Where it is now; left out where the last value is still new."""
        if self._now() - self._since >= _SECONDS:
            self._put(counts, per_minute, busy)

    def close(self, counts: Counts, per_minute: float, busy: float) -> list[str]:
        """The last values. Returns why the gauges were given up, if they were."""
        self._put(counts, per_minute, busy)
        self._thread.close()
        return [self._thread.problem] if self._thread.problem else []

    def _put(self, counts: Counts, per_minute: float, busy: float) -> None:
        self._since = self._now()
        values = {"in_flight": counts.in_flight, "done": counts.done, "parked": counts.parked}
        rates = {"done_per_minute": per_minute, "busy_fraction": busy}
        self._thread.step(self._told, {**values, **rates})
        self._told += 1
