"""A stock Z-Image pipeline and its VLM at toy size: the library's own classes, random weights.

Not the shapes world: nothing here is trained, and everything is built in about a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from dopsd.config import RunConfig
from dopsd.records import Context

WIDTH = 64
LAYERS = 2
REFINERS = 1
HEIGHT, IMAGE_WIDTH = 32, 48
"""Pixels of the pictures drawn here; not square, so that swapped sides are noticed."""
LATENT = (4, HEIGHT // 2, IMAGE_WIDTH // 2)
IMAGE_TOKEN_SIDE = 32
"""Pixels of the square that becomes one language token of the VLM."""
ROPE_THETA, VLM_ROPE_THETA = 1e4, 5e4
"""Different, as those of Qwen3 and Qwen3-VL are: rotary bases are no weights."""

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(["a red cat on a blue mat", "user\n", "assistant\n"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[1:],
        padding_side="right",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_transformer(seed: int = 0) -> ZImageTransformer2DModel:
    """Every part random and of order one: context, time, pads and gates all matter."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT[0],
        dim=WIDTH,
        n_layers=LAYERS,
        n_refiner_layers=REFINERS,
        n_heads=WIDTH // 32,
        n_kv_heads=WIDTH // 32,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[512, 64, 64],
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(pad)
    return transformer.requires_grad_(False).eval()


def make_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        latent_channels=LATENT[0],
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=HEIGHT,
        scaling_factor=0.7,
        shift_factor=0.1,
    ).eval()


def text_config(tokenizer: PreTrainedTokenizerFast, layers: int = 3) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3Model:
    torch.manual_seed(2)
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
    return Qwen3Model(Qwen3Config(**text_config(tokenizer), rope_parameters=rope)).eval()


def make_vlm(
    tokenizer: PreTrainedTokenizerFast, layers: int = 3
) -> Qwen3VLForConditionalGeneration:
    """Its language model has the text encoder's shape but OTHER weights, as Qwen3-VL's has."""
    torch.manual_seed(3)
    marks = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    rope = {
        "rope_type": "default",
        "rope_theta": VLM_ROPE_THETA,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": IMAGE_TOKEN_SIDE // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.2,
    }
    config = Qwen3VLConfig(
        text_config=text_config(tokenizer, layers) | {"rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=True,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    return Qwen3VLForConditionalGeneration(config).eval()


def save_base(folder: Path) -> Path:
    """Write a stock pipeline folder with a subfolder ``vlm``; returns ``folder``."""
    tokenizer = make_tokenizer()
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=make_transformer(),
    ).save_pretrained(folder)
    save_vlm(folder / "vlm", make_vlm(tokenizer), tokenizer)
    return folder


def save_vlm(
    folder: Path, vlm: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write a VLM with its tokenizer and image processor."""
    vlm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=IMAGE_TOKEN_SIDE // 2, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)


def make_config(base: Path | str, **sections: Any) -> RunConfig:
    """A valid config over a tiny base; ``sections`` are merged over it."""
    values: dict[str, Any] = {
        "model": {"base": str(base), "dtype": "float32"},
        "context": {
            "image_min_pixels": IMAGE_TOKEN_SIDE**2,
            "image_max_pixels": 4 * IMAGE_TOKEN_SIDE**2,
        },
        "data": {"source": "unused"},
    }
    for name, section in sections.items():
        merged = isinstance(section, dict)
        values[name] = values.get(name, {}) | section if merged else section
    return RunConfig.model_validate(values)


def make_context(lengths: tuple[int, ...], seed: int) -> Context:
    """Random features, one row per length, zero-padded as an encoder's are."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.zeros(len(lengths), max(lengths), WIDTH)
    for row, length in zip(embeds, lengths):
        row[:length] = torch.randn(length, WIDTH, generator=generator)
    return Context({"embeds": embeds, "lengths": torch.tensor(lengths)})


def random_state(parameters: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """LoRA weights of the same shapes, large enough to change what the model draws; magnitudes
    of DoRA around those that they have."""
    generator = torch.Generator().manual_seed(seed)

    def value(name: str, tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * 0.1
        return tensor.detach() * (1 + noise) if name.endswith("magnitude_vector") else noise

    return {name: value(name, tensor) for name, tensor in parameters.items()}


def random_image(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
