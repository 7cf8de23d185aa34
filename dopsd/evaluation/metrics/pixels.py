"""Metrics on pixels and latents: sharpness without any model, LPIPS, distance in VAE latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from dopsd.evaluation.metrics.base import Column, ImageDistance, Metric, MetricInput
from dopsd.models.pretrained import MissingWeights, missing_weights_errors, resolve_base
from dopsd.models.stored import bring_weights
from dopsd.shapes.grid import from_image

_LUMA = torch.tensor([0.299, 0.587, 0.114])
_NO_CONTRAST = 1e-3
"""A quarter of a grey level: below it there is nothing but rounding."""


class Sharpness(Metric):
    """Sum-modified Laplacian of the luminance over its mean absolute deviation; falls with blur.

    Mean over the inner pixels of |2 Y - left - right| + |2 Y - above - below| (Nayar and Nakagawa,
    "Shape from focus", PAMI 1994), divided by the mean of |Y - mean Y|. So neither contrast nor
    brightness changes it, and fine grain counts beside edges. Size does, and noise raises it: it is
    read beside the base's value for pictures of one size, not by itself. 0 without contrast.
    """

    name: ClassVar[str] = "sharpness"
    columns: ClassVar[dict[str, Column]] = {
        "sharpness": Column("sum-modified Laplacian relative to the picture's own contrast")
    }
    version: ClassVar[int] = 2

    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        return [{"sharpness": self._of(from_image(entry.image))} for entry in inputs]

    @staticmethod
    def _of(pixels: Tensor) -> float:
        luma = torch.einsum("chw,c->hw", pixels, _LUMA)
        contrast = float((luma - luma.mean()).abs().mean())
        if contrast < _NO_CONTRAST:
            return 0.0
        inner = 2 * luma[1:-1, 1:-1]
        across = (inner - luma[1:-1, :-2] - luma[1:-1, 2:]).abs()
        down = (inner - luma[:-2, 1:-1] - luma[2:, 1:-1]).abs()
        return float((across + down).mean()) / contrast


def sized(image: Image.Image, like: Image.Image) -> Image.Image:
    """``image`` as RGB at the size of ``like``."""
    rgb = image.convert("RGB")
    return rgb if rgb.size == like.size else rgb.resize(like.size, Image.Resampling.LANCZOS)


class Lpips(ImageDistance):
    """LPIPS on VGG features (torchmetrics); targets are resized to the picture's size.

    torchmetrics takes its VGG from torchvision, which downloads the weights on first use.
    """

    name: ClassVar[str] = "lpips"
    columns: ClassVar[dict[str, Column]] = {
        "lpips": Column("LPIPS of picture and target", higher_is_better=False)
    }
    _net: Any = None

    def check(self) -> None:
        import importlib.util

        for library in ("torchmetrics", "torchvision"):
            if importlib.util.find_spec(library) is None:
                raise MissingWeights(f"lpips: {library} is not installed")

    def load(self) -> None:
        self.check()
        with missing_weights_errors(self.name, "VGG16 of torchvision"):
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            net = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
            self._net = net.to(self.device)

    @torch.no_grad()
    def distance(
        self, images: Sequence[Image.Image], targets: Sequence[Image.Image]
    ) -> list[float]:
        values = []
        for image, target in zip(images, targets, strict=True):
            pair = (from_image(image), from_image(sized(target, image)))
            values.append(float(self._net(*(pixels[None].to(self.device) for pixels in pair))))
            self._net.reset()
        return values


class Latent(ImageDistance):
    """RMSE between the VAE latents of picture and target; ``model`` is a pipeline's folder or id.

    Needs nothing but the base's own VAE. Targets are resized to the picture's size.
    """

    name: ClassVar[str] = "latent"
    columns: ClassVar[dict[str, Column]] = {
        "latent": Column("RMSE of the latents of picture and target", higher_is_better=False)
    }
    default_model: ClassVar[str] = "shapes"
    _vae: Any = None

    def load(self) -> None:
        from diffusers import AutoModel

        with missing_weights_errors(self.name, self.model):
            base = resolve_base(self.model, f"metric {self.name}")
            bring_weights(f"{base}/vae")
            vae = AutoModel.from_pretrained(base, subfolder="vae", use_safetensors=True)
            self._vae = vae.eval().to(self.device)

    @torch.no_grad()
    def _latents(self, image: Image.Image) -> Tensor:
        pixels = from_image(image)[None].to(self.device) * 2 - 1
        latents: Tensor = self._vae.encode(pixels).latent_dist.mode()
        return latents

    def distance(
        self, images: Sequence[Image.Image], targets: Sequence[Image.Image]
    ) -> list[float]:
        known: dict[tuple[int, tuple[int, int]], Tensor] = {}

        def latents(image: Image.Image, like: Image.Image) -> Tensor:
            # A picture that is compared with several is encoded once.
            key = (id(image), like.size)
            if key not in known:
                known[key] = self._latents(sized(image, like))
            return known[key]

        return [
            float((latents(a, a) - latents(b, a)).pow(2).mean().sqrt())
            for a, b in zip(images, targets, strict=True)
        ]
