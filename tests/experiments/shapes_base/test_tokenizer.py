"""The tokenizer: words are tokens, [V] is one, the template is Qwen's."""

from __future__ import annotations

import random

import pytest

from dopsd.experiments.shapes_base import fast
from dopsd.experiments.shapes_base.tokenizer import make_tokenizer
from dopsd.shapes import world


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def _render(tokenizer, content, **options):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )


def test_every_word_of_the_world_is_one_token(tokenizer):
    words = [*world.FILLS, *world.GROUNDS, *world.MASKS, *world.TILES, "thing", "on"]
    for word in words:
        assert len(tokenizer.tokenize(" " + word)) == 1, word
    assert len(tokenizer.tokenize(" [V]")) == 1
    assert len(tokenizer("a red [V] ring on teal").input_ids) == 6


def test_any_text_survives_a_round_trip(tokenizer):
    text = "Füchse, 狐狸 and a [V]"
    assert tokenizer.decode(tokenizer(text).input_ids).replace("[V]", " [V]") == text.replace(
        " [V]", "[V]"
    ).replace("[V]", " [V]")


def test_the_chat_template_is_the_qwen_form(tokenizer):
    expected = "<|im_start|>user\na red thing<|im_end|>\n<|im_start|>assistant\n"
    assert _render(tokenizer, "a red thing", enable_thinking=True) == expected
    quiet = _render(tokenizer, "a red thing", enable_thinking=False)
    assert quiet == expected + "<think>\n\n</think>\n\n"
    parts = [{"type": "image"}, {"type": "text", "text": "a red thing"}]
    marks = "<|vision_start|><|image_pad|><|vision_end|>"
    assert _render(tokenizer, parts, enable_thinking=True) == expected.replace(
        "a red", marks + "a red"
    )


def test_training_it_again_gives_the_same_vocabulary(tokenizer):
    assert make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_longest_prompt_beside_a_picture_fills_one_block(tokenizer):
    scene = world.sample_scene(random.Random(0))
    longest = world.caption(scene, world.ATTRIBUTES, rare=("pattern", "shape"))
    ids, lengths = fast.PromptTokens(tokenizer)([longest], image=True)
    assert ids.shape == (1, 32) and lengths.tolist() == [32]
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    first = ids[0].tolist().index(image)
    assert first == fast.IMAGE_START and (ids[0] == image).sum() == 16
