"""Z-Image's rotary embedding in real numbers, for compiled blocks: inductor generates no code for
complex ones, and would leave queries and keys to kernels of their own on both ways.

Angles are looked up as pairs (cos, sin) in place of complex numbers, outside the blocks; what a
block computes is the same product, written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotated(values: Tensor, angles: Tensor) -> Tensor:
    """``values`` [B, L, H, D] in any dtype, whose D are pairs, turned by ``angles`` [B, L, D/2, 2]
    (cos, sin), in float32 between."""
    real, imaginary = values.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.unsqueeze(2).unbind(-1)
    pairs = (real * cos - imaginary * sin, real * sin + imaginary * cos)
    return torch.stack(pairs, -1).flatten(-2).type_as(values)


class RealAngles:
    """``embedder`` of a transformer with its complex numbers as pairs: [L, D/2, 2] float32."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder

    def __call__(self, ids: Tensor) -> Tensor:
        return torch.view_as_real(self._embedder(ids))


class RealRotaryProcessor:
    """Attention as ``processor`` computes it, with its backend, over angles that are pairs."""

    def __init__(self, processor: Any) -> None:
        self._attention_backend = processor._attention_backend
        self._parallel_config = processor._parallel_config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """As diffusers calls a processor: ``hidden_states`` [B, L, W], ``attention_mask`` [B, L]
        (true: is attended to), ``freqs_cis`` [B, L, D/2, 2]; returns [B, L, W]."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        heads = (attn.heads, -1)
        query, key, value = (
            layer(hidden_states).unflatten(-1, heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if freqs_cis is not None:
            query, key = rotated(query, freqs_cis), rotated(key, freqs_cis)
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :]
        found: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        found = found.flatten(2).to(query.dtype)
        for layer in attn.to_out:  # and a dropout, where there is one
            found = layer(found)
        return found


def use_real_rotary(transformer: Any) -> None:
    """Switch ``transformer`` over, in place, once and after its attention backend was chosen; one
    that is no Z-Image's stays as it is."""
    from diffusers.models.transformers.transformer_z_image import RopeEmbedder
    from diffusers.models.transformers.transformer_z_image import (
        ZSingleStreamAttnProcessor as Processor,
    )

    if not isinstance(getattr(transformer, "rope_embedder", None), RopeEmbedder):
        return
    transformer.rope_embedder = RealAngles(transformer.rope_embedder)
    for module in transformer.modules():
        if isinstance(getattr(module, "processor", None), Processor):
            module.processor = RealRotaryProcessor(module.processor)
