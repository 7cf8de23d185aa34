"""Z-Image (Z-Image-Turbo and the embedded shapes world)."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.method.schedule import scheduler_sigmas
from dopsd.models.base import Family
from dopsd.types import Context


class ZImage(Family):
    """ZImagePipeline: unpacked latents [B, C, h, w], patches of 2x2, guidance-free sampling."""

    name: ClassVar[str] = "z_image"
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )
    text_layers: ClassVar[tuple[int, ...]] = (-2,)

    def load_transformer(
        self, dtype: torch.dtype, device: torch.device | str, attention: str | None = None
    ) -> nn.Module:
        from diffusers import ZImageTransformer2DModel

        transformer = ZImageTransformer2DModel.from_pretrained(
            self.base,
            subfolder="transformer",
            torch_dtype=dtype,
            revision=self.revision,
            use_safetensors=True,
        )
        if attention is not None:
            transformer.set_attention_backend(attention)
        return transformer.requires_grad_(False).eval().to(device)

    def skeleton(self) -> nn.Module:
        from diffusers import ZImageTransformer2DModel

        with torch.device("meta"):
            model: nn.Module = ZImageTransformer2DModel.from_config(self._config("transformer"))
        return model

    def load_pipeline(
        self, dtype: torch.dtype, device: torch.device | str, text_encoder: bool = True
    ) -> Any:
        from diffusers import ZImagePipeline

        left_out = {} if text_encoder else {"text_encoder": None, "tokenizer": None}
        pipeline = ZImagePipeline.from_pretrained(
            self.base,
            torch_dtype=dtype,
            revision=self.revision,
            use_safetensors=True,
            **left_out,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def load_vae(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(
            self.base,
            subfolder="vae",
            torch_dtype=dtype,
            revision=self.revision,
            use_safetensors=True,
        )
        return vae.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def encode_images(self, vae: Any, images: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        scaled: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return scaled

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        unit = self._vae_factor * 2
        if height % unit or width % unit:
            raise ModelError(
                f"image of {width}x{height} pixels: this base allows multiples of {unit} "
                "(data.bucket_multiple)"
            )
        return self._channels, height // self._vae_factor, width // self._vae_factor

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.z_image.pipeline_z_image import (
            calculate_shift,
            get_default_z_image_sigmas,
        )

        _, h, w = self.latent_shape(height, width)
        config = self._scheduler.config
        mu = calculate_shift(
            (h // 2) * (w // 2),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return scheduler_sigmas(self._scheduler, get_default_z_image_sigmas(steps), mu)

    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        # The transformer's time runs from 0 (noise) to 1 (image), and it points at the image:
        # t = 1 - sigma, output = x0 - eps = -u.
        dtype = context.tensors["embeds"].dtype
        frames = list(latents.to(dtype).unsqueeze(2).unbind(0))
        outputs = transformer(frames, 1.0 - sigma, features_list(context), return_dict=False)[0]
        return -torch.stack([output.float() for output in outputs]).squeeze(2)

    def draw(
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

    @cached_property
    def _scheduler(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_pretrained(
            self.base, subfolder="scheduler", revision=self.revision
        )

    @cached_property
    def _vae_factor(self) -> int:
        return int(2 ** (len(self._config("vae")["block_out_channels"]) - 1))

    @cached_property
    def _channels(self) -> int:
        return int(self._config("transformer")["in_channels"])

    def _config(self, subfolder: str) -> dict[str, Any]:
        local = Path(self.base) / subfolder / "config.json"
        if not local.is_file():
            from huggingface_hub import hf_hub_download

            local = Path(
                hf_hub_download(self.base, f"{subfolder}/config.json", revision=self.revision)
            )
        config: dict[str, Any] = json.loads(local.read_text())
        return config


def features_list(context: Context) -> list[Tensor]:
    """Rows of ``embeds`` [B, L, D] cut to their ``lengths``: B tensors [L_i, D]."""
    lengths = context.tensors["lengths"].tolist()
    return [row[:length] for row, length in zip(context.tensors["embeds"], lengths)]
