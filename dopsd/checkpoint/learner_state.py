"""What a learner needs to resume, as the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dopsd.records import pack, unpack

STUDENT_FILE, EMA_FILE, OPTIMIZER_FILE = (
    f"{name}.safetensors" for name in ("student", "ema", "optimizer")
)
FILES = (STUDENT_FILE, EMA_FILE, OPTIMIZER_FILE)


@dataclass
class LearnerState:
    """A learner between two steps; fp32 tensors on the CPU, by parameter name."""

    step: int
    """Optimizer steps behind it, skipped ones included: the next one to train."""
    student: dict[str, Tensor]
    ema: dict[str, Tensor]
    updates: int
    """Updates that AdamW counts: without the skipped ones."""
    moments: dict[str, Tensor]

    def to_files(self) -> dict[str, bytes]:
        return {
            STUDENT_FILE: pack(self.student, {"step": self.step}),
            EMA_FILE: pack(self.ema, {"step": self.step}),
            OPTIMIZER_FILE: pack(self.moments, {"step": self.step, "updates": self.updates}),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> LearnerState:
        student, meta = unpack(files[STUDENT_FILE])
        ema, _ = unpack(files[EMA_FILE])
        moments, counted = unpack(files[OPTIMIZER_FILE])
        return cls(meta["step"], student, ema, counted["updates"], moments)
