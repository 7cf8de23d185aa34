"""Qwen-Image 2.1's conventions against what the stock pipeline computes, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dopsd.contexts import EncoderFactory
from dopsd.contexts.text import TextEncoder
from dopsd.data.sample import Sample
from dopsd.driver.setup.checks import _check_rows
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.generate import load_lora, sample
from dopsd.export import lora_file
from dopsd.method.rollout import rollout
from dopsd.models import QwenImage
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.models.lora.merge import merge
from dopsd.models.patches import pack, unpack
from dopsd.records import Context
from tests.helpers.tiny import IMAGE_TOKEN_SIDE, random_image, random_state
from tests.helpers.tiny_qwen_image import (
    BLOCKS,
    HEIGHT,
    IMAGE_WIDTH,
    LATENT,
    make_qwen_config,
    save_qwen_image,
)

PROMPTS = ["a red cat", "a blue mat on a red cat, and so on and so on and so on"]
SIDE = IMAGE_TOKEN_SIDE


@pytest.fixture(scope="module")
def family(tiny_qwen_image: Path) -> QwenImage:
    return QwenImage(str(tiny_qwen_image))


@pytest.fixture(scope="module")
def pipeline(family: QwenImage) -> Any:
    return family.load_pipeline(torch.float32, "cpu")


@pytest.fixture(scope="module")
def text(tiny_qwen_image: Path) -> TextEncoder:
    return TextEncoder.from_config(make_qwen_config(tiny_qwen_image), "cpu")


@pytest.fixture(scope="module")
def context(text: TextEncoder) -> Context:
    return text.encode(PROMPTS)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *LATENT, generator=torch.Generator().manual_seed(5))


def states_of(
    family: QwenImage, transformer: Any, context: Context, noise: Tensor, steps: int
) -> Tensor:
    """All states of our own sampler."""

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return family.velocity(transformer, latents, sigma, context)

    return rollout(velocity, noise, family.sigmas(steps, HEIGHT, IMAGE_WIDTH))


def stock(pipeline: Any, noise: Tensor, steps: int, prompt: str, **options: Any) -> list[Tensor]:
    """The stock pipeline called with a prompt, as a user would: latents after each step."""
    visited = []

    def record(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        visited.append(unpack(tensors["latents"].clone(), *LATENT[1:]))
        return {}

    pipeline(
        prompt=[prompt],
        height=HEIGHT,
        width=IMAGE_WIDTH,
        num_inference_steps=steps,
        latents=pack(noise),
        callback_on_step_end=record,
        output_type="latent",
        **options,
    )
    return visited


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("steps", [2, 4])
def test_the_rollout_is_the_stock_pipeline_step_by_step(
    family: QwenImage, pipeline: Any, context: Context, noise: Tensor, steps: int, cached: bool
) -> None:
    transformer = family.load_transformer(torch.float32, "cpu")
    states = states_of(family, transformer, context, noise, steps)
    for row, prompt in enumerate(PROMPTS):
        visited = stock(pipeline, noise[[row]], steps, prompt, use_kv_cache=cached)
        for ours, theirs in zip(states[1:], visited, strict=True):
            torch.testing.assert_close(ours[[row]], theirs, atol=1e-4, rtol=1e-4)
        assert torch.equal(family.sigmas(steps, HEIGHT, IMAGE_WIDTH), pipeline.scheduler.sigmas)
    # It went somewhere, and the prompt has a say in where.
    assert (states[-1] - noise).abs().mean() > 0.1
    turned = states_of(family, transformer, context.rows([1, 0]), noise, steps)
    assert (states[-1] - turned[-1]).abs().mean() > 0.01


def test_the_pipelines_own_sigmas_are_taken_at_their_number_of_steps(
    family: QwenImage, tmp_path: Path, noise: Tensor
) -> None:
    own = QwenImage(str(save_qwen_image(tmp_path, sample_sigmas=[1.0, 0.6, 0.3])))
    pipeline = own.load_pipeline(torch.float32, "cpu")
    stock(pipeline, noise[:1], 3, PROMPTS[0])
    assert torch.equal(own.sigmas(3, HEIGHT, IMAGE_WIDTH), pipeline.scheduler.sigmas)
    size = HEIGHT, IMAGE_WIDTH
    assert not torch.allclose(own.sigmas(3, *size), family.sigmas(3, *size))
    # At another number of steps the stock sampler is told which.
    assert torch.equal(own.sigmas(2, *size), family.sigmas(2, *size))
    assert own.stock_options(2, {})["sigmas"] == [1.0, 0.5]
    for steps in (2, 3):
        nodes = np.linspace(0, 1000, steps + 1).round().astype(int)
        levels = own.noise_levels(steps, *size)
        torch.testing.assert_close(levels[nodes], own.sigmas(steps, *size), atol=1e-3, rtol=0)


def test_texts_are_templated_once_and_read_as_in_the_stock_pipeline(
    text: TextEncoder, pipeline: Any
) -> None:
    assert text.template(PROMPTS[0]) == pipeline.prompt_template_t2i.format(PROMPTS[0])
    prompts = [*PROMPTS, ""]
    with torch.no_grad():
        theirs, mask, _ = pipeline.encode_prompt(prompts)
    ours = text.encode(prompts).tensors
    assert ours["lengths"].tolist() == mask.sum(1).tolist()
    torch.testing.assert_close(ours["embeds"], theirs, atol=1e-4, rtol=1e-4)
    assert text.view(PROMPTS[0]).tokens == ours["lengths"][0]
    # It is what comes before the last norm, which another call finds in its place again.
    ids, keep = text.tokenize([text.template(PROMPTS[0])])
    with torch.no_grad():
        normed = text.model(input_ids=ids, attention_mask=keep).last_hidden_state
    assert (normed[:, text.dropped :] - ours["embeds"][:1, : ours["lengths"][0]]).abs().max() > 0.1


def test_a_cut_text_keeps_its_end(text: TextEncoder) -> None:
    short = TextEncoder(text.model, text.tokenizer, text.format, 12)
    (ids,), _ = short.tokenize([text.template(PROMPTS[1])])
    assert len(ids) == short.dropped + 12
    assert short.tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_text_encoder_itself_sees_the_target(tiny_qwen_image: Path, text: TextEncoder) -> None:
    encoder: Any = EncoderFactory(make_qwen_config(tiny_qwen_image), "cpu")()
    assert encoder.text.model is encoder.model.language_model
    images = [random_image(SIDE, SIDE, 0), random_image(2 * SIDE, SIDE, 1)]
    samples = [Sample(prompt, prompt, image) for prompt, image in zip(PROMPTS, images)]
    student, teacher = encoder.encode(samples)
    alone = text.encode(PROMPTS).tensors["embeds"]
    torch.testing.assert_close(student.tensors["embeds"], alone, atol=1e-5, rtol=1e-5)
    for row, (student_view, teacher_view) in enumerate(encoder.views(samples)):
        assert student_view.tokens == student.tensors["lengths"][row]
        assert teacher_view.tokens == teacher.tensors["lengths"][row]
        assert teacher_view.text.count("<|im_start|>user") == 1
        assert "<image1><|vision_start|><|image_pad|>" in teacher_view.text
    other = encoder.encode_image_text([random_image(SIDE, SIDE, 7), images[1]], PROMPTS)
    moved = (other.tensors["embeds"] - teacher.tensors["embeds"]).abs().amax((1, 2))
    assert moved[0] > 0.01 and moved[1] < 1e-4


def test_images_are_encoded_and_decoded_as_in_the_stock_pipeline(
    family: QwenImage, pipeline: Any
) -> None:
    vae, image = family.load_vae(torch.float32, "cpu"), random_image(HEIGHT, IMAGE_WIDTH, 0)
    latents = family.encode_images(vae, [image])
    assert latents.shape == (1, *family.latent_shape(HEIGHT, IMAGE_WIDTH)) == (1, *LATENT)
    opaque = Image.fromarray(image).convert("RGBA")
    pixels = pipeline.image_processor.preprocess(opaque).unsqueeze(2)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)[:, :, 0]
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        (decoded,) = family.decode(pipeline, latents)
    assert decoded.size == (IMAGE_WIDTH, HEIGHT) and decoded.mode == "RGB"


def test_transparency_is_drawn_over_white(family: QwenImage) -> None:
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert family.finished(clear).getpixel((0, 0)) == (255, 255, 255)
    assert family.finished(clear).mode == "RGB"


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_pictures_of_contexts_and_of_prompts_are_the_same(
    family: QwenImage, pipeline: Any, context: Context, noise: Tensor
) -> None:
    blind = family.load_pipeline(torch.float32, "cpu", text_encoder=False)
    size = HEIGHT, IMAGE_WIDTH
    with torch.no_grad():
        ours = family.generate(blind, context, noise, 4, *size)
        states = states_of(family, pipeline.transformer, context, noise, 4)
        decoded = family.decode(pipeline, states[-1])
        theirs = [
            sample(
                family, pipeline, [prompt], 4, *size, latents=noise[[row]], max_sequence_length=512
            )[0]
            for row, prompt in enumerate(PROMPTS)
        ]
    for one, other, own in zip(ours, theirs, decoded, strict=True):
        assert difference(one, other) <= 1 and difference(one, own) <= 1
    assert difference(ours[0], ours[1]) > 2


def test_rows_of_unequal_length_take_a_forward_each(
    family: QwenImage, context: Context, noise: Tensor
) -> None:
    transformer: Any = family.load_transformer(torch.float32, "cpu")
    sigma, calls = torch.tensor([0.9, 0.3]), []
    with torch.no_grad():
        alone = [
            family.velocity(transformer, noise[[row]], sigma[[row]], context.rows([row]))
            for row in range(2)
        ]
        transformer.register_forward_hook(lambda *_: calls.append(1))
        together = family.velocity(transformer, noise, sigma, context)
        assert len(calls) == 2
        equal = family.velocity(transformer, noise, sigma, context.rows([0, 0]))
    assert len(calls) == 3
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(equal[:1], alone[0], atol=1e-5, rtol=1e-5)


def test_every_target_matches_and_the_stock_pipeline_loads_the_export(
    family: QwenImage, context: Context, noise: Tensor, tmp_path: Path
) -> None:
    transformer: Any = family.load_transformer(torch.float32, "cpu")
    matched = resolve_targets(transformer, "default", family.lora_targets)
    assert {len(names) for names in matched.values()} == {BLOCKS}
    linear = [n for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    inside = [n for n in linear if n.startswith("transformer_blocks.")]
    assert sorted(name for names in matched.values() for name in names) == sorted(inside)

    inject(transformer, matched, 4, 8, 0)
    parameters = adapter_parameters(transformer, STUDENT)
    state = random_state(dict(parameters), 3)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    pipeline = family.load_pipeline(torch.float32, "cpu")
    before = stock(pipeline, noise[:1], 2, PROMPTS[0])
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file(state, 4, 8, {}))
    load_lora(pipeline, str(path), path.read_bytes(), "lora")
    after = stock(pipeline, noise[:1], 2, PROMPTS[0])
    states = states_of(family, transformer, context.rows([0]), noise[:1], 2)
    torch.testing.assert_close(states[-1], after[-1], atol=1e-4, rtol=1e-4)
    assert (after[-1] - before[-1]).abs().mean() > 0.01
    # A few-step LoRA under the run is the same LoRA.
    base: Any = family.load_transformer(torch.float32, "cpu")
    merge(base, family, [str(path)])
    states = states_of(family, base, context.rows([0]), noise[:1], 2)
    torch.testing.assert_close(states[-1], after[-1], atol=1e-4, rtol=1e-4)


def test_what_makes_no_sense_is_refused(tiny_qwen_image: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vlm: given with model\.family: qwen_image"):
        make_qwen_config(tiny_qwen_image, model={"vlm": "Qwen/Qwen3-VL-8B-Instruct"})
    for name in ("edit", "edit_reference"):
        line = rf"context\.name: {name} with model\.family: qwen_image, allowed: vlm or enhanced"
        with pytest.raises(ValueError, match=line):
            make_qwen_config(tiny_qwen_image, context={"name": name})
    with pytest.raises(ModelError, match=r"48x32 pixels.*multiples of 32"):
        QwenImage(str(tiny_qwen_image)).latent_shape(32, 48)
    sharded = make_qwen_config(tiny_qwen_image, learner={"micro_batch": 2, "global_batch": 2})
    with pytest.raises(ConfigError, match=r"learner\.micro_batch: 2 with model\.family: qwen_im"):
        _check_rows(sharded, {"zero_optimization": {"stage": 3}})
