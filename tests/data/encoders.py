"""Encoders for the tests of the stream; importable by the workers of the cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dopsd.data.sample import Sample
from dopsd.errors import ModelError
from dopsd.records import Context


@dataclass
class PixelEncoder:
    """Student: length of each prompt. Teacher: the pixels themselves."""

    delay: float = 0.0

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context, None]:
        time.sleep(self.delay)
        lengths = torch.tensor([len(sample.prompt) for sample in samples])
        pixels = torch.from_numpy(np.stack([sample.target for sample in samples]))
        return Context({"lengths": lengths}), Context({"pixels": pixels}), None


@dataclass
class PixelFactory:
    """Notes each start of an encoder as a file in ``log``."""

    log: Path | None = None
    delay: float = 0.0

    def __call__(self) -> PixelEncoder:
        if self.log is not None:
            (self.log / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return PixelEncoder(self.delay)


class BrokenFactory:
    """Weights that are not there."""

    def __call__(self) -> PixelEncoder:
        raise ModelError("/models/vlm: no such folder")


class FailingEncoder(PixelEncoder):
    """Fails on the second micro-batch."""

    calls = 0

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context, None]:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of patience")
        return super().encode(samples)
