"""Folders of tiny real encoders with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.evaluation.tiny import SIDE, image_processor
from tests.helpers.tiny import make_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config={
                **small,
                "num_attention_heads": 2,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 16,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={**small, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14},
            projection_dim=16,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=14,
        )
    ).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = make_tokenizer()
    image_token = "<|image_pad|>"
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **small, num_attention_heads=2, image_size=SIDE, patch_size=14
            ),
            text_config=LlamaConfig(
                **small,
                num_attention_heads=2,
                num_key_value_heads=2,
                vocab_size=len(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
            ),
            image_token_id=tokenizer.convert_tokens_to_ids(image_token),
            image_seq_length=4,
        )
    ).save_pretrained(folder)
    LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=image_token,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder
