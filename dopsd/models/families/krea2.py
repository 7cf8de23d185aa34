"""Krea 2, whose few-step checkpoint has a fixed shift and whose text encoder is a Qwen3-VL."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.method.schedule import scheduler_sigmas
from dopsd.models.attention import attention_of, takes_masks
from dopsd.models.families.family import LEVELS, Family, as_pixels
from dopsd.models.frames import decode_frame, encode_frame, frame_vae_factor
from dopsd.models.patches import pack, patchify, unpack, unpatchify
from dopsd.models.pretrained import pipeline_config
from dopsd.models.rows import rows_by, velocity_by_rows
from dopsd.models.text_format import Template, TextFormat
from dopsd.readers import checked
from dopsd.records import Context

_TAPPED = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Hidden states of Qwen3-VL-4B that the published checkpoints read."""
_DISTILLED_SHIFT = 1.15
"""mu of the few-step checkpoint, at every size."""


class _Index(BaseModel):
    """What is read of ``model_index.json``."""

    text_encoder_select_layers: Annotated[list[int], Field(min_length=1)] = list(_TAPPED)
    is_distilled: bool = False


class Krea2(Family):
    """Krea2Pipeline: patchified latents [B, 4 c, H / 16, W / 16] (c: the VAE's channels), one
    token per position; of each text token a stack of hidden states.

    A Context holds ``embeds`` [B, L, layers * D] and ``lengths`` [B]. All text stands at the origin
    of the positions, and padding is masked, so it is cut off.
    """

    name: ClassVar[str] = "krea2"
    pipeline_class: ClassVar[str] = "Krea2Pipeline"
    transformer_class: ClassVar[str] = "Krea2Transformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKLQwenImage"
    # Attention and feed-forward, as of the other families; the text fusion's blocks match too.
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "ff.gate",
        "ff.up",
        "ff.down",
    )
    lora_all_linear: ClassVar[tuple[str, ...]] = (*lora_targets, "attn.to_gate")
    comfyui_prefix: ClassVar[str | None] = "transformer."
    text_format = TextFormat(
        layers=_TAPPED,
        thinking=False,
        padded=False,
        template=Template(
            dropped="<|im_start|>system\nDescribe the image by detailing the color, shape, size, "
            "texture, quantity, text, spatial relationships of the objects and background:"
            "<|im_end|>\n<|im_start|>user\n",
            opening="",
            image="<|vision_start|><|image_pad|><|vision_end|>",
            closing="<|im_end|>\n<|im_start|>assistant\n",
        ),
    )
    encoder_sees: ClassVar[bool] = True

    def __init__(self, base: str, revision: str | None = None, key: str = "model.base") -> None:
        super().__init__(base, revision, key)
        index = pipeline_config(self.base, revision, key)
        found = checked(index, f"{self.base}/model_index.json", _Index, ModelError)
        self.is_distilled = found.is_distilled
        layers = tuple(found.text_encoder_select_layers)
        self.text_format = replace(type(self).text_format, layers=layers)

    @property
    def latent_pixels(self) -> int:
        return self.vae_factor * 2

    @cached_property
    def vae_factor(self) -> int:
        return frame_vae_factor(self.part_config("vae"), self.base)

    @torch.no_grad()
    def encode_images(self, vae: Any, images: list[np.ndarray]) -> Tensor:
        return patchify(encode_frame(vae, as_pixels(images, vae)))

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift

        _, h, w = self.latent_shape(height, width)
        mu = _DISTILLED_SHIFT
        if not self.is_distilled:
            config = self.scheduler.config
            mu = calculate_shift(
                h * w,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 6400),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        return scheduler_sigmas(self.scheduler, np.linspace(1.0, 1 / steps, steps).tolist(), mu)

    def noise_levels(self, steps: int, height: int, width: int) -> Tensor:
        return self.sigmas(LEVELS, height, width)

    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        groups = _rows_alike(transformer, context)
        if len(groups) > 1:
            alike = partial(self.velocity, transformer)
            return velocity_by_rows(alike, groups, latents, sigma, context)
        features, mask = self._stacked(context)
        rows, columns = latents.shape[-2:]
        # The transformer's time is sigma and its output is u. Time is rounded as the stock
        # pipeline rounds it, so that bf16 is trained at the times that it will be asked for.
        predicted = transformer(
            hidden_states=pack(latents).to(features.dtype),
            encoder_hidden_states=features,
            timestep=(sigma * 1000 / 1000).to(features.dtype),
            position_ids=position_ids(features.shape[1], rows, columns, latents.device),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return unpack(predicted.float(), rows, columns)

    def generate(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        features, mask = self._stacked(context)
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return pipeline(
            prompt_embeds=features,
            prompt_embeds_mask=mask,
            latents=pack(noise),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=0.0,
        ).images

    def stock_options(self, steps: int, options: dict[str, Any]) -> dict[str, Any]:
        options = super().stock_options(steps, options)
        if "latents" in options:
            options["latents"] = pack(options["latents"])
        return options

    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        images = decode_frame(pipeline.vae, unpatchify(latents))
        return pipeline.image_processor.postprocess(images, output_type="pil")

    def _stacked(self, context: Context) -> tuple[Tensor, Tensor | None]:
        """Text features [B, L, layers, D] and the mask [B, L] of what is no padding; None where
        there is no padding."""
        embeds, lengths = context.tensors["embeds"], context.tensors["lengths"]
        longest = int(lengths.max())
        features = embeds[:, :longest].unflatten(-1, (len(self.text_format.layers), -1))
        if int(lengths.min()) == longest:
            return features, None
        mask = torch.arange(longest) < lengths[:, None]
        return features, mask.to(features.device)


def position_ids(text: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """[text + rows * columns, 3] float32: (0, row, column), of text the origin."""
    sides = (torch.arange(size, device=device).float() for size in (1, rows, columns))
    return torch.cat([torch.zeros(text, 3, device=device), torch.cartesian_prod(*sides)])


def _rows_alike(transformer: nn.Module, context: Context) -> list[list[int]]:
    """The batch's rows, grouped by their texts' lengths, where attention takes no mask."""
    lengths = context.tensors["lengths"].tolist()
    if len(set(lengths)) == 1 or takes_masks(attention_of(transformer)):
        return []
    return rows_by(lengths)
