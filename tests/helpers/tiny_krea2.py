"""A stock Krea 2 pipeline at toy size: the library's own classes, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from torch import nn

from dopsd.config import RunConfig
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, WIDTH, make_config, make_tokenizer, make_vlm

BLOCKS = 2
FUSION_BLOCKS = 2
"""One over the layers of a token, one over the tokens."""
TAPPED = (1, 2)
VAE_CHANNELS = 4
LATENT = (4 * VAE_CHANNELS, HEIGHT // 4, IMAGE_WIDTH // 4)


def make_krea2_transformer() -> Krea2Transformer2DModel:
    """Every part random and of order one: text, time, positions and gates all matter."""
    torch.manual_seed(0)
    transformer = Krea2Transformer2DModel(
        in_channels=LATENT[0],
        num_layers=BLOCKS,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        timestep_embed_dim=32,
        text_hidden_dim=WIDTH,
        num_text_layers=len(TAPPED),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=96,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):
            nn.init.normal_(parameter, std=0.3)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return transformer.requires_grad_(False).eval()


def make_frame_vae(kind: Any, channels: int, **options: Any) -> Any:
    """An autoencoder of one level of sampling, with statistics of its own in every channel."""
    torch.manual_seed(1)
    statistics = {
        "latents_mean": torch.randn(channels).tolist(),
        "latents_std": (torch.rand(channels) + 0.5).tolist(),
    }
    return kind(base_dim=8, z_dim=channels, num_res_blocks=1, **statistics, **options).eval()


def save_krea2(folder: Path, is_distilled: bool = True) -> Path:
    """Write a stock pipeline folder; returns ``folder``."""
    tokenizer = make_tokenizer()
    Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=6400
        ),
        vae=make_frame_vae(
            AutoencoderKLQwenImage, VAE_CHANNELS, dim_mult=[1, 2], temperal_downsample=[False]
        ),
        text_encoder=make_vlm(tokenizer).model,
        tokenizer=tokenizer,
        transformer=make_krea2_transformer(),
        text_encoder_select_layers=TAPPED,
        is_distilled=is_distilled,
    ).save_pretrained(folder)
    return folder


def make_krea2_config(base: Path | str, **sections: Any) -> RunConfig:
    """A valid config over a tiny base; ``sections`` are merged over it."""
    model = {"family": "krea2", "base": str(base), "dtype": "float32"}
    return make_config(base, **sections | {"model": model | sections.get("model", {})})
