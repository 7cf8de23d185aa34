"""The text context of each family, from its text encoder alone and through a VLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from dopsd.contexts.text import TextEncoder
from dopsd.contexts.vlm import VlmEncoder
from dopsd.errors import DataError, ModelError
from dopsd.models import FAMILIES
from tests.helpers.tiny import IMAGE_TOKEN_SIDE, ROPE_THETA, make_config, random_image
from tests.helpers.tiny_flux2 import FEATURES, make_flux2_config

PROMPTS = ["a red cat", "", "Katze [V] 猫, on a blue mat.\n\nassistant\n a red cat " * 2]
SIDE = IMAGE_TOKEN_SIDE
IMAGES = [
    random_image(SIDE, SIDE, 0),
    random_image(2 * SIDE, SIDE, 1),
    random_image(2 * SIDE, 2 * SIDE, 2),
]
TOKENS = [1, 2, 4]
LIMIT = 160
"""Tokens of an image+text context here."""


@pytest.fixture(scope="module")
def encoder(tiny_flux2: Path) -> TextEncoder:
    return TextEncoder.from_config(make_flux2_config(tiny_flux2), "cpu")


@pytest.fixture(scope="module")
def vlm(tiny_flux2: Path) -> VlmEncoder:
    context = {
        "image_text_tokens": LIMIT,
        "image_min_pixels": SIDE**2,
        "image_max_pixels": 4 * SIDE**2,
    }
    return VlmEncoder.from_config(make_flux2_config(tiny_flux2, context=context), "cpu")


def embeds(context: Any) -> Tensor:
    tensor: Tensor = context.tensors["embeds"]
    return tensor


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative: 28 random layers amplify what rounding differs by."""
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("limit", [512, 32])
def test_flux2_features_are_the_stock_pipelines(
    encoder: TextEncoder, tiny_flux2: Path, limit: int
) -> None:
    """Three layers, thinking disabled, padded to the limit or cut at it."""
    pipeline = FAMILIES["flux2_klein"](str(tiny_flux2)).load_pipeline(torch.float32, "cpu")
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(list(PROMPTS), max_sequence_length=limit)
    other = TextEncoder(encoder.model, encoder.tokenizer, encoder.format, limit)
    prompts = list(PROMPTS)
    context = other.encode(prompts)
    assert prompts == PROMPTS
    assert set(context.tensors) == {"embeds"}
    assert embeds(context).shape == (3, limit, FEATURES)
    torch.testing.assert_close(embeds(context), expected, atol=1e-5, rtol=1e-5)
    assert other.view(PROMPTS[2]).truncated == (limit == 32)
    think = "<think>\n\n</think>\n\n"
    assert other.template("a") == (f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{think}")


def test_z_images_text_encoder_gives_what_its_vlm_gives(tiny_base: Path) -> None:
    config = make_config(tiny_base)
    alone = TextEncoder.from_config(config, "cpu").encode(PROMPTS)
    through = VlmEncoder.from_config(config, "cpu").text.encode(PROMPTS)
    torch.testing.assert_close(embeds(alone), embeds(through), atol=1e-5, rtol=1e-5)
    assert torch.equal(alone.tensors["lengths"], through.tensors["lengths"])


def test_the_encoder_is_frozen_and_without_a_head(encoder: TextEncoder) -> None:
    assert isinstance(encoder.model, Qwen3Model)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    with pytest.raises(DataError, match=r"holds <\|im_end\|>, a special token"):
        encoder.encode(["a", "b<|im_end|>"])


def test_a_vlm_carries_flux2s_text_encoder(vlm: VlmEncoder, encoder: TextEncoder) -> None:
    through = vlm.text.encode(PROMPTS)
    torch.testing.assert_close(embeds(through), embeds(encoder.encode(PROMPTS)))


def test_flux2s_teacher_features_are_the_stock_vlms(vlm: VlmEncoder, tiny_flux2: Path) -> None:
    """Each sample on its own and unpadded, through the library's class with the encoder's weights
    and rotary base; and the padding is that of the same text, whoever stands beside it."""
    config = Qwen3VLConfig.from_pretrained(tiny_flux2 / "vlm")
    config.text_config.rope_parameters["rope_theta"] = ROPE_THETA
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tiny_flux2 / "vlm", config=config)
    text = Qwen3Model.from_pretrained(tiny_flux2 / "text_encoder")
    stock.eval().model.language_model.load_state_dict(text.state_dict())
    ours = embeds(vlm.encode_image_text(IMAGES, PROMPTS))
    assert ours.shape == (3, LIMIT, FEATURES)
    for row, (image, prompt, tokens) in enumerate(zip(IMAGES, PROMPTS, TOKENS)):
        pixels = vlm.image_processor(images=Image.fromarray(image), return_tensors="pt")
        chat = (
            f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>{prompt}"
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        assert vlm.image_template(prompt, tokens) == chat
        ids = vlm.vlm_tokenizer(chat, return_tensors="pt").input_ids
        with torch.no_grad():
            states = stock(
                input_ids=ids,
                mm_token_type_ids=(ids == vlm.image_token).int(),
                output_hidden_states=True,
                **pixels,
            ).hidden_states
        expected = torch.cat([states[layer][0] for layer in (9, 18, 27)], dim=-1)
        assert distance(ours[row, : len(expected)], expected) < 1e-5
        alone = embeds(vlm.encode_image_text([image], [prompt]))[0]
        assert distance(ours[row], alone) < 1e-5
        # Padding stands at positions of its own: at one position it would be one vector.
        padding = alone[len(expected) :]
        assert (padding[0] - padding[-1]).abs().max() > 1e-3


def test_a_vlm_of_another_size_is_refused_by_name(tiny_base: Path, tiny_flux2: Path) -> None:
    config = make_flux2_config(tiny_flux2, model={"vlm": str(tiny_base / "vlm")})
    with pytest.raises(ModelError, match=r"^model\.vlm: the text encoder's layers\.\d+\..* is not"):
        VlmEncoder.from_config(config, "cpu")
