"""The curves of the run page as inline SVG: what was measured at each optimizer step, or at a few
numbers of sampler steps.

Charts are drawn at phone size, so that text keeps its size on any screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from markupsafe import Markup

from dopsd.report.run_files import RunFiles
from dopsd.report.templates import fill, nothing

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_POINTS = 400
"""Points of a line; longer series are averaged down to this many."""
_SMOOTH = 10
"""Steps of a running mean."""
_ROLES = ("encoder", "rollout", "teacher", "learner")
Scale = Callable[[float], float]


@dataclass
class Series:
    """One line: ``values`` by optimizer step (NaN leaves a gap); ``ends``: an interval of each,
    which is marked."""

    name: str
    values: Sequence[float]
    faint: bool = False
    stepped: bool = False
    ends: Sequence[tuple[float, float]] = ()


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
        chart("Class word", smoothed("held to the base", "preservation_loss"), mean, log=True),
        chart("Policy lag", lag, "optimizer steps"),
        chart("Throughput", smoothed("samples", "samples_per_second"), "samples / s"),
        chart("Busy per step", roles("seconds"), "s, all workers", log=True),
        chart("Idle", idle, f"fraction, {mean}"),
        chart("Micro-batches waiting", queue, "count"),
        chart("Gradient norm", smoothed("norm", "grad_norm"), mean, log=True),
        chart("Learning rate", [Series("lr", values("lr"))]),
        chart("Effective learning rate", [Series("lr", values("effective_lr"))], log=True),
        chart("Peak memory", roles("peak_memory_mb"), "MB per process"),
    ]
    return Markup('<div class="charts">{}</div>').format(Markup().join(charts))


def chart(
    title: str,
    series: Sequence[Series],
    unit: str = "",
    log: bool = False,
    at: Sequence[int] | None = None,
) -> Markup:
    """A figure with ``series`` over their index, the optimizer step, or over a few numbers ``at``,
    evenly spaced. ``log``: logarithmic y axis, for positive values. Empty when there is nothing to
    draw."""
    drawn = [v for line in series for v in (*line.values, *chain.from_iterable(line.ends))]
    values = [v for v in drawn if math.isfinite(v) and (v > 0 or not log)]
    if not values:
        return Markup()
    steps = max(len(line.values) for line in series)
    scale = math.log10 if log else float
    ticks = _log_ticks(min(values), max(values)) if log else _ticks(min(*values, 0), max(values))
    low, high = scale(ticks[0]), scale(ticks[-1])

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(1, steps - 1)

    def y(value: float) -> float:
        share = (scale(value) - low) / ((high - low) or 1.0)
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * share

    def marks(line: Series) -> list[tuple[float, float, float]]:
        """(x, top, bottom) of each interval; an end without a bound is the edge."""
        found = []
        for number, (lower, upper) in enumerate(line.ends):
            if math.isfinite(line.values[number]) and math.isfinite(lower):
                top = y(upper) if math.isfinite(upper) else _TOP
                found.append((x(number), top, y(lower)))
        return found

    labels = [(step, step) for step in sorted({round((steps - 1) * q / 4) for q in range(5)})]
    if at is not None:
        labels = list(enumerate(at))
    shown = [(number, line.name) for number, line in enumerate(series) if not line.faint]
    return fill(
        "chart",
        title=title,
        unit=unit,
        names=shown if len(shown) > 1 else (),
        width=WIDTH,
        height=HEIGHT,
        ends=(_LEFT, WIDTH - _RIGHT),
        rules=[(tick, y(tick)) for tick in ticks],
        steps=[(label, x(step)) for step, label in labels],
        lines=[(line, _paths(line, x, y, log), marks(line)) for line in series],
    )


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last ``window`` values."""
    result: list[float] = []
    for index in range(len(values)):
        near = [v for v in values[max(0, index - window + 1) : index + 1] if math.isfinite(v)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def _paths(line: Series, x: Scale, y: Scale, log: bool) -> list[str]:
    """SVG paths, one for each stretch of drawable values."""
    size = max(1, math.ceil(len(line.values) / _POINTS))
    groups = [line.values[start : start + size] for start in range(0, len(line.values), size)]
    paths, current = [], ""
    for number, group in enumerate(groups):
        drawable = [v for v in group if math.isfinite(v) and (v > 0 or not log)]
        if not drawable:
            paths.append(current)
            current = ""
            continue
        at_x, at_y = f"{x(number * size):.1f}", f"{y(sum(drawable) / len(drawable)):.1f}"
        current += (
            (f"H{at_x}V{at_y}" if line.stepped else f"L{at_x},{at_y}")
            if current
            else (f"M{at_x},{at_y}")
        )
    return [path for path in (*paths, current) if path]


def _ticks(low: float, high: float) -> list[float]:
    """About four round values that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or 1-2-5 steps, that enclose [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-12)
    fine = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
    start = max(v for v in fine if v <= low * (1 + 1e-9))
    end = min((v for v in fine if v >= high * (1 - 1e-9)), default=10.0**last)
    inside = [v for v in fine if start <= v <= end]
    return inside if len(inside) <= 6 else [v for v in inside if _is_power(v) or v in (start, end)]


def _is_power(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9
