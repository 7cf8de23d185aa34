"""A stock FLUX.2-klein pipeline and its VLM at toy size: the library's own classes, random weights.

The text encoder is narrow but deep: the family reads its layers 9, 18 and 27.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dopsd.config import RunConfig
from dopsd.records import Context
from tests.helpers.tiny import (
    HEIGHT,
    IMAGE_WIDTH,
    ROPE_THETA,
    WIDTH,
    make_config,
    make_tokenizer,
    make_vlm,
    save_vlm,
    text_config,
)

BLOCKS = 2
"""Double-stream blocks, and single-stream blocks."""
TEXT_LAYERS = 30
FEATURES = 3 * WIDTH
"""Width of the text features: three layers."""
VAE_CHANNELS = 4
LATENT = (4 * VAE_CHANNELS, HEIGHT // 4, IMAGE_WIDTH // 4)


def make_flux2_transformer(seed: int = 0) -> Flux2Transformer2DModel:
    """Every part random and of order one: context, time, positions and gates all matter."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=LATENT[0],
        num_layers=BLOCKS,
        num_single_layers=BLOCKS,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=FEATURES,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return transformer.requires_grad_(False).eval()


def make_flux2_vae() -> AutoencoderKLFlux2:
    """With batch-norm statistics of its own in every channel."""
    torch.manual_seed(1)
    vae = AutoencoderKLFlux2(
        latent_channels=VAE_CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=HEIGHT,
    )
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.2, 2.0)
    return vae.eval()


def make_flux2_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(2)
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
    config = Qwen3Config(
        **text_config(tokenizer, TEXT_LAYERS), rope_parameters=rope, tie_word_embeddings=True
    )
    return Qwen3ForCausalLM(config).eval()


def save_flux2(folder: Path) -> Path:
    """Write a stock pipeline folder with a subfolder ``vlm``; returns ``folder``."""
    tokenizer = make_tokenizer()
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True
        ),
        vae=make_flux2_vae(),
        text_encoder=make_flux2_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=make_flux2_transformer(),
        is_distilled=True,
    ).save_pretrained(folder)
    save_vlm(folder / "vlm", make_vlm(tokenizer, TEXT_LAYERS), tokenizer)
    return folder


def make_flux2_config(base: Path | str, **sections: Any) -> RunConfig:
    """A valid config over a tiny base; ``sections`` are merged over it."""
    model = {"family": "flux2_klein", "base": str(base), "dtype": "float32"}
    return make_config(base, **sections | {"model": model | sections.get("model", {})})


def make_flux2_context(rows: int, seed: int, tokens: int = 24) -> Context:
    """Random features [rows, tokens, 3 * WIDTH]."""
    generator = torch.Generator().manual_seed(seed)
    return Context({"embeds": torch.randn(rows, tokens, FEATURES, generator=generator)})
