"""The same forwards as the library's, written for the one size of the shapes world.

Only the training of the base uses them: batched tensors in place of lists, plain matrix attention
(faster than SDPA's backward on a CPU at 96 tokens), and blocks that ``torch.compile`` takes once.
``tests/experiments/shapes_base/test_fast.py`` holds them against the library's own forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from dopsd.experiments.shapes_base import nets
from dopsd.experiments.shapes_base.nets import ChatTokenizer, Transformer, Vlm
from dopsd.shapes.world import show

# Both branches fit one block of the transformer's padding: a text prompt takes about 14 tokens, a
# picture with a full caption exactly 32.
CAPTION_TOKENS = 32
TOKENS_PER_SIDE = nets.LATENT_SIZE // 2
IMAGE_TOKENS = TOKENS_PER_SIDE**2

# <|im_start|> user \n <|vision_start|> come before the picture.
IMAGE_START = 4

_PIXEL_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_PIXEL_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def _rms(norm: Any, x: Tensor) -> Tensor:
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    # [B, heads, S, head] in and [B, S, heads * head] out.
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        weights = weights + bias
    return (weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _rope_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Z-Image rotates neighbouring channels.
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _rope_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Qwen rotates the first half of the channels against the second.
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def transformer_block(
    block: Any, x: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor | None
) -> Tensor:
    """One block of the diffusion transformer; the context refiner has no modulation."""
    attention = block.attention
    normed = _rms(block.attention_norm1, x)
    if modulation is not None:
        parts = block.adaLN_modulation(modulation).unsqueeze(1).chunk(4, 2)
        scale_a, gate_a, scale_f, gate_f = parts[0], parts[1].tanh(), parts[2], parts[3].tanh()
        normed = normed * (1 + scale_a)
    batch, length, _ = normed.shape
    q, k, v = (
        layer(normed).view(batch, length, attention.heads, -1)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    q = _rope_pairs(_rms(attention.norm_q, q), cos, sin)
    k = _rope_pairs(_rms(attention.norm_k, k), cos, sin)
    mixed = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    mixed = _rms(block.attention_norm2, attention.to_out[0](mixed))
    x = x + (mixed if modulation is None else gate_a * mixed)
    normed = _rms(block.ffn_norm1, x)
    if modulation is not None:
        normed = normed * (1 + scale_f)
    forward = _rms(block.ffn_norm2, block.feed_forward(normed))
    return x + (forward if modulation is None else gate_f * forward)


def text_block(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """One layer of the language model, causal."""
    attention = layer.self_attn
    normed = _rms(layer.input_layernorm, x)
    batch, length, _ = normed.shape
    q, k, v = (
        project(normed).view(batch, length, -1, nets.TEXT_HEAD).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q = _rope_halves(_rms(attention.q_norm, q), cos, sin)
    k = _rope_halves(_rms(attention.k_norm, k), cos, sin)
    x = x + attention.o_proj(_attend(q, k, v, bias))
    return x + layer.mlp(_rms(layer.post_attention_layernorm, x))


def vision_block(block: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One block of the vision tower, every patch of a picture with every other."""
    attention = block.attn
    batch, length, width = x.shape
    normed = F.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias, 1e-6)
    packed = attention.qkv(normed).view(batch, length, 3, attention.num_heads, -1)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    q, k = _rope_halves(q, cos, sin), _rope_halves(k, cos, sin)
    x = x + attention.proj(_attend(q, k, v))
    return x + block.mlp(block.norm2(x))


class Forwards:
    """The forwards, with their blocks compiled or not.

    ``compiled``: pass True for training; the first step then takes about a minute.
    """

    def __init__(self, compiled: bool = False):
        blocks: Sequence[Callable[..., Tensor]] = (transformer_block, text_block, vision_block)
        if compiled:
            # One version per batch size, sequence, and whether gradients flow: past the limit
            # PyTorch would fall back to uncompiled blocks with no more than a warning.
            torch._dynamo.config.recompile_limit = 32
            blocks = [torch.compile(block, dynamic=False) for block in blocks]
        self._transformer_block, self._text_block, self._vision_block = blocks

    def transformer(
        self,
        model: Transformer,
        latents: Tensor,
        time: Tensor,
        features: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Equal ``ZImageTransformer2DModel`` on [B, 4, 16, 16] latents.

        ``time`` [B]: Z-Image's own, 1 - sigma. ``features`` [B, 32, width]: what lies past a row's
        length is replaced by the pad token. ``lengths`` [B]: tokens per prompt. Returns [B, 4, 16,
        16] float32: the NEGATED velocity, data minus noise.
        """
        batch, channels = latents.shape[:2]
        side, count, length = TOKENS_PER_SIDE, IMAGE_TOKENS, features.shape[1]
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else latents.dtype
        cos, sin = (table.to(dtype) for table in _axes(model, length))
        modulation = model.t_embedder(time * model.t_scale).to(dtype)
        patches = latents.view(batch, channels, side, 2, side, 2)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, count, 4 * channels)
        x = model.all_x_embedder["2-1"](patches).to(dtype)
        for block in model.noise_refiner:
            x = self._transformer_block(block, x, cos[:, :count], sin[:, :count], modulation)
        norm, project = model.cap_embedder
        context = project(_rms(norm, features.to(dtype))).to(dtype)
        padding = torch.arange(length)[None] >= lengths[:, None]
        context = torch.where(padding[..., None], model.cap_pad_token.to(dtype), context)
        for block in model.context_refiner:
            context = self._transformer_block(block, context, cos[:, count:], sin[:, count:], None)
        x = torch.cat([x, context], 1)
        for block in model.layers:
            x = self._transformer_block(block, x, cos, sin, modulation)
        final = model.all_final_layer["2-1"]
        x = F.layer_norm(x[:, :count], (x.shape[-1],), eps=1e-6)
        x = final.linear(x * (1 + final.adaLN_modulation(modulation)).unsqueeze(1)).float()
        x = x.view(batch, side, side, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, channels, 2 * side, 2 * side)

    def vision(self, visual: Any, images: Tensor) -> Tensor:
        """Equal the vision tower on [B, 3, 32, 32] pictures: [B, 16, width] features."""
        batch, grid = len(images), nets.CONTEXT_PIXELS // nets.PATCH
        pixels = show(images, nets.CONTEXT_PIXELS // images.shape[-1])
        pixels = (pixels - _PIXEL_MEAN) / _PIXEL_STD
        half = grid // nets.MERGE
        patches = pixels.view(batch, 3, half, 2, nets.PATCH, half, 2, nets.PATCH)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, grid**2, -1)
        kernel = visual.patch_embed.proj
        # A still picture is shown twice in time: both time slices of the kernel see the same.
        weight = kernel.weight.sum(2).flatten(1)
        index, share, cos, sin = _vision_tables(visual, grid)
        x = F.linear(patches, weight, kernel.bias)
        x = x + (visual.pos_embed(index) * share[:, :, None]).sum(1)
        for block in visual.blocks:
            x = self._vision_block(block, x, cos.to(x.dtype), sin.to(x.dtype))
        merged: Tensor = visual.merger(x)
        return merged.view(batch, nets.CONTEXT_TOKENS, -1)

    def language(self, model: Any, ids: Tensor, vision: Tensor | None = None) -> Tensor:
        """Equal ``hidden_states[-2]`` of the language model.

        ``model``: ``Qwen3Model`` or the VLM's text model. ``ids``: [B, S]. ``vision`` [B, 16,
        width]: features for the picture's tokens, which begin at ``IMAGE_START``; without them the
        ids are text alone. Returns [B, S, width]; positions past the prompt's end are meaningless.
        """
        x = model.embed_tokens(ids)
        if vision is not None:
            after = IMAGE_START + nets.CONTEXT_TOKENS
            x = torch.cat([x[:, :IMAGE_START], vision.to(x.dtype), x[:, after:]], 1)
        length = ids.shape[1]
        cos, sin = model.rotary_emb(x, _positions(model, length, vision is not None))
        cos, sin = cos[:, None], sin[:, None]
        bias = _causal(length)
        for layer in model.layers[:-1]:
            x = self._text_block(layer, x, cos, sin, bias)
        return x

    def encode(
        self,
        vlm: Vlm,
        prompts: PromptTokens,
        texts: Sequence[str],
        images: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts, each beside its picture [B, 3, 32, 32] if there are any.

        Returns features [B, 32, width] and lengths [B].
        """
        ids, lengths = prompts(texts, images is not None)
        seen = None if images is None else self.vision(vlm.model.visual, images)
        return self.language(vlm.model.language_model, ids, seen), lengths


@lru_cache(maxsize=8)
def _axes(model: Transformer, length: int) -> tuple[Tensor, Tensor]:
    side = range(TOKENS_PER_SIDE)
    picture = [(length + 1, row, column) for row in side for column in side]
    places = picture + [(1 + index, 0, 0) for index in range(length)]
    table = model.rope_embedder(torch.tensor(places))
    return table.real.clone()[None, :, None], table.imag.clone()[None, :, None]


@lru_cache(maxsize=8)
def _vision_tables(visual: Any, grid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = torch.tensor([[1, grid, grid]])
    index, share = qwen.get_vision_interpolation_indices_and_weights(
        shape,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=nets.MERGE,
        kwargs={},
    )
    positions = qwen.get_vision_position_ids(shape, nets.MERGE, kwargs={})
    cos, sin = visual.rotary_pos_emb(torch.zeros(1), positions)
    return index, share, cos, sin


@lru_cache(maxsize=8)
def _causal(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf).triu(1)


def _positions(model: Any, length: int, has_image: bool) -> Tensor:
    if not hasattr(model.rotary_emb, "mrope_section"):
        return torch.arange(length)[None]
    positions = torch.arange(length).view(1, 1, -1).repeat(3, 1, 1)
    if has_image:
        # Time stands still within a picture; rows and columns count from its first token.
        count, start = nets.CONTEXT_TOKENS, IMAGE_START
        side = int(count**0.5)
        index = torch.arange(count)
        positions[0, 0, start : start + count] = start
        positions[1, 0, start : start + count] = start + index // side
        positions[2, 0, start : start + count] = start + index % side
        rest = torch.arange(length - start - count)
        positions[:, 0, start + count :] = start + side + rest
    return positions


class PromptTokens:
    """Token ids of prompts in the chat template, padded to 32, each tokenised once."""

    def __init__(self, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, bool], list[int]] = {}

    def one(self, text: str, image: bool) -> list[int]:
        """Return the ids of a prompt, with room for the picture's 16 tokens if it has one."""
        key = (text, image)
        if key not in self._known:
            parts = [{"type": "image"}, {"type": "text", "text": text}] if image else text
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": parts}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            if image:
                pad = "<|image_pad|>"
                prompt = prompt.replace(pad, pad * nets.CONTEXT_TOKENS)
            ids = self.tokenizer(prompt).input_ids
            assert len(ids) <= CAPTION_TOKENS, f"{len(ids)} tokens in {prompt!r}"
            self._known[key] = ids
        return self._known[key]

    def __call__(self, texts: Sequence[str], image: bool = False) -> tuple[Tensor, Tensor]:
        """Return ids [B, 32] and lengths [B]."""
        rows = [self.one(text, image) for text in texts]
        pad = self.tokenizer.pad_token_id
        padded = [row + [pad] * (CAPTION_TOKENS - len(row)) for row in rows]
        return torch.tensor(padded), torch.tensor([len(row) for row in rows])


def sigmas(steps: int, shift: float = nets.SHIFT) -> Tensor:
    """The stock scheduler's grid for ``steps`` forwards, with the final 0: [steps + 1]."""
    linear = torch.linspace(1.0, 1.0 / steps, steps)
    return torch.cat([shift * linear / (1 + (shift - 1) * linear), torch.zeros(1)])


@torch.no_grad()
def integrate(
    forwards: Forwards,
    model: Transformer,
    condition: tuple[Tensor, Tensor],
    x: Tensor,
    levels: Tensor,
    guidance: float,
    empty: tuple[Tensor, Tensor],
) -> Tensor:
    """Euler steps of ``x`` [B, 4, 16, 16] along the noise ``levels``, guided as the stock pipeline
    does it: ``pos + guidance * (pos - neg)``.

    ``condition``: features and lengths of B prompts; ``empty``: of the empty prompt ([1, ...]).
    ``guidance``: 0 switches it off.
    """
    batch = len(x)
    features, lengths = condition
    if guidance:
        features = torch.cat([features, empty[0].expand(batch, -1, -1)])
        lengths = torch.cat([lengths, empty[1].expand(batch)])
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        state = torch.cat([x, x]) if guidance else x
        time = (1 - now).expand(len(state))
        output = forwards.transformer(model, state, time, features, lengths)
        if guidance:
            positive, negative = output.chunk(2)
            output = positive + guidance * (positive - negative)
        x = x + (now - after) * output
    return x
