"""FLUX.2-klein's conventions against what the stock pipeline computes, step by step."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dopsd.contexts.text import TextEncoder
from dopsd.errors import ModelError
from dopsd.method.rollout import rollout
from dopsd.models import Flux2Klein, ZImage, resolve_vlm
from dopsd.models.families.flux2_klein import pack, patchify, position_ids, unpack, unpatchify
from dopsd.models.lora.layers import resolve_targets
from dopsd.records import Context
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, random_image
from tests.helpers.tiny_flux2 import BLOCKS, LATENT, make_flux2_config, make_flux2_context

PROMPTS = ["a red cat", "a blue mat on a red cat, and so on and so on and so on"]
REFERENCES = [random_image(64, 96, 0), random_image(80, 64, 1)]
"""uint8, of two sizes; the stock pipeline refuses sides below 64 pixels."""


@pytest.fixture(scope="module")
def family(tiny_flux2: Path) -> Flux2Klein:
    return Flux2Klein(str(tiny_flux2))


@pytest.fixture(scope="module")
def pipeline(family: Flux2Klein) -> Any:
    return family.load_pipeline(torch.float32, "cpu")


@pytest.fixture(scope="module")
def context(tiny_flux2: Path) -> Context:
    return TextEncoder.from_config(make_flux2_config(tiny_flux2), "cpu").encode(PROMPTS)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *LATENT, generator=torch.Generator().manual_seed(5))


def with_references(
    family: Flux2Klein, vae: Any, context: Context, samples: list[list[np.ndarray]]
) -> Context:
    latents = [[family.encode_images(vae, [image])[0] for image in images] for images in samples]
    return Context({**context.tensors, **family.reference_tokens(latents)})


def sample(
    family: Flux2Klein, transformer: Any, context: Context, noise: Tensor, steps: int
) -> Tensor:
    """All states of our own sampler."""

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return family.velocity(transformer, latents, sigma, context)

    return rollout(velocity, noise, family.sigmas(steps, HEIGHT, IMAGE_WIDTH))


def stock(
    pipeline: Any, noise: Tensor, steps: int, pictures: bool = False, **options: Any
) -> tuple[list[Tensor], Any]:
    """The stock pipeline called with prompts, as a user would: latents after each step, result."""
    visited = []

    def record(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        visited.append(unpack(tensors["latents"].clone(), *LATENT[1:]))
        return {}

    result = pipeline(
        prompt=list(PROMPTS),
        height=HEIGHT,
        width=IMAGE_WIDTH,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=noise.clone(),
        callback_on_step_end=record,
        output_type="pil" if pictures else "latent",
        **options,
    ).images
    return visited, result


def denormalised(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's own latents, by the formula: each channel of a patch times std plus mean."""
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return unpatchify(latents * std[None, :, None, None] + vae.bn.running_mean[None, :, None, None])


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_rollout_is_the_stock_pipeline_step_by_step(
    family: Flux2Klein, pipeline: Any, context: Context, noise: Tensor, steps: int
) -> None:
    visited, finished = stock(pipeline, noise, steps)
    transformer = family.load_transformer(torch.float32, "cpu")
    states = sample(family, transformer, context, noise, steps)
    assert len(states) == steps + 1 == len(visited) + 1
    for ours, theirs in zip(states[1:], visited):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours = denormalised(pipeline.vae, states[-1])
    torch.testing.assert_close(ours, finished, atol=1e-5, rtol=1e-5)
    # It went somewhere: not a comparison of the noise with itself.
    assert (states[-1] - noise).abs().mean() > 0.1


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_sigmas_are_what_the_stock_pipeline_visits(
    family: Flux2Klein, pipeline: Any, noise: Tensor, steps: int
) -> None:
    stock(pipeline, noise, steps)
    sigmas = family.sigmas(steps, HEIGHT, IMAGE_WIDTH)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, pipeline.scheduler.sigmas)
    torch.testing.assert_close(sigmas[:-1] * 1000, pipeline.scheduler.timesteps, atol=1e-3, rtol=0)


def test_mu_follows_image_tokens_and_steps(family: Flux2Klein) -> None:
    """By the pipeline's formula written out: 64 tokens at 4 steps."""
    tokens, steps = 64, 4
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    slope = (at_200 - at_10) / 190
    shift = np.exp(slope * steps + at_200 - 200 * slope)
    unshifted = np.array([1, 0.75, 0.5, 0.25])
    expected = shift / (shift + 1 / unshifted - 1)
    found = family.sigmas(steps, 32, 32)
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-6)
    assert not torch.allclose(found, family.sigmas(steps, 128, 128))


@pytest.mark.parametrize("steps", [4, 8])
def test_noise_levels_lie_on_the_few_step_samplers_curve(family: Flux2Klein, steps: int) -> None:
    levels = family.noise_levels(steps, HEIGHT, IMAGE_WIDTH)
    nodes = levels[:: (len(levels) - 1) // steps]
    torch.testing.assert_close(nodes, family.sigmas(steps, HEIGHT, IMAGE_WIDTH), atol=1e-6, rtol=0)
    assert 0.5 < levels.median() < 0.95


def test_packing_and_positions_are_the_stock_pipelines_own(pipeline: Any) -> None:
    raw = torch.randn(2, 4, 6, 10)
    latents = pipeline._patchify_latents(raw)
    assert torch.equal(patchify(raw), latents)
    assert torch.equal(unpatchify(latents), pipeline._unpatchify_latents(latents))
    tokens = pipeline._pack_latents(latents)
    assert torch.equal(pack(latents), tokens)
    ids = pipeline._prepare_latent_ids(latents)
    assert torch.equal(position_ids(3, 5), ids[0])
    assert torch.equal(unpack(tokens, 3, 5), pipeline._unpack_latents_with_ids(tokens, ids, 3, 5))
    text = torch.zeros(1, 7, 3)
    assert torch.equal(position_ids(1, 1, length=7), pipeline._prepare_text_ids(text)[0])


def test_images_are_encoded_and_decoded_as_in_the_stock_pipeline(
    family: Flux2Klein, pipeline: Any
) -> None:
    vae = family.load_vae(torch.float32, "cpu")
    for image in REFERENCES:
        pixels = pipeline.image_processor.preprocess(Image.fromarray(image))
        with torch.no_grad():
            expected = pipeline._encode_vae_image(pixels, None)
            mode = pipeline.vae.encode(pixels).latent_dist.mode()
        ours = family.encode_images(vae, [image])
        assert ours.shape == (1, *family.latent_shape(*image.shape[:2]))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        # The statistics are not those of a fresh batch norm.
        assert (ours - patchify(mode)).abs().mean() > 0.1
        torch.testing.assert_close(denormalised(vae, ours), mode, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            (decoded,) = family.decode(pipeline, ours)
            again = pipeline.vae.decode(mode).sample
        expected = pipeline.image_processor.postprocess(again, output_type="pil")[0]
        difference = np.asarray(decoded, np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("count", [1, 2])
def test_references_are_the_stock_pipelines(
    family: Flux2Klein, pipeline: Any, context: Context, noise: Tensor, count: int
) -> None:
    pictures = [Image.fromarray(image) for image in REFERENCES[:count]]
    seen = with_references(family, pipeline.vae, context, [REFERENCES[:count]] * 2)
    pixels = [pipeline.image_processor.preprocess(picture) for picture in pictures]
    with torch.no_grad():
        tokens, ids = pipeline.prepare_image_latents(pixels, 2, None, "cpu", torch.float32)
    torch.testing.assert_close(seen.tensors["reference"], tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen.tensors["reference_ids"], ids)
    assert seen.tensors["reference_lengths"].tolist() == [tokens.shape[1]] * 2

    visited, _ = stock(pipeline, noise, 4, image=pictures)
    states = sample(family, pipeline.transformer, seen, noise, 4)
    for ours, theirs in zip(states[1:], visited, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    blind = sample(family, pipeline.transformer, context, noise, 4)
    assert (states[-1] - blind[-1]).abs().mean() > 0.01


def test_rows_with_references_of_other_sizes_are_rows_of_their_own(
    family: Flux2Klein, pipeline: Any
) -> None:
    text = make_flux2_context(3, 0)
    samples = [[REFERENCES[0]], REFERENCES, [REFERENCES[0]]]
    together = with_references(family, pipeline.vae, text, samples)
    latents = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.9, 0.6, 0.3])
    velocity = partial(family.velocity, pipeline.transformer)
    with torch.no_grad():
        ours = velocity(latents, sigma, together)
        for row, images in enumerate(samples):
            one = Context({"embeds": text.tensors["embeds"][row : row + 1]})
            one = with_references(family, pipeline.vae, one, [images])
            alone = velocity(latents[row : row + 1], sigma[row : row + 1], one)
            torch.testing.assert_close(ours[row], alone[0], atol=1e-5, rtol=1e-5)
        # Repeated for the K states of a trajectory, in order.
        repeated = velocity(latents.repeat(2, 1, 1, 1), sigma.repeat(2), together.repeat(2))
    torch.testing.assert_close(repeated, torch.cat([ours, ours]), atol=1e-5, rtol=1e-5)
    # The padding of the shorter rows is not seen.
    together.tensors["reference"][0, int(together.tensors["reference_lengths"][0]) :] = 1e4
    with torch.no_grad():
        torch.testing.assert_close(velocity(latents, sigma, together), ours)


def test_a_family_without_an_editing_branch_refuses_references(tiny_base: Path) -> None:
    assert Flux2Klein.takes_references and not ZImage.takes_references
    with pytest.raises(ModelError, match=r"model\.family: z_image takes no reference images"):
        ZImage(str(tiny_base)).reference_tokens([[torch.zeros(4, 2, 2)]])


@pytest.mark.parametrize("count", [0, 2])
def test_draw_is_the_stock_pipeline_from_the_same_noise(
    family: Flux2Klein, pipeline: Any, context: Context, noise: Tensor, count: int
) -> None:
    options: dict[str, Any] = {}
    seen = context
    if count:
        options["image"] = [Image.fromarray(image) for image in REFERENCES]
        seen = with_references(family, pipeline.vae, context, [REFERENCES] * 2)
    with torch.no_grad():
        ours = family.generate(pipeline, seen, noise, 4, HEIGHT, IMAGE_WIDTH)
    _, theirs = stock(pipeline, noise, 4, pictures=True, **options)
    assert [image.size for image in ours] == [(IMAGE_WIDTH, HEIGHT)] * 2
    for a, b in zip(ours, theirs):
        assert np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1
    assert not np.array_equal(np.asarray(ours[0]), np.asarray(ours[1]))


def test_bf16_sees_the_times_of_the_stock_pipeline(family: Flux2Klein) -> None:
    """Rounded as the pipeline rounds them: bf16 has few numbers near 1000."""
    pipeline = family.load_pipeline(torch.bfloat16, "cpu", text_encoder=False)
    context = make_flux2_context(2, 0).to("cpu", torch.bfloat16)
    latents = torch.randn(2, *LATENT)
    times: list[Tensor] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        times.append(kwargs["timestep"])

    hook = pipeline.transformer.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        family.generate(pipeline, context, latents, 8, HEIGHT, IMAGE_WIDTH)
        theirs, times[:] = list(times), []
        for sigma in family.sigmas(8, HEIGHT, IMAGE_WIDTH)[:-1]:
            half = family.velocity(pipeline.transformer, latents, sigma.expand(2), context)
    hook.remove()
    for ours, stock_time in zip(times, theirs, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, stock_time)
    assert half.dtype == torch.float32
    with torch.no_grad():
        full = family.velocity(
            family.load_transformer(torch.float32, "cpu"),
            latents,
            sigma.expand(2),
            context.to("cpu", torch.float32),
        )
    assert 1e-5 < (half - full).norm() / full.norm() < 0.05


def test_the_last_unit_of_a_size_is_a_patch_of_the_vaes_latents(family: Flux2Klein) -> None:
    assert family.latent_shape(HEIGHT, IMAGE_WIDTH) == LATENT
    with pytest.raises(ModelError, match=r"34x32 pixels.*multiples of 4"):
        family.latent_shape(32, 34)


LAYOUTS = {
    "4B": ((5, 20, 24, 2560), 3.876e9, "Qwen/Qwen3-VL-4B-Instruct"),
    "9B": ((8, 24, 32, 4096), 9.079e9, "Qwen/Qwen3-VL-8B-Instruct"),
}
"""Double blocks, single blocks, heads and the text encoder's width of the published models."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layouts_differ_by_their_configs(name: str, tmp_path: Path) -> None:
    (double, single, heads, width), parameters, vlm = LAYOUTS[name]
    transformer = {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": heads,
        "joint_attention_dim": 3 * width,
        "in_channels": 128,
        "guidance_embeds": False,
    }
    parts = {
        "transformer": transformer,
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "text_encoder": {"hidden_size": width, "num_hidden_layers": 36},
    }
    for part, values in parts.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(values))
    index = {"transformer": ["diffusers", Flux2Klein.transformer_class]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    family = Flux2Klein(str(tmp_path))
    skeleton = family.skeleton()
    assert sum(p.numel() for p in skeleton.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert family.latent_shape(1024, 768) == (128, 64, 48)
    matched = resolve_targets(skeleton, "default", family.lora_targets)
    assert {target: len(names) for target, names in matched.items()} == dict.fromkeys(
        family.lora_targets, double
    )
    assert all(n.startswith("transformer_blocks.") for names in matched.values() for n in names)
    assert resolve_vlm(str(tmp_path), None) == vlm


def test_targets_of_the_single_stream_blocks(family: Flux2Klein) -> None:
    skeleton = family.skeleton()
    single = ["attn.to_qkv_mlp_proj", "attn.to_out"]
    for target, names in resolve_targets(skeleton, single, ()).items():
        assert names == [f"single_transformer_blocks.{i}.{target}" for i in range(BLOCKS)]
    matched = resolve_targets(skeleton, "all-linear", family.lora_targets, family.lora_all_linear)
    adapted = [name for names in matched.values() for name in names]
    linear = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(adapted) == sorted(name for name in linear if "transformer_blocks." in name)
    # Names of other releases, which would train attention alone if they were let through.
    with pytest.raises(ModelError, match=r"lora.targets: ff\.net\.0\.proj, proj_mlp match no"):
        resolve_targets(skeleton, ["attn.to_q", "ff.net.0.proj", "proj_mlp"], ())


def test_a_text_of_any_length_is_read(tiny_flux2: Path) -> None:
    family = Flux2Klein(str(tiny_flux2))
    assert family.max_text_tokens is None and family.max_side is None
    assert family.kept_tokens(3000) == 3000
