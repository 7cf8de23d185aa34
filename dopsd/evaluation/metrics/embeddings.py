"""Cosines in the space of a frozen encoder: CLIP-S (picture to prompt) and DINO (to pictures)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from dopsd.evaluation.metrics.base import Column, ImageDistance, MetricInput
from dopsd.models.pretrained import check_config, missing_weights_errors

_BATCH = 32


class _Encoder(ImageDistance):
    """1 - cosine of two pictures' features; pictures that occur again are encoded once."""

    _model: Any = None
    _images: Any = None

    def check(self) -> None:
        check_config(self.name, self.model)

    def load(self) -> None:
        from transformers import AutoImageProcessor, AutoModel

        with missing_weights_errors(self.name, self.model):
            self._images = AutoImageProcessor.from_pretrained(self.model)
            model = AutoModel.from_pretrained(self.model, use_safetensors=True)
            self._model = model.eval().to(self.device)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """[N, D] of pre-processed pixels [N, 3, h, w]."""

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, D] float32 on the CPU."""
        unique = list({id(image): image for image in images}.values())
        rows_of = {id(image): row for row, image in enumerate(unique)}
        rows = []
        for start in range(0, len(unique), _BATCH):
            batch = [image.convert("RGB") for image in unique[start : start + _BATCH]]
            pixels = self._images(images=batch, return_tensors="pt")["pixel_values"]
            rows.append(normalize(self.features(pixels.to(self.device)).float(), dim=-1).cpu())
        return torch.cat(rows)[[rows_of[id(image)] for image in images]]

    def distance(
        self, images: Sequence[Image.Image], targets: Sequence[Image.Image]
    ) -> list[float]:
        both = self.embed([*images, *targets])
        cosines = (both[: len(images)] * both[len(images) :]).sum(1)
        values: list[float] = (1 - cosines).clamp(min=0).tolist()
        return values


class Clip(_Encoder):
    """CLIP-S: cosine between picture and prompt (the paper: DFN CLIP ViT-H/14).

    As an ``ImageDistance``: 1 - cosine of the two pictures' features.
    """

    name: ClassVar[str] = "clip"
    columns: ClassVar[dict[str, Column]] = {"clip_s": Column("CLIP cosine of picture and prompt")}
    default_model: ClassVar[str] = "openai/clip-vit-large-patch14"
    _tokenizer: Any = None

    def load(self) -> None:
        from transformers import AutoTokenizer

        super().load()
        with missing_weights_errors(self.name, self.model):
            self._tokenizer = AutoTokenizer.from_pretrained(self.model)

    def features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return features

    @torch.no_grad()
    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] float32 on the CPU; a long prompt is cut to the model's length."""
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)
        features = self._model.get_text_features(**tokens).pooler_output
        return normalize(features.float(), dim=-1).cpu()

    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        texts = self.embed_text([entry.prompt for entry in inputs])
        cosines = (self.embed([entry.image for entry in inputs]) * texts).sum(1)
        return [{"clip_s": value} for value in cosines.tolist()]


class Dino(_Encoder):
    """Cosine of the class tokens of picture and target (DINOv2; the paper: DINOv3 ViT-S+/16)."""

    name: ClassVar[str] = "dino"
    columns: ClassVar[dict[str, Column]] = {"dino": Column("DINO cosine of picture and target")}
    default_model: ClassVar[str] = "facebook/dinov2-small"

    def features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        return features

    def column_value(self, distance: float) -> float:
        return 1 - distance
