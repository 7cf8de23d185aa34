"""GPU hours by arithmetic: forwards that are counted, times FLOPs of one, over FLOPs per second."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.config import RunConfig
from dopsd.models import FAMILIES

GPU_FLOPS = 400e12
"""Per second and GPU: 40% of what an H100 is sold with for dense bf16. An assumption, not
measured."""
_BACKWARD = 2
"""Forwards that a backward pass counts as."""
PATCH = 2
"""Latent positions along a side of a token."""


@dataclass(frozen=True)
class Cost:
    """Of one run: ``forwards`` of the transformer per sample and optimizer step, backward passes
    counted as two; FLOPs of one; samples of the run."""

    forwards: float
    forward_flops: float
    samples: int

    @property
    def hours(self) -> float:
        return self.forwards * self.forward_flops * self.samples / GPU_FLOPS / 3600

    def __str__(self) -> str:
        return (
            f"{self.samples} samples x {self.forwards:g} forwards x {self.forward_flops:.3g} FLOP "
            f"/ {GPU_FLOPS:.3g} FLOP/s = {self.hours:.1f} GPU hours"
        )


def forward_flops(config: RunConfig) -> float:
    """One sample through the transformer: two FLOPs per weight and token, and attention.

    Counts image tokens of ``data.pixel_area`` and as many of text as a context may have.
    """
    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    areas = config.data.pixel_area
    area = max(areas) if isinstance(areas, list) else areas
    tokens = area // (family.latent_pixels * PATCH) ** 2 + config.context.text_tokens
    skeleton = family.skeleton()
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    shape = family.part_config("transformer")
    layers, width = shape["n_layers"], shape["dim"]
    return float(2 * weights * tokens + 4 * layers * width * tokens**2)


def training_cost(config: RunConfig) -> Cost:
    """Of each of the K states: forward, backward, the forward again where activations are not
    kept, and the teacher's where there is one. In a fused run the rollout's forward is the
    training forward."""
    states = config.method.steps
    every = config.learner.checkpoint_every
    each = 1 + _BACKWARD + (1 / every if every else 0)
    each += int(config.method.objective != "sft")
    samples = config.learner.steps * config.learner.global_batch
    return Cost(states * each, forward_flops(config), samples)


def drawing_cost(config: RunConfig, pictures: int, steps: int) -> Cost:
    """``pictures`` at ``steps`` forwards each."""
    return Cost(steps, forward_flops(config), pictures)
