"""The exact oracle of the shapes world as a metric: counts of pictures, no learned judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from dopsd.evaluation.metrics.base import Column, Metric, MetricInput
from dopsd.shapes import oracle
from dopsd.shapes.grid import from_image
from dopsd.shapes.oracle import Reading


class Oracle(Metric):
    """What the oracle reads off pictures of 32x32 px, held against what the prompt names."""

    name: ClassVar[str] = "oracle"
    columns: ClassVar[dict[str, Column]] = {
        "concept": Column("shows the concept, and is a picture of this world", rate=True),
        "ok": Column("every named attribute right, and a picture of this world", rate=True),
        "named": Column("share of the named attributes that are right"),
        "palette_error": Column("RMSE to the nearest legal colour", higher_is_better=False),
        "contrast": Column("median amount of the grain, 1 as in the world"),
        "crisp": Column("share of cells within a quarter of the grain of it"),
    }

    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        readings = oracle.read(torch.stack([from_image(entry.image) for entry in inputs]))
        return [_columns(reading, entry) for reading, entry in zip(readings, inputs, strict=True)]


def _columns(reading: Reading, entry: MetricInput) -> dict[str, float]:
    values = {name: getattr(reading, name) for name in ("palette_error", "contrast", "crisp")}
    right = {name: getattr(reading, name) == value for name, value in entry.expected.items()}
    if right:
        values["named"] = sum(right.values()) / len(right)
        values["ok"] = float(all(right.values()) and reading.valid)
    if entry.concept is not None:
        values["concept"] = float(right[entry.concept] and reading.valid)
    return values
