"""A stock Qwen-Image 2.1 pipeline at toy size: the library's own classes, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from dopsd.config import RunConfig
from dopsd.models.text_processor import TextProcessor
from tests.helpers.tiny import IMAGE_TOKEN_SIDE, WIDTH, make_config, make_tokenizer, make_vlm
from tests.helpers.tiny_krea2 import make_frame_vae

BLOCKS = 2
CHANNELS = 8
HEIGHT, IMAGE_WIDTH = 64, 96
"""Pixels: one position is 16 x 16 of them in the stock pipeline, whatever its autoencoder."""
LATENT = (CHANNELS, HEIGHT // 16, IMAGE_WIDTH // 16)


def make_qwen_transformer() -> QwenImage21Transformer2DModel:
    """Every part random and of order one: text, time, positions and gates all matter."""
    torch.manual_seed(0)
    transformer = QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=BLOCKS,
        attention_head_dim=16,
        num_attention_heads=4,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return transformer.requires_grad_(False).eval()


def save_qwen_image(folder: Path, sample_sigmas: list[float] | None = None) -> Path:
    """Write a stock pipeline folder; returns ``folder``."""
    tokenizer = make_tokenizer()
    images = Qwen2VLImageProcessorPil(
        patch_size=IMAGE_TOKEN_SIDE // 2, merge_size=2, temporal_patch_size=2
    )
    vae = make_frame_vae(
        AutoencoderKLQwenImage21,
        CHANNELS,
        decoder_base_dim=8,
        dim_mult=[1, 1, 1, 1, 1],
        temperal_downsample=[False, True, True, True],
    )
    # The real processor needs torchvision; its folder has the same files.
    QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=make_vlm(tokenizer),
        processor=TextProcessor(tokenizer),
        transformer=make_qwen_transformer(),
        sample_sigmas=sample_sigmas,
    ).save_pretrained(folder)
    images.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen3VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_qwen_config(base: Path | str, **sections: Any) -> RunConfig:
    """A valid config over a tiny base; ``sections`` are merged over it."""
    model = {"family": "qwen_image", "base": str(base), "dtype": "float32"}
    return make_config(base, **sections | {"model": model | sections.get("model", {})})
