"""Z-Image (Z-Image-Turbo and the embedded shapes world)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dopsd.method.schedule import scheduler_sigmas
from dopsd.models.attention import attention_of, takes_masks
from dopsd.models.families.family import LEVELS, Family, as_pixels
from dopsd.models.rows import rows_by, velocity_by_rows
from dopsd.models.text_format import TextFormat
from dopsd.records import Context


class ZImage(Family):
    """ZImagePipeline: unpacked latents [B, C, h, w], patches of 2x2, guidance-free sampling."""

    name: ClassVar[str] = "z_image"
    pipeline_class: ClassVar[str] = "ZImagePipeline"
    transformer_class: ClassVar[str] = "ZImageTransformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKL"
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )
    diffusers_kinds: ClassVar[tuple[str, ...]] = ("lora", "lokr")
    comfyui_prefix: ClassVar[str | None] = "diffusion_model."
    kohya_names: ClassVar[tuple[tuple[str, str], ...] | None] = ()
    text_format = TextFormat(layers=(-2,), thinking=True, padded=False)

    @property
    def latent_pixels(self) -> int:
        return self.vae_factor

    @property
    def max_side(self) -> int:
        rows, columns = self._positions[1:]
        return min(rows, columns) * 2 * self.vae_factor

    @property
    def max_text_tokens(self) -> int:
        # A text is filled up to a multiple of 32 and stands from 1 on; the image comes after it.
        from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF

        multiple = int(SEQ_MULTI_OF)
        return (self._positions[0] - 2) // multiple * multiple

    @property
    def _positions(self) -> list[int]:
        """Of the rotary tables: along texts and frames, rows and columns of tokens."""
        lengths: list[int] = self.part_config("transformer")["axes_lens"]
        return lengths

    @torch.no_grad()
    def encode_images(self, vae: Any, images: list[np.ndarray]) -> Tensor:
        latents = vae.encode(as_pixels(images, vae)).latent_dist.mode().float()
        scaled: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return scaled

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.z_image.pipeline_z_image import (
            calculate_shift,
            get_default_z_image_sigmas,
        )

        _, h, w = self.latent_shape(height, width)
        config = self.scheduler.config
        mu = calculate_shift(
            (h // 2) * (w // 2),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return scheduler_sigmas(self.scheduler, get_default_z_image_sigmas(steps), mu)

    def noise_levels(self, steps: int, height: int, width: int) -> Tensor:
        return self.sigmas(LEVELS, height, width)

    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        groups = _rows_alike(transformer, context)
        if len(groups) > 1:
            alike = partial(ZImage.velocity, self, transformer)
            return velocity_by_rows(alike, groups, latents, sigma, context)
        # The transformer's time runs from 0 (noise) to 1 (image), and it points at the image:
        # t = 1 - sigma, output = x0 - eps = -u.
        dtype = context.tensors["embeds"].dtype
        frames = list(latents.to(dtype).unsqueeze(2).unbind(0))
        outputs = transformer(frames, 1.0 - sigma, features_list(context), return_dict=False)[0]
        return -torch.stack([output.float() for output in outputs]).squeeze(2)

    def generate(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        return pipeline(
            prompt_embeds=features_list(context),
            negative_prompt_embeds=[],
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=0.0,
        ).images

    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        vae = pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents, return_dict=False)[0]
        return pipeline.image_processor.postprocess(images, output_type="pil")


def features_list(context: Context) -> list[Tensor]:
    """Rows of ``embeds`` [B, L, D] cut to their ``lengths``: B tensors [L_i, D]."""
    lengths = context.tensors["lengths"].tolist()
    return [row[:length] for row, length in zip(context.tensors["embeds"], lengths)]


def _rows_alike(transformer: nn.Module, context: Context) -> list[list[int]]:
    """The batch's rows, grouped by the tokens that they take, where attention takes no mask.

    The transformer fills a text up to a multiple, and masks what rows of one batch differ by.
    """
    lengths = context.tensors["lengths"].tolist()
    if len(set(lengths)) == 1 or takes_masks(attention_of(transformer)):
        return []
    from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF

    return rows_by(-(-length // SEQ_MULTI_OF) for length in lengths)
