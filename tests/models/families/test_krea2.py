"""Krea 2's conventions against what the stock pipeline computes, step by step."""

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
from dopsd.errors import ModelError
from dopsd.evaluation.generate import load_lora, sample
from dopsd.export import lora_file
from dopsd.method.rollout import rollout
from dopsd.models import Krea2
from dopsd.models.families.krea2 import position_ids
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.models.patches import pack, patchify, unpack
from dopsd.records import Context
from tests.helpers.tiny import (
    HEIGHT,
    IMAGE_TOKEN_SIDE,
    IMAGE_WIDTH,
    WIDTH,
    random_image,
    random_state,
)
from tests.helpers.tiny_krea2 import (
    BLOCKS,
    FUSION_BLOCKS,
    LATENT,
    TAPPED,
    make_krea2_config,
    save_krea2,
)

PROMPTS = ["a red cat", "a blue mat on a red cat, and so on and so on and so on"]
SIDE = IMAGE_TOKEN_SIDE


@pytest.fixture(scope="module")
def family(tiny_krea2: Path) -> Krea2:
    return Krea2(str(tiny_krea2))


def with_counts(pipeline: Any) -> Any:
    """The stock pipeline holds how many tokens its real tokenizer makes of prefix and suffix."""

    def count(text: str) -> int:
        return len(pipeline.tokenizer(text)["input_ids"])

    pipeline.prompt_template_encode_start_idx = count(pipeline.prompt_template_encode_prefix)
    suffix = count(pipeline.prompt_template_encode_suffix)
    pipeline.prompt_template_encode_num_suffix_tokens = suffix
    return pipeline


@pytest.fixture(scope="module")
def pipeline(family: Krea2) -> Any:
    return with_counts(family.load_pipeline(torch.float32, "cpu"))


@pytest.fixture(scope="module")
def text(tiny_krea2: Path) -> TextEncoder:
    return TextEncoder.from_config(make_krea2_config(tiny_krea2), "cpu")


@pytest.fixture(scope="module")
def context(text: TextEncoder) -> Context:
    return text.encode(PROMPTS)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *LATENT, generator=torch.Generator().manual_seed(5))


def states_of(
    family: Krea2, transformer: Any, context: Context, noise: Tensor, steps: int
) -> Tensor:
    """All states of our own sampler."""

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return family.velocity(transformer, latents, sigma, context)

    return rollout(velocity, noise, family.sigmas(steps, HEIGHT, IMAGE_WIDTH))


def stock(pipeline: Any, noise: Tensor, steps: int) -> list[Tensor]:
    """The stock pipeline called with prompts, as a user would: latents after each step."""
    visited = []

    def record(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        visited.append(unpack(tensors["latents"].clone(), *LATENT[1:]))
        return {}

    pipeline(
        prompt=list(PROMPTS),
        height=HEIGHT,
        width=IMAGE_WIDTH,
        num_inference_steps=steps,
        guidance_scale=0.0,
        latents=pack(noise),
        callback_on_step_end=record,
        output_type="latent",
    )
    return visited


@pytest.mark.parametrize("steps", [2, 8])
def test_the_rollout_is_the_stock_pipeline_step_by_step(
    family: Krea2, pipeline: Any, context: Context, noise: Tensor, steps: int
) -> None:
    visited = stock(pipeline, noise, steps)
    transformer = family.load_transformer(torch.float32, "cpu")
    states = states_of(family, transformer, context, noise, steps)
    for ours, theirs in zip(states[1:], visited, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert torch.equal(family.sigmas(steps, HEIGHT, IMAGE_WIDTH), pipeline.scheduler.sigmas)
    # It went somewhere, and the prompt has a say in where.
    assert (states[-1] - noise).abs().mean() > 0.1
    turned = states_of(family, transformer, context.rows([1, 0]), noise, steps)
    assert (states[-1] - turned[-1]).abs().mean() > 0.01


def test_the_shift_of_the_few_step_checkpoint_is_fixed(family: Krea2, tmp_path: Path) -> None:
    shift = np.exp(1.15)
    expected = [shift / (shift + 1 / sigma - 1) for sigma in (1, 0.75, 0.5, 0.25)]
    for size in (32, 1024):
        np.testing.assert_allclose(family.sigmas(4, size, size), [*expected, 0], atol=1e-6)
    whole = Krea2(str(save_krea2(tmp_path, is_distilled=False)))
    pipeline = with_counts(whole.load_pipeline(torch.float32, "cpu"))
    stock(pipeline, torch.randn(2, *LATENT), 4)
    assert torch.equal(whole.sigmas(4, HEIGHT, IMAGE_WIDTH), pipeline.scheduler.sigmas)
    assert not torch.allclose(whole.sigmas(4, 32, 32), whole.sigmas(4, 1024, 1024))


def test_noise_levels_lie_on_the_few_step_samplers_curve(family: Krea2) -> None:
    levels = family.noise_levels(8, HEIGHT, IMAGE_WIDTH)
    nodes = levels[:: (len(levels) - 1) // 8]
    torch.testing.assert_close(nodes, family.sigmas(8, HEIGHT, IMAGE_WIDTH), atol=1e-6, rtol=0)


def test_texts_are_templated_once_and_read_as_in_the_stock_pipeline(
    text: TextEncoder, pipeline: Any
) -> None:
    begin, end = pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix
    assert text.template(PROMPTS[0]) == f"{begin}{PROMPTS[0]}{end}"
    with torch.no_grad():
        theirs, mask = pipeline.encode_prompt(list(PROMPTS), max_sequence_length=64)
    ours = text.encode(PROMPTS).tensors
    assert ours["lengths"].tolist() == mask.sum(1).tolist()
    for row, length in enumerate(ours["lengths"]):
        expected = theirs[row][mask[row]].flatten(1)
        torch.testing.assert_close(ours["embeds"][row, :length], expected, atol=1e-5, rtol=1e-5)
        assert not ours["embeds"][row, length:].any()
    assert text.view(PROMPTS[0]).tokens == ours["lengths"][0]


def test_a_cut_text_keeps_its_end_as_in_the_stock_pipeline(
    text: TextEncoder, pipeline: Any
) -> None:
    short = TextEncoder(text.model, text.tokenizer, text.format, 12)
    with torch.no_grad():
        theirs, mask = pipeline.encode_prompt([PROMPTS[1]], max_sequence_length=12)
    assert mask.all()
    ours = short.encode([PROMPTS[1]]).tensors
    assert ours["lengths"].tolist() == [12]
    torch.testing.assert_close(ours["embeds"][0], theirs[0].flatten(1), atol=1e-5, rtol=1e-5)
    assert short.view(PROMPTS[1]).truncated


def test_the_text_encoder_itself_sees_the_target(tiny_krea2: Path, text: TextEncoder) -> None:
    encoder: Any = EncoderFactory(make_krea2_config(tiny_krea2), "cpu")()
    assert encoder.text.model is encoder.model.language_model
    images = [random_image(SIDE, SIDE, 0), random_image(2 * SIDE, SIDE, 1)]
    samples = [Sample(prompt, prompt, image) for prompt, image in zip(PROMPTS, images)]
    student, teacher = encoder.encode(samples)
    alone = text.encode(PROMPTS).tensors["embeds"]
    torch.testing.assert_close(student.tensors["embeds"], alone, atol=1e-5, rtol=1e-5)
    marks = 2  # what begins and ends an image
    seen = student.tensors["lengths"] + torch.tensor([1, 2]) + marks
    assert teacher.tensors["lengths"].tolist() == seen.tolist()
    for row, (student_view, teacher_view) in enumerate(encoder.views(samples)):
        assert student_view.tokens == student.tensors["lengths"][row]
        assert teacher_view.tokens == teacher.tensors["lengths"][row]
        assert teacher_view.text.count("<|im_start|>user") == 1
    other = encoder.encode_image_text([random_image(SIDE, SIDE, 7), images[1]], PROMPTS)
    moved = (other.tensors["embeds"] - teacher.tensors["embeds"]).abs().amax((1, 2))
    assert moved[0] > 0.01 and moved[1] < 1e-5


def test_images_are_encoded_and_decoded_as_the_stock_pipeline_decodes(
    family: Krea2, pipeline: Any
) -> None:
    vae, image = family.load_vae(torch.float32, "cpu"), random_image(HEIGHT, IMAGE_WIDTH, 0)
    latents = family.encode_images(vae, [image])
    assert latents.shape == (1, *family.latent_shape(HEIGHT, IMAGE_WIDTH)) == (1, *LATENT)
    pixels = pipeline.image_processor.preprocess(Image.fromarray(image)).unsqueeze(2)
    config = pipeline.vae.config
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()
        again = pipeline.vae.decode(raw).sample[:, :, 0]
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
    expected = patchify((raw[:, :, 0] - mean) / torch.tensor(config.latents_std).view(1, -1, 1, 1))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        (decoded,) = family.decode(pipeline, latents)
    (theirs,) = pipeline.image_processor.postprocess(again, output_type="pil")
    assert difference(decoded, theirs) <= 1


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_packing_and_positions_are_the_stock_pipelines_own(pipeline: Any) -> None:
    raw = torch.randn(2, 4, 6, 10)
    assert torch.equal(pack(patchify(raw)), pipeline._pack_latents(raw, 2, 4, 6, 10))
    assert torch.equal(position_ids(7, 3, 5), pipeline.prepare_position_ids(7, 3, 5, "cpu"))


def test_pictures_of_contexts_and_of_prompts_are_the_same(
    family: Krea2, pipeline: Any, context: Context, noise: Tensor
) -> None:
    with torch.no_grad():
        ours = family.generate(pipeline, context, noise, 4, HEIGHT, IMAGE_WIDTH)
        theirs = sample(family, pipeline, PROMPTS, 4, HEIGHT, IMAGE_WIDTH, latents=noise)
        states = states_of(family, pipeline.transformer, context, noise, 4)
        decoded = family.decode(pipeline, states[-1])
    for one, other, own in zip(ours, theirs, decoded, strict=True):
        assert difference(one, other) <= 1 and difference(one, own) <= 1
    assert difference(ours[0], ours[1]) > 2


@pytest.mark.parametrize("masks", [True, False])
def test_rows_share_a_forward_where_attention_takes_masks(
    family: Krea2, context: Context, noise: Tensor, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dopsd.models.families.krea2.takes_masks", lambda _: masks)
    transformer: Any = family.load_transformer(torch.float32, "cpu")
    sigma, calls = torch.tensor([0.9, 0.3]), []
    with torch.no_grad():
        alone = [
            family.velocity(transformer, noise[[row]], sigma[[row]], context.rows([row]))
            for row in range(2)
        ]
        transformer.register_forward_hook(lambda *_: calls.append(1))
        together = family.velocity(transformer, noise, sigma, context)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert len(calls) == (1 if masks else 2)


def test_every_target_matches_and_the_stock_pipeline_loads_the_export(
    family: Krea2, noise: Tensor, tmp_path: Path
) -> None:
    transformer: Any = family.load_transformer(torch.float32, "cpu")
    matched = resolve_targets(transformer, "default", family.lora_targets)
    assert {len(names) for names in matched.values()} == {BLOCKS + FUSION_BLOCKS}
    blocks = resolve_targets(transformer, "all-linear", (), family.lora_all_linear)
    linear = [n for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    inside = [n for n in linear if "blocks." in n]
    assert sorted(name for names in blocks.values() for name in names) == sorted(inside)

    inject(transformer, matched, 4, 8, 0)
    parameters = adapter_parameters(transformer, STUDENT)
    state = random_state(dict(parameters), 3)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    pipeline = with_counts(family.load_pipeline(torch.float32, "cpu"))
    before = stock(pipeline, noise, 2)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file(state, 4, 8, {}))
    load_lora(pipeline, str(path), path.read_bytes(), "lora")
    after = stock(pipeline, noise, 2)
    encoder = TextEncoder.from_config(make_krea2_config(family.base), "cpu")
    states = states_of(family, transformer, encoder.encode(PROMPTS), noise, 2)
    torch.testing.assert_close(states[-1], after[-1], atol=1e-4, rtol=1e-4)
    assert (after[-1] - before[-1]).abs().mean() > 0.01


def test_every_role_computes_in_one_dtype(family: Krea2) -> None:
    """The stock pipeline keeps norms in fp32; DeepSpeed would not, and the learner would differ
    from its teacher."""
    pipeline = family.load_pipeline(torch.bfloat16, "cpu", text_encoder=False)
    assert pipeline.transformer.final_layer.norm.weight.dtype == torch.float32
    transformer = family.load_transformer(torch.bfloat16, "cpu")
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.bfloat16}
    context = Context(
        {"embeds": torch.randn(1, 5, 2 * WIDTH).bfloat16(), "lengths": torch.tensor([5])}
    )
    latents, sigma = torch.randn(1, *LATENT), torch.tensor([0.5])
    with torch.no_grad():
        ours = family.velocity(transformer, latents, sigma, context)
        theirs = family.velocity(pipeline.transformer, latents, sigma, context)
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() / theirs.norm() < 0.05


def test_the_layers_are_those_of_the_pipeline(family: Krea2) -> None:
    assert family.text_format.layers == TAPPED != Krea2.text_format.layers


def test_what_makes_no_sense_is_refused(tiny_krea2: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vlm: given with model\.family: krea2, allowed"):
        make_krea2_config(tiny_krea2, model={"vlm": "Qwen/Qwen3-VL-4B-Instruct"})
    for name in ("edit", "edit_reference"):
        line = rf"context\.name: {name} with model\.family: krea2, allowed: vlm or enhanced_prompt"
        with pytest.raises(ValueError, match=line):
            make_krea2_config(tiny_krea2, context={"name": name})
    with pytest.raises(ModelError, match=r"34x32 pixels.*multiples of 4"):
        Krea2(str(tiny_krea2)).latent_shape(32, 34)
