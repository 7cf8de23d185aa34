"""A Z-Image transformer of a size at which a GPU has something to do, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from dopsd.config import RunConfig, load_config
from dopsd.models import ZImage
from dopsd.models.lora.layers import STUDENT
from dopsd.models.trained import TrainableParameters
from dopsd.records import Context

SIZES: dict[str, Any] = {
    "in_channels": 16,
    "dim": 1024,
    "n_layers": 8,
    "n_refiner_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 8,
    "cap_feat_dim": 512,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
REHEARSAL: dict[str, Any] = SIZES | {"dim": 256, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2}
"""For a CPU."""
TEXT = 96
"""Tokens of a text."""


def sizes(device: str) -> dict[str, Any]:
    return REHEARSAL if device == "cpu" else SIZES


def latent_side(device: str) -> int:
    """Of 512 pixels; for a CPU of 128."""
    return 16 if device == "cpu" else 64


class Blocks:
    """The transformer with a student's LoRA, and inputs of one sample for it."""

    def __init__(
        self, base: Any, device: str, dtype: torch.dtype = torch.bfloat16, model: Any = None
    ) -> None:
        self.config: RunConfig = load_config("shapes", ["lora.rank=64"])
        self.family = ZImage(str(base))
        self.device, self.dtype = device, dtype
        torch.manual_seed(0)
        if model is None:
            model = ZImageTransformer2DModel(**sizes(device)).to(dtype).to(device)
        self.model = model.requires_grad_(False).eval()
        trained = TrainableParameters(self.config, self.family)
        trained.prepare(self.model, (STUDENT,))
        self.parameters = trained.parameters(self.model, STUDENT)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if "lora_B" in name:
                    drawn = torch.randn(parameter.shape, generator=generator) * 0.02
                    parameter.copy_(drawn)
        side = latent_side(device)
        self.latents = torch.randn(1, 16, side, side, generator=generator).to(device)
        embeds = torch.randn(1, TEXT, SIZES["cap_feat_dim"], generator=generator)
        context = Context({"embeds": embeds, "lengths": torch.tensor([TEXT])})
        self.context = context.to(device, dtype)

    def velocity(self) -> Tensor:
        sigma = torch.full((1,), 0.75, device=self.device)
        return self.family.velocity(self.model, self.latents, sigma, self.context)

    def gradients(self) -> Tensor:
        """Of all of the LoRA, as one vector [N] float32 on the CPU."""
        self.velocity().square().mean().backward()
        vector = torch.cat([p.grad.flatten().float() for p in self.parameters.values()])
        for parameter in self.parameters.values():
            parameter.grad = None
        return vector.cpu()


def difference(one: Tensor, other: Tensor) -> float:
    """Relative, by norms."""
    return float((one.float() - other.float()).norm() / other.float().norm())
