"""What the rest of dopsd asks of a model family."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.types import Context

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Family(ABC):
    """One family of pipelines: how its latents, sigmas, velocity and LoRA targets are defined.

    Cheap to construct: reads only configs of the pipeline (local folder or hub id), no weights.
    """

    name: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]
    """Module name suffixes of the authors' LoRA recipe."""
    text_layers: ClassVar[tuple[int, ...]]
    """Entries of the text encoder's ``hidden_states`` that are concatenated into features."""

    def __init__(self, base: str, revision: str | None = None) -> None:
        self.base = resolve_base(base)
        self.revision = revision

    @abstractmethod
    def load_transformer(
        self, dtype: torch.dtype, device: torch.device | str, attention: str | None = None
    ) -> nn.Module:
        """The frozen transformer (``requires_grad`` off, eval mode) on ``device``."""

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The transformer without weights (on the meta device): its modules can be named."""

    @abstractmethod
    def load_pipeline(
        self, dtype: torch.dtype, device: torch.device | str, text_encoder: bool = True
    ) -> Any:
        """The stock diffusers pipeline, to draw pictures with; without ``text_encoder`` it takes
        contexts only."""

    @abstractmethod
    def load_vae(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The frozen autoencoder on ``device``."""

    @abstractmethod
    def encode_images(self, vae: nn.Module, images: list[np.ndarray]) -> Tensor:
        """Latents [B, C, h, w] float32, as the transformer sees them, of B images uint8 [H, W, 3]
        of one size: the posterior's mode, so that an image always has the same."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of ``height`` x ``width`` pixels.

        Raises ModelError when the size does not fit the family's patches.
        """

    @abstractmethod
    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """The stock sampler's noise levels, [steps + 1] float32, descending to 0."""

    @abstractmethod
    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        """u = eps - x0 as the transformer sees it: the family's only conversion of time and sign.

        ``latents`` [B, C, h, w] float32, ``sigma`` [B] in [0, 1], ``context`` with B rows in the
        transformer's dtype. Returns [B, C, h, w] float32.
        """

    @abstractmethod
    def draw(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        """Run the stock sampler from ``noise`` [B, C, h, w]: B PIL images."""

    @abstractmethod
    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        """``latents`` [B, C, h, w] through the VAE, as the stock sampler ends: B PIL images."""


def resolve_base(base: str) -> str:
    """``shapes`` is the embedded world; an existing folder or a hub id is itself.

    Raises ModelError for a path-like name that is no folder.
    """
    if base == "shapes":
        from dopsd.shapes import weights_path

        return str(weights_path())
    path_like = base.startswith((".", "/", "~")) or base.count("/") != 1
    folder = os.path.expanduser(base)
    if os.path.isdir(folder):
        return folder
    if path_like:
        raise ModelError(f"model.base: {base!r} is no folder, no hub id (owner/name), not 'shapes'")
    return base


def resolve_vlm(base: str, vlm: str | None) -> str:
    """The VLM's folder or hub id; by default the folder ``vlm`` inside a local base.

    Raises ModelError when neither is there.
    """
    if vlm is not None:
        return resolve_base(vlm)
    folder = Path(resolve_base(base)) / "vlm"
    if folder.is_dir():
        return str(folder)
    raise ModelError(
        f"model.vlm: missing, and {base!r} has no folder `vlm`; allowed: a folder or hub id of a "
        "VLM whose language model has the text encoder's shape"
    )
