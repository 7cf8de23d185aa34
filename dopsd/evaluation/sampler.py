"""Drawing an evaluation's pictures: the noise of each depends on its seed and prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dopsd.data.pictures.images import encode_png
from dopsd.evaluation.generate import load_lora, load_modules, sample
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec
from dopsd.method.noise import NoisePurpose, sample_noise
from dopsd.models import FAMILIES
from dopsd.models.attention import takes_masks
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.merge import merge
from dopsd.models.transformer_folder import bind_folder


class EvaluationSampler:
    """The stock pipeline of a spec's base, as whatever model the next images ask for.

    ``purpose``: of their noise, which is equal for every model, number of steps, batch and worker.
    """

    def __init__(
        self, spec: EvaluateSpec, device: str, purpose: NoisePurpose = NoisePurpose.EVALUATION
    ) -> None:
        assert spec.height is not None and spec.width is not None
        self.spec, self.purpose = spec, purpose
        self.family = FAMILIES[spec.family](spec.base, spec.revision)
        self.height, self.width, self.device = spec.height, spec.width, device
        self.shape = self.family.latent_shape(self.height, self.width)
        self.pipeline: Any = self.family.load_pipeline(
            DTYPES[spec.dtype], device, attention=spec.attention, quantize=spec.quantize
        )
        merge(self.pipeline.transformer, self.family, spec.merge)
        self._loaded = EvaluatedModel(BASE)
        self._altered = False
        """Whether weights of the base's transformer were replaced."""

    @torch.no_grad()
    def generate(
        self,
        model: EvaluatedModel,
        payloads: Sequence[bytes],
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
    ) -> list[bytes]:
        """PNG of each prompt under its seed by ``model``; ``payloads``: bytes of its files.

        Raises ModelError for weights that do not load.
        """
        if model != self._loaded:
            self._load(model, payloads)
        noise = [
            sample_noise(seed, self.purpose, text, self.shape)
            for seed, text in zip(seeds, prompts, strict=True)
        ]
        # Texts of unequal length share a call only where attention takes a mask.
        masked = takes_masks(self.spec.attention) and not self.family.text_format.equal_lengths
        together = len(noise) if masked else 1
        images: list[Any] = []
        for start in range(0, len(noise), together):
            part = slice(start, start + together)
            images += sample(
                self.family,
                self.pipeline,
                list(prompts[part]),
                steps,
                self.height,
                self.width,
                latents=torch.stack(noise[part]).to(self.device),
                max_sequence_length=self.family.kept_tokens(),
            )
        return [encode_png(image) for image in images]

    def _load(self, model: EvaluatedModel, payloads: Sequence[bytes]) -> None:
        self.pipeline.unload_lora_weights()
        self._loaded = EvaluatedModel(BASE)
        if self._altered:
            self.pipeline.transformer = None  # before the next is loaded
            self.pipeline.transformer = self.family.load_transformer(
                DTYPES[self.spec.dtype], self.device, self.spec.attention
            )
            merge(self.pipeline.transformer, self.family, self.spec.merge)
        self._altered = model.transformer is not None or model.modules is not None
        if model.transformer is not None:
            kind = self.family.transformer_class
            bind_folder(self.pipeline.transformer, model.transformer, kind)
        if model.modules is not None:
            load_modules(self.pipeline.transformer, model.modules, payloads[-1])
        names = [f"lora{number}" for number in range(len(model.loras))]
        for name, path, payload in zip(names, model.loras, payloads):
            load_lora(self.pipeline, path, payload, name, self.spec.partial)
        if names:
            self.pipeline.set_adapters(names)
        self._loaded = model
