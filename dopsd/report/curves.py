"""The curves of the run page: what a run measured at each optimizer step."""

from __future__ import annotations

import math

from markupsafe import Markup

from dopsd.report.chart import Series, chart, smooth
from dopsd.report.run_files import RunFiles
from dopsd.report.templates import nothing

_ROLES = ("encoder", "rollout", "teacher", "learner")
_SMOOTH = 10
"""Steps of a running mean."""


def curves(run: RunFiles) -> Markup:
    if not run.metrics:
        return nothing("No step is finished yet.")

    def values(key: str) -> list[float]:
        return [float(line.get(key, math.nan)) for line in run.metrics]

    def roles(suffix: str) -> list[Series]:
        return [Series(role, values(f"{role}_{suffix}")) for role in _ROLES]

    def smoothed(name: str, key: str) -> list[Series]:
        mean = Series(f"mean of {_SMOOTH}", smooth(values(key), _SMOOTH))
        return [mean, Series(name, values(key), faint=True)]

    lag = [Series(r, values(f"{r}_lag"), stepped=True) for r in ("student", "teacher")]
    queue = [
        Series(name, values(f"queue_{key}"))
        for name, key in (("encoded", "blocks"), ("in flight", "in_flight"), ("ready", "ready"))
    ]
    idle = [Series(line.name, smooth(line.values, _SMOOTH)) for line in roles("idle_fraction")]
    mean = f"mean of {_SMOOTH} steps"
    charts = [
        chart("Loss", smoothed("loss", "loss"), mean, log=True),
        chart("Policy lag", lag, "optimizer steps"),
        chart("Throughput", smoothed("samples", "samples_per_second"), "samples / s"),
        chart("Busy per step", roles("seconds"), "s, all workers", log=True),
        chart("Idle", idle, f"fraction, {mean}"),
        chart("Micro-batches waiting", queue, "count"),
        chart("Gradient norm", smoothed("norm", "grad_norm"), mean, log=True),
        chart("Learning rate", [Series("lr", values("lr"))]),
        chart("Peak memory", roles("peak_memory_mb"), "MB per process"),
    ]
    return Markup('<div class="charts">{}</div>').format(Markup().join(charts))
