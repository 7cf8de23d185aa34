"""The tiny base: the library's own classes, at the size of the shapes world.

``AutoencoderKL`` with one latent pixel per cell, ``ZImageTransformer2DModel`` with 64 tokens of 2x2
cells, and a ``Qwen3VLForConditionalGeneration`` whose language model has exactly the weights of the
pipeline's text encoder, as in Z-Image-Turbo with Qwen3-VL.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from dopsd.experiments.shapes_base.tokenizer import IMAGE, VIDEO, VISION_END, VISION_START

# The libraries' lazy imports hide their base classes from type checkers.
Vae: TypeAlias = Any
Transformer: TypeAlias = Any
Vlm: TypeAlias = Any
ChatTokenizer: TypeAlias = Any

LATENT_CHANNELS = 4
LATENT_SIZE = 16
WIDTH = 128
HEAD = 32
LAYERS = 5
TEXT_LAYERS = 3
TEXT_HEAD = 64
TEXT_INNER = 128
VISION_WIDTH = 64
VISION_LAYERS = 3
PATCH = 16
MERGE = 2
CONTEXT_PIXELS = 128
CONTEXT_TOKENS = (CONTEXT_PIXELS // (PATCH * MERGE)) ** 2
SHIFT = 3.0
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def make_vae() -> Vae:
    """Build the autoencoder: 32x32 px to [4, 16, 16]."""
    widths = (32, 48)
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def make_transformer() -> Transformer:
    """Build the diffusion transformer with weights that train: small gates, zero output.

    The library leaves every layer at PyTorch's default, from which a model this small learns
    slowly.
    """
    transformer: Transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=WIDTH,
        n_layers=LAYERS,
        n_refiner_layers=1,
        n_heads=WIDTH // HEAD,
        n_kv_heads=WIDTH // HEAD,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[256, 64, 64],
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in [*transformer.layers, *transformer.noise_refiner]:
        modulation = block.adaLN_modulation[0]
        nn.init.zeros_(modulation.weight)
        with torch.no_grad():
            # Rows: scale and gate of the attention, scale and gate of the feed-forward.
            modulation.bias.view(4, -1)[[1, 3]] = 0.3
    final = transformer.all_final_layer["2-1"]
    nn.init.zeros_(final.linear.weight)
    nn.init.zeros_(final.adaLN_modulation[1].weight)
    for layer in (transformer.t_embedder.mlp[0], transformer.t_embedder.mlp[2]):
        nn.init.normal_(layer.weight, std=0.02)
    return transformer


_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": TEXT_INNER,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": WIDTH // TEXT_HEAD,
    "num_key_value_heads": WIDTH // TEXT_HEAD,
    "head_dim": TEXT_HEAD,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
"""What language model and text encoder have in common, beside the tokens."""


def make_vlm(tokenizer: ChatTokenizer) -> Vlm:
    """Build the vision-language model; ``model.language_model`` is the text encoder."""
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    rope = ROPE | {"mrope_section": [12, 10, 10], "mrope_interleaved": True}
    marks = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    config = Qwen3VLConfig(
        text_config=_TEXT | tokens | {"rope_parameters": rope},
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": VISION_WIDTH // 32,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": (CONTEXT_PIXELS // PATCH) ** 2,
            # No second path for the pixels: at this depth it only costs a merger's weights.
            "deepstack_visual_indexes": [],
        },
        tie_word_embeddings=True,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    return Qwen3VLForConditionalGeneration(config)


def text_encoder_of(vlm: Vlm) -> Qwen3Model:
    """Copy the language model out of the VLM, as the pipeline's text encoder."""
    language = vlm.model.language_model
    config = language.config.to_dict()
    kept = {name: config[name] for name in ("vocab_size", "pad_token_id", *_TEXT)}
    encoder = Qwen3Model(Qwen3Config(**kept, rope_parameters=ROPE))
    encoder.load_state_dict(language.state_dict())
    return encoder.to(next(language.parameters()).dtype).eval()


def make_image_processor() -> Qwen2VLImageProcessorPil:
    """Build the stock processor, set to show 32x32 px at 128x128 px without any blur.

    Nearest neighbour (``resample=0``) is what training sees; 128 px give 16 language tokens.
    """
    area = CONTEXT_PIXELS**2
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        resample=0,
        size={"shortest_edge": area, "longest_edge": area},
    )


def make_pipeline(
    vae: Vae,
    vlm: Vlm,
    transformer: Transformer,
    tokenizer: ChatTokenizer,
) -> Any:
    """Put the parts into a stock pipeline."""
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT),
        vae=vae,
        text_encoder=text_encoder_of(vlm),
        tokenizer=tokenizer,
        transformer=transformer,
    )


@torch.no_grad()
def encode_images(vae: Vae, images: Tensor, chunk: int = 250) -> Tensor:
    """Map [N, 3, 32, 32] in [0, 1] to normalised latents [N, 4, 16, 16]."""
    latents = torch.cat([vae.encode(c * 2 - 1).latent_dist.mode() for c in images.split(chunk)])
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Vae, latents: Tensor, chunk: int = 128) -> Tensor:
    """Map normalised latents [N, 4, 16, 16] to pictures [N, 3, 32, 32] in [0, 1]."""
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    images = torch.cat([vae.decode(c).sample for c in latents.split(chunk)])
    return (images / 2 + 0.5).clamp(0, 1)
