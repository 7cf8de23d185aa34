"""Weights and FLOPs of the frozen encoders, from their config files alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VAE_ENCODE_FLOPS = 4.9e12 / 2**20
"""Of the autoencoder for each pixel (traced: 4.9 TFLOP for 1024 x 1024)."""
VAE_ENCODE_BYTES = 1.25 * 2**30 / 2**20
"""Of activations for each pixel (traced: 1.25 GiB)."""
VAE_WEIGHTS = 84e6
PATCH = 16
"""Pixels along a side of the vision tower's patches."""
MERGED = 2
"""Patches along a side that become one token of the language model."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder, or a VLM whose language model is that one."""

    language: int
    embeddings: int
    vision: int

    @property
    def weights(self) -> int:
        return self.language + self.embeddings + self.vision

    def flops(self, tokens: float, pixels: float = 0.0) -> float:
        """Of ``tokens``, those of a picture included, and of a picture of ``pixels``."""
        return 2.0 * self.language * tokens + 2.0 * self.vision * pixels / PATCH**2


def picture_tokens(pixels: float) -> float:
    """That a VLM's language model reads of a picture."""
    return pixels / (PATCH * MERGED) ** 2


def encoder(config: dict[str, Any]) -> Encoder:
    """``config``: of a Qwen3, or of a Qwen3-VL."""
    text = config.get("text_config", config)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    attention = 2 * width * heads * head + 2 * width * text["num_key_value_heads"] * head
    block = attention + 3 * width * text["intermediate_size"] + 2 * width
    embeddings = text["vocab_size"] * width
    return Encoder(text["num_hidden_layers"] * block, embeddings, _vision(config, width))


def _vision(config: dict[str, Any], text_width: int) -> int:
    if "vision_config" not in config:
        return 0
    vision = config["vision_config"]
    width = vision["hidden_size"]
    block = 4 * width * width + 2 * width * vision["intermediate_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    mergers = (1 + len(vision.get("deepstack_visual_indexes", ()))) * merged * (merged + text_width)
    return int(vision["depth"] * block + mergers)
