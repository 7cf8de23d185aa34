"""The trained model as DeepSpeed sees it: one module whose forward is the velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.models.base import DTYPES, Family
from dopsd.models.lora import STUDENT, TEACHER, inject, resolve_targets
from dopsd.types import Context


class Student(nn.Module):
    """Frozen base with trainable student LoRA (and a frozen teacher LoRA in fused mode)."""

    def __init__(self, family: Family, transformer: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.transformer = transformer

    def forward(self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Velocity [B, C, h, w] float32 of ``latents`` [B, C, h, w] at ``sigma`` [B]."""
        return self.family.velocity(self.transformer, latents, sigma, Context(context))


def build_student(
    config: RunConfig, family: Family, device: torch.device | str, with_teacher: bool
) -> Student:
    """The module to train: base, LoRA on the config's targets, checkpointing as asked."""
    dtype = DTYPES[config.model.dtype]
    transformer: Any = family.load_transformer(dtype, device, config.model.attention)
    matched = resolve_targets(
        transformer, config.lora.targets, family.lora_targets, family.lora_all_linear
    )
    adapters = (STUDENT, TEACHER) if with_teacher else (STUDENT,)
    lora = config.lora
    inject(transformer, matched, lora.rank, lora.alpha, config.run.seed, adapters, **lora.variant)
    if config.learner.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return Student(family, transformer)
