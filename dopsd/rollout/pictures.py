"""Own prompts (`preview.prompts`) as pictures: drawn in one way, while a run trains and after."""

from __future__ import annotations

import time
from typing import Any

import torch
from PIL import Image
from torch import nn

from dopsd.config import RunConfig
from dopsd.data.pictures.images import encode_png
from dopsd.method.noise import NoisePurpose, batch_noise
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.lora.layers import BASE, STUDENT, activate, bind_parameters
from dopsd.models.trained import TrainableParameters
from dopsd.policy.bundle import read_payload
from dopsd.records import Context

Size = tuple[int, int]
"""(height, width) in pixels."""


def prompt_id(index: int) -> str:
    """In place of a sample's id."""
    return f"preview.prompts/{index}"


def draw_prompt(
    config: RunConfig, family: Family, pipeline: Any, context: Context, index: int, size: Size
) -> Image.Image:
    """What the pipeline's transformer, as it stands, draws for own prompt ``index`` by the stock
    sampler. ``context``: of one row. The noise is fixed by its place among the prompts, whatever it
    says."""
    shape = family.latent_shape(*size)
    noise = batch_noise(config.run.seed, NoisePurpose.PREVIEW, (prompt_id(index),), shape)
    device = next(pipeline.transformer.parameters()).device
    context = context.to(device, DTYPES[config.model.dtype])
    with torch.no_grad():
        images = family.generate(pipeline, context, noise.to(device), config.sampler_steps, *size)
    image: Image.Image = images[0]
    return image


class PromptPainter:
    """Draws own prompts on an inference worker's transformer, which afterwards is as it was.

    The autoencoder is loaded with the first of them, and on the device only while one is drawn: the
    next roll-out has the room.
    """

    def __init__(
        self,
        config: RunConfig,
        family: Family,
        transformer: nn.Module,
        trained: TrainableParameters,
        device: str,
    ) -> None:
        self.config, self.family, self.transformer = config, family, transformer
        self._trained, self._device = trained, device
        self._pipeline: Any = None

    def draw(
        self, version: int, weights: Any, context: Context, index: int, size: Size
    ) -> tuple[bytes, dict[str, float]]:
        """The PNG of prompt ``index`` under the student's ``weights`` of ``version``, as published,
        and the ``seconds`` that it took without those of ``loading`` the autoencoder."""
        begun = time.perf_counter()
        if self._pipeline is None:
            dtype = DTYPES[self.config.model.dtype]
            self._pipeline = self.family.pipeline_around(self.transformer, dtype, "cpu")
        loaded = time.perf_counter()
        own = self._trained.parameters(self.transformer, STUDENT)
        bound = {name: parameter.detach().clone() for name, parameter in own.items()}
        try:
            bind_parameters(own, read_payload(weights, STUDENT))
            # Before the first step the student is the base, in which DoRA would round.
            begins = version == 0 and not self.config.lora.init
            activate(self.transformer, BASE if begins else STUDENT)
            self._pipeline.vae.to(self._device)
            image = draw_prompt(self.config, self.family, self._pipeline, context, index, size)
        finally:
            bind_parameters(own, bound)
            self._pipeline.vae.to("cpu")
            if self._device != "cpu":
                torch.cuda.empty_cache()  # others may share the GPU
        payload = encode_png(image)
        return payload, {
            "seconds": time.perf_counter() - loaded,
            "loading": loaded - begun,
        }
