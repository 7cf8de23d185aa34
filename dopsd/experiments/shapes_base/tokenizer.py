"""The tokenizer of the shapes world, with the chat template of the Qwen family.

Byte-level BPE trained on the world's captions: every word of the world is one token and any other
text falls back to bytes. ``[V]``, the rare token, is a token of its own.
"""

from __future__ import annotations

import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dopsd.shapes import world

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL = [PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO]
VOCABULARY = 480


# `{%-` eats the newline after a tag, so newlines are written as expressions. One <|image_pad|>
# stands for a picture; the VLM's processor repeats it once per language token.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif -%}{%- endif -%}"
)


def make_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same seed gives the same vocabulary."""
    rng = random.Random(seed)
    corpus = [world.caption(world.sample_scene(rng), world.random_keep(rng)) for _ in range(3000)]
    # The held-out names are ordinary words: a prompt may use them, the base just never saw them.
    corpus += [f"a {w}" for w in (world.HELD_OUT_SHAPE, world.HELD_OUT_PATTERN)] * 50
    corpus += ["user\n", "assistant\n", "system\n"] * 50
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(corpus, trainer)
    # lstrip: " [V]" is one token, as " ring" is.
    core.add_tokens([AddedToken(world.RARE_TOKEN, lstrip=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL[1:],
        padding_side="right",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
