"""The trained model as DeepSpeed sees it: one module whose forward is the velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.compiled import compile_blocks
from dopsd.models.families.family import Family
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.models.lora.merge import load_trained_base
from dopsd.models.lora.warm_start import initial_lora
from dopsd.models.quantize import as_buffers
from dopsd.models.trained import TrainableParameters
from dopsd.records import Context


class Student(nn.Module):
    """A transformer whose ``trained`` parameters require grad (and a frozen teacher LoRA in fused
    mode)."""

    def __init__(
        self, family: Family, transformer: nn.Module, trained: TrainableParameters
    ) -> None:
        super().__init__()
        self.family, self.trained = family, trained
        self.transformer = transformer
        self.start: dict[str, Tensor] = {}
        """fp32 weights with which the student begins, where they are not its module's own."""

    def forward(self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Velocity [B, C, h, w] float32 of ``latents`` [B, C, h, w] at ``sigma`` [B]."""
        return self.family.velocity(self.transformer, latents, sigma, Context(context))


def build_student(
    config: RunConfig, family: Family, device: torch.device | str, with_teacher: bool
) -> Student:
    """The module to train: base, LoRA or all weights, activation checkpointing as asked."""
    # Named even when it is the default: what the environment names for diffusers may not train.
    attention = config.learner.attention or "native"
    transformer: Any = load_trained_base(config, family, device, attention, "learner.attention")
    trained = TrainableParameters(config, family)
    two = with_teacher and config.adapters == "lora"
    adapters = (STUDENT, TEACHER) if two else (STUDENT,)
    start = initial_lora(trained, transformer)
    trained.prepare(transformer, adapters)
    for adapter in adapters if start else ():
        trained.bind(transformer, adapter, start)
    as_buffers(transformer)
    checkpoint_every(transformer, config.learner.checkpoint_every)
    if config.learner.compile:
        compile_blocks(transformer)
    student = Student(family, transformer, trained)
    student.start = start
    return student
