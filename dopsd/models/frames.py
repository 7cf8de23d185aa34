"""Autoencoders of videos, which see a picture as one frame: Qwen-Image's, which others use too."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from dopsd.errors import ModelError
from dopsd.readers import checked


class _Vae(BaseModel):
    """What is read of the autoencoder's ``config.json``."""

    temperal_downsample: Annotated[list[bool], Field(min_length=1, max_length=16)]


def frame_vae_factor(config: dict[str, Any], base: str) -> int:
    """Pixels of a picture, along one side, to one latent. Raises ModelError."""
    vae = checked(config, f"{base}/vae/config.json", _Vae, ModelError)
    return int(2 ** len(vae.temperal_downsample))


def encode_frame(vae: Any, pixels: Tensor) -> Tensor:
    """Normalised latents [B, c, h, w] float32 of pixels [B, 3 or 4, H, W] in [-1, 1]: the
    posterior's mode."""
    latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2).float()
    mean, std = _statistics(vae)
    return (latents - mean.to(latents.device)) / std.to(latents.device)


def decode_frame(vae: Any, latents: Tensor) -> Tensor:
    """Inverse of :func:`encode_frame`, in the VAE's dtype."""
    mean, std = _statistics(vae)
    raw = latents.to(vae.device) * std.to(vae.device) + mean.to(vae.device)
    pixels: Tensor = vae.decode(raw.to(vae.dtype).unsqueeze(2), return_dict=False)[0]
    return pixels[:, :, 0]


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [1, c, 1, 1] float32 each."""
    mean, std = (
        torch.tensor(values) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
