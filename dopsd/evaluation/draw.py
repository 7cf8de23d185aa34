"""Drawing an evaluation's pictures: the noise of each depends on its seed and prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dopsd.evaluation.generate import load_lora, png_bytes, sample
from dopsd.evaluation.spec import EvaluateSpec
from dopsd.method.noise import sample_noise
from dopsd.models import FAMILIES
from dopsd.models.base import DTYPES

_EVALUATION_STEP = -2
"""Stands for the optimizer step in the noise's counter: neither a training step's nor the
preview's noise."""


def picture_noise(seed: int, prompt: str, shape: tuple[int, ...]) -> Tensor:
    """[*shape] float32: equal for every model, number of steps, batch and worker."""
    return sample_noise(seed, _EVALUATION_STEP, prompt, shape)


class Drawer:
    """The stock pipeline of a spec's base, with whatever LoRAs the next pictures ask for."""

    def __init__(self, spec: EvaluateSpec, device: str) -> None:
        assert spec.height is not None and spec.width is not None
        family = FAMILIES[spec.family](spec.base, spec.revision)
        self.height, self.width, self.device = spec.height, spec.width, device
        self.shape = family.latent_shape(self.height, self.width)
        self.pipeline: Any = family.load_pipeline(
            DTYPES[spec.dtype], device, attention=spec.attention
        )
        self._loras: tuple[str, ...] = ()

    @torch.no_grad()
    def draw(
        self,
        paths: tuple[str, ...],
        payloads: Sequence[bytes],
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
    ) -> list[bytes]:
        """PNG of each prompt under its seed, with the LoRAs of ``payloads`` loaded together.

        Raises ModelError for a LoRA that does not load.
        """
        if paths != self._loras:
            self._load(paths, payloads)
        noise = [picture_noise(s, text, self.shape) for s, text in zip(seeds, prompts, strict=True)]
        pictures = sample(
            self.pipeline,
            list(prompts),
            steps,
            self.height,
            self.width,
            latents=torch.stack(noise).to(self.device),
        )
        return [png_bytes(picture) for picture in pictures]

    def _load(self, paths: tuple[str, ...], payloads: Sequence[bytes]) -> None:
        self.pipeline.unload_lora_weights()
        self._loras = ()
        names = [f"lora{number}" for number in range(len(paths))]
        for name, path, payload in zip(names, paths, payloads, strict=True):
            load_lora(self.pipeline, path, payload, name)
        if names:
            self.pipeline.set_adapters(names)
        self._loras = paths
