"""Latents as patches and as tokens: the layout of FLUX, which others have taken over."""

from __future__ import annotations

from torch import Tensor, nn


def pack(latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] as tokens [B, h * w, C]."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of :func:`pack`."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def patchify(latents: Tensor) -> Tensor:
    """The VAE's latents [B, c, 2 h, 2 w] as [B, 4 c, h, w]: a patch of 2x2 is one position."""
    return nn.functional.pixel_unshuffle(latents, 2)


def unpatchify(latents: Tensor) -> Tensor:
    """Inverse of :func:`patchify`."""
    return nn.functional.pixel_shuffle(latents, 2)
