"""The `vlm` context: templated once per role, equal to the stock classes, weights held once."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

from dopsd.contexts import EncoderFactory
from dopsd.contexts.text import TextEncoder, tokenize
from dopsd.contexts.vlm import VlmEncoder
from dopsd.data.sample import Sample
from dopsd.errors import DataError, ModelError
from dopsd.models import ZImage
from dopsd.records import Context
from tests.helpers.tiny import (
    IMAGE_TOKEN_SIDE,
    ROPE_THETA,
    SPECIAL,
    VLM_ROPE_THETA,
    WIDTH,
    make_config,
    random_image,
)

PROMPTS = ["a red cat", "", "Katze [V] 猫, on a blue mat.\n\nassistant\n a red cat " * 2]
SIDE = IMAGE_TOKEN_SIDE
IMAGES = [
    random_image(SIDE, SIDE, 0),
    random_image(2 * SIDE, SIDE, 1),
    random_image(2 * SIDE, 2 * SIDE, 2),
]
SAMPLES = [Sample(prompt, prompt, image) for image, prompt in zip(IMAGES, PROMPTS)]
TOKENS = [1, 2, 4]
"""Language tokens of each of IMAGES."""


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> VlmEncoder:
    return VlmEncoder.from_config(make_config(tiny_base), "cpu")


def limited(encoder: VlmEncoder, text_tokens: int = 512, image_text_tokens: int = 1024) -> Any:
    """The same encoder under other limits."""
    return VlmEncoder(
        encoder.model,
        TextEncoder(encoder.text.model, encoder.text.tokenizer, encoder.text.format, text_tokens),
        encoder.vlm_tokenizer,
        encoder.image_processor,
        image_text_tokens,
    )


def rows(context: Context) -> list[Tensor]:
    embeds, lengths = context.tensors["embeds"], context.tensors["lengths"]
    assert embeds.shape == (len(lengths), int(lengths.max()), WIDTH)
    for row, length in zip(embeds, lengths):
        assert not row[length:].any()
    return [row[:length] for row, length in zip(embeds, lengths)]


def assert_rows(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_student_reads_one_user_turn(encoder: VlmEncoder, prompt: str) -> None:
    expected = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.text.template(prompt) == expected
    ids, mask = encoder.text.tokenize([expected])
    assert mask.all()
    assert encoder.text.tokenizer.decode(ids[0]) == expected
    count = (ids == encoder.text.tokenizer.convert_tokens_to_ids("<|im_start|>")).sum()
    assert count == 2


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_teacher_reads_one_user_turn_with_the_image_first(
    encoder: VlmEncoder, prompt: str
) -> None:
    expected = (
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>"
        f"{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    text = encoder.image_template(prompt, 4)
    assert text == expected
    ids, _ = tokenize(encoder.vlm_tokenizer, [text], 1024, encoder.text.format)
    assert encoder.vlm_tokenizer.decode(ids[0]) == expected
    assert (ids == encoder.image_token).sum() == 4


def test_views_show_what_is_encoded(encoder: VlmEncoder) -> None:
    contexts = encoder.encode(SAMPLES)
    for row, views in enumerate(encoder.views(SAMPLES)):
        student, teacher = views
        assert student.text == encoder.text.template(PROMPTS[row])
        assert teacher.text == encoder.image_template(PROMPTS[row], TOKENS[row])
        for view, context in zip(views, contexts):
            assert view.tokens == context.tensors["lengths"][row] <= view.limit
            assert not view.truncated


def test_views_tell_what_is_cut(encoder: VlmEncoder) -> None:
    whole = encoder.views([Sample("one", PROMPTS[2], IMAGES[0])])[0][0]
    short = limited(encoder, text_tokens=whole.tokens - 1)
    student, teacher = short.views([Sample("one", PROMPTS[2], IMAGES[0])])[0]
    assert (student.tokens, student.limit) == (whole.tokens, whole.tokens - 1)
    assert student.truncated and not teacher.truncated
    assert int(short.text.encode(PROMPTS[2:]).tensors["lengths"][0]) == student.limit


def test_the_callers_prompts_stay_as_they_are(encoder: VlmEncoder) -> None:
    prompts = list(PROMPTS)
    encoder.text.encode(prompts)
    encoder.encode_image_text(IMAGES, prompts)
    assert prompts == PROMPTS


def test_student_features_are_the_stock_pipelines(encoder: VlmEncoder, tiny_base: Path) -> None:
    pipeline = ZImage(str(tiny_base)).load_pipeline(torch.float32, "cpu")
    with torch.no_grad():
        expected = pipeline._encode_prompt(list(PROMPTS), device=torch.device("cpu"))
    ours = rows(encoder.text.encode(PROMPTS))
    assert_rows(ours, expected)
    # Thinking disabled, or the VLM's own language weights, would be something else.
    assert ours[0].std() > 0.1
    own = Qwen3VLModel.from_pretrained(tiny_base / "vlm", dtype=torch.float32)
    ids, mask = encoder.text.tokenize([encoder.text.template(PROMPTS[0])])
    with torch.no_grad():
        other = own.language_model(ids, attention_mask=mask, output_hidden_states=True)
    assert (other.hidden_states[-2][0] - ours[0]).abs().mean() > 0.1


def test_teacher_features_are_the_stock_vlms(encoder: VlmEncoder, tiny_base: Path) -> None:
    config = Qwen3VLConfig.from_pretrained(tiny_base / "vlm")
    assert config.text_config.rope_parameters["rope_theta"] == VLM_ROPE_THETA
    config.text_config.rope_parameters["rope_theta"] = ROPE_THETA
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tiny_base / "vlm", config=config)
    stock = stock.eval()
    text = Qwen3Model.from_pretrained(tiny_base / "text_encoder")
    stock.model.language_model.load_state_dict(text.state_dict())
    tokenizer = encoder.vlm_tokenizer
    ours = rows(encoder.encode_image_text(IMAGES, PROMPTS))
    for row, image, prompt, tokens in zip(ours, IMAGES, PROMPTS, TOKENS):
        pixels = encoder.image_processor(images=Image.fromarray(image), return_tensors="pt")
        message = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": prompt}],
        }
        chat = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        ).replace("<|image_pad|>", "<|image_pad|>" * tokens)
        ids = tokenizer(chat, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = stock(
                input_ids=ids,
                mm_token_type_ids=(ids == stock.config.image_token_id).int(),
                output_hidden_states=True,
                **pixels,
            ).hidden_states[-2]
        assert_rows([row], [expected[0]])


def test_the_teacher_sees_image_and_prompt(encoder: VlmEncoder) -> None:
    def encode(seed: int, prompt: str) -> Tensor:
        return encoder.encode_image_text([random_image(SIDE, SIDE, seed)], [prompt]).tensors[
            "embeds"
        ][0, -1]

    reference = encode(0, "a red cat")
    assert (encode(9, "a red cat") - reference).abs().mean() > 0.01
    assert (encode(0, "a blue cat") - reference).abs().mean() > 0.01


def test_a_batch_is_its_samples(encoder: VlmEncoder) -> None:
    together = encoder.encode(SAMPLES)
    alone = [encoder.encode([each]) for each in SAMPLES]
    for role in (0, 1):
        batch = rows(together[role])
        assert len({len(row) for row in batch}) > 1
        assert_rows(batch, [rows(one[role])[0] for one in alone])


@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [
        (SIDE, SIDE, 1),
        (8, 8, 1),
        (2 * SIDE, 2 * SIDE, 4),
        (16 * SIDE, 16 * SIDE, 4),
        (4 * SIDE, SIDE, 4),
    ],
)
def test_images_are_shown_within_the_configured_pixels(
    encoder: VlmEncoder, height: int, width: int, tokens: int
) -> None:
    image = random_image(height, width, 0)
    base = len(rows(encoder.encode_image_text([random_image(SIDE, SIDE, 0)], ["a"]))[0])
    assert len(rows(encoder.encode_image_text([image], ["a"]))[0]) == base + tokens - 1


def test_a_long_prompt_is_cut_at_the_limit_as_in_the_stock_pipeline(
    encoder: VlmEncoder, tiny_base: Path
) -> None:
    long = "a red cat on a blue mat " * 20
    short = limited(encoder, text_tokens=16, image_text_tokens=24)
    pipeline = ZImage(str(tiny_base)).load_pipeline(torch.float32, "cpu")
    with torch.no_grad():
        expected = pipeline._encode_prompt(
            [long, "a"], device=torch.device("cpu"), max_sequence_length=16
        )
    assert [len(row) for row in expected] == [16, 9]
    assert_rows(rows(short.text.encode([long, "a"])), expected)
    cut = rows(short.encode_image_text(IMAGES[:1], [long]))[0]
    whole = rows(encoder.encode_image_text(IMAGES[:1], [long]))[0]
    assert_rows([cut], [whole[:24]])


def test_an_image_that_does_not_fit_is_refused(encoder: VlmEncoder) -> None:
    # Start, "user", newline and the start of the image come first.
    head = len(encoder.vlm_tokenizer("<|im_start|>user\n<|vision_start|>").input_ids)
    limited(encoder, image_text_tokens=head + 4).encode_image_text(IMAGES, PROMPTS)
    with pytest.raises(ModelError, match=r"context.image_text_tokens: \d+, but an image.* 4 tok"):
        limited(encoder, image_text_tokens=head + 3).encode_image_text(IMAGES, PROMPTS)


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_caption_is_refused_in_one_line(
    encoder: VlmEncoder, token: str
) -> None:
    """It would end its turn, or pass for a piece of the image."""
    prompt = f"a cat{token}\n<- here " + "and so on " * 50
    for encode in (
        lambda: encoder.text.encode(["a", prompt]),
        lambda: encoder.encode_image_text(IMAGES[:2], ["a", prompt]),
    ):
        with pytest.raises(DataError) as error:
            encode()
        line = str(error.value)
        assert token in line.split("holds", 1)[1]
        assert "a cat" in line
        assert "\n" not in line
        assert len(line) < 250


def test_what_looks_like_a_special_token_is_text(encoder: VlmEncoder) -> None:
    prompt = "<|im_ end|> [V] <image> <|cat|> < | im_end | >"
    ids, _ = encoder.text.tokenize([encoder.text.template(prompt)])
    assert (ids == encoder.text.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1
    assert prompt in encoder.text.tokenizer.decode(ids[0])


def test_contexts_are_frozen_and_on_the_cpu(encoder: VlmEncoder) -> None:
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    for context in encoder.encode(SAMPLES):
        assert not context.tensors["embeds"].requires_grad
        assert context.tensors["lengths"].dtype == torch.int64


def test_bf16_features_are_near_the_fp32_ones(encoder: VlmEncoder, tiny_base: Path) -> None:
    half = VlmEncoder.from_config(make_config(tiny_base, model={"dtype": "bfloat16"}), "cpu")
    for ours, full in zip(half.encode(SAMPLES), encoder.encode(SAMPLES)):
        assert ours.tensors["embeds"].dtype == torch.bfloat16
        assert torch.equal(ours.tensors["lengths"], full.tensors["lengths"])
        a, b = ours.tensors["embeds"].float(), full.tensors["embeds"]
        assert torch.isfinite(a).all()
        assert (a - b).norm() / b.norm() < 0.05


def _language_copies() -> int:
    """Token embeddings alive: each copy of the language weights has one."""
    gc.collect()
    shape = None
    found = set()
    for thing in gc.get_objects():
        if isinstance(thing, torch.nn.Embedding) and thing.weight.shape[1] == WIDTH:
            shape = shape or thing.weight.shape
            found.add(thing.weight.data_ptr())
    return len(found)


def test_the_language_weights_are_held_once(tiny_base: Path) -> None:
    copies = _language_copies()
    encoders = sum(isinstance(thing, Qwen3Model) for thing in gc.get_objects())
    encoder = VlmEncoder.from_config(make_config(tiny_base), "cpu")
    assert _language_copies() == copies + 1
    # The pipeline's text encoder is not built at all.
    assert sum(isinstance(thing, Qwen3Model) for thing in gc.get_objects()) == encoders
    assert not any(name.startswith("lm_head") for name, _ in encoder.model.named_parameters())


def test_the_factory_is_picklable_and_builds_the_same_encoder(
    encoder: VlmEncoder, tiny_base: Path
) -> None:
    factory = pickle.loads(pickle.dumps(EncoderFactory(make_config(tiny_base), "cpu")))
    for ours, theirs in zip(factory().encode(SAMPLES), encoder.encode(SAMPLES)):
        assert np.array_equal(ours.tensors["embeds"].numpy(), theirs.tensors["embeds"].numpy())
