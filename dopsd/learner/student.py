"""The trained model as DeepSpeed sees it: one module whose forward is the velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.models.base import DTYPES, Family
from dopsd.models.lora import STUDENT, TEACHER
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

    def forward(self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Velocity [B, C, h, w] float32 of ``latents`` [B, C, h, w] at ``sigma`` [B]."""
        return self.family.velocity(self.transformer, latents, sigma, Context(context))


def build_student(
    config: RunConfig, family: Family, device: torch.device | str, with_teacher: bool
) -> Student:
    """The module to train: base, LoRA or all weights, activation checkpointing as asked."""
    dtype = DTYPES[config.model.dtype]
    # Named even when it is the default: what the environment names for diffusers may not train.
    attention = config.learner.attention or "native"
    transformer: Any = family.load_transformer(dtype, device, attention, "learner.attention")
    trained = TrainableParameters(config, family)
    two = with_teacher and config.adapters == "lora"
    trained.prepare(transformer, (STUDENT, TEACHER) if two else (STUDENT,))
    if config.learner.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return Student(family, transformer, trained)
