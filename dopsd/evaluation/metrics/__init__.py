"""Metrics by name. Those in ``DISTANCES`` also compare two pictures."""

from __future__ import annotations

from dopsd.errors import ConfigError
from dopsd.evaluation.metrics.base import ImageDistance, Metric
from dopsd.evaluation.metrics.embeddings import Clip, Dino
from dopsd.evaluation.metrics.judge import Judge
from dopsd.evaluation.metrics.oracle import Oracle
from dopsd.evaluation.metrics.pixels import Latent, Lpips, Sharpness

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Oracle, Clip, Dino, Lpips, Latent, Judge, Sharpness)
}
DISTANCES: dict[str, type[ImageDistance]] = {
    name: metric for name, metric in METRICS.items() if issubclass(metric, ImageDistance)
}


def make_metric(name: str, model: str | None = None, device: str = "cpu") -> Metric:
    """A metric that is not loaded yet. Raises ConfigError for an unknown name."""
    if name not in METRICS:
        raise ConfigError(f"metric {name!r}: unknown, allowed: {', '.join(METRICS)}")
    return METRICS[name](model, device)


def make_distance(name: str, model: str | None = None, device: str = "cpu") -> ImageDistance:
    """An image-to-image metric that is not loaded yet. Raises ConfigError for any other name."""
    if name not in DISTANCES:
        raise ConfigError(f"distance {name!r}: unknown, allowed: {', '.join(DISTANCES)}")
    return DISTANCES[name](model, device)
