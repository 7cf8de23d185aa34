"""Z-Image's conventions against what the stock pipeline computes, step by step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dopsd.contexts.vlm import VlmEncoder
from dopsd.errors import ModelError
from dopsd.method.rollout import rollout
from dopsd.models import FAMILIES, ZImage, resolve_base, resolve_vlm
from dopsd.models.families.z_image import features_list
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, LATENT, make_config, make_context

PROMPTS = ["a red cat", "a blue mat on a red cat, and so on and so on and so on"]


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> ZImage:
    return ZImage(str(tiny_base))


@pytest.fixture(scope="module")
def pipeline(family: ZImage) -> Any:
    return family.load_pipeline(torch.float32, "cpu")


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *LATENT, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_rollout_is_the_stock_pipeline_step_by_step(
    family: ZImage, pipeline: Any, noise: Tensor, tiny_base: Path, steps: int
) -> None:
    visited = []

    def record(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        visited.append(tensors["latents"].clone())
        return {}

    finished = _sample(pipeline, noise, steps, callback_on_step_end=record)

    context = VlmEncoder.from_config(make_config(tiny_base), "cpu").text.encode(PROMPTS)
    transformer = family.load_transformer(torch.float32, "cpu")
    sigmas = family.sigmas(steps, HEIGHT, IMAGE_WIDTH)
    velocity = partial(_velocity, family, transformer, context)
    states = rollout(velocity, noise, sigmas)
    assert len(states) == steps + 1 == len(visited) + 1
    for ours, theirs in zip(states[1:], visited):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[-1], finished, atol=1e-5, rtol=1e-5)
    # It went somewhere: not a comparison of the noise with itself.
    assert (finished - noise).abs().mean() > 0.1


def _sample(pipeline: Any, noise: Tensor, steps: int, **options: Any) -> Tensor:
    """Latents of the stock pipeline, called with prompts as a user would."""
    latents: Tensor = pipeline(
        list(PROMPTS),
        height=HEIGHT,
        width=IMAGE_WIDTH,
        num_inference_steps=steps,
        guidance_scale=0.0,
        latents=noise.clone(),
        output_type="latent",
        **options,
    ).images
    return latents


def _velocity(family: ZImage, transformer: Any, context: Any, x: Tensor, sigma: Tensor) -> Tensor:
    return family.velocity(transformer, x, sigma, context)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_sigmas_are_what_the_stock_pipeline_visits(
    family: ZImage, pipeline: Any, noise: Tensor, steps: int
) -> None:
    _sample(pipeline, noise, steps)
    sigmas = family.sigmas(steps, HEIGHT, IMAGE_WIDTH)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, pipeline.scheduler.sigmas)
    torch.testing.assert_close(sigmas[:-1] * 1000, pipeline.scheduler.timesteps, atol=1e-3, rtol=0)


def test_sigmas_are_the_published_ones(family: ZImage) -> None:
    four = family.sigmas(4, HEIGHT, IMAGE_WIDTH)
    torch.testing.assert_close(four, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]), atol=1e-6, rtol=0)
    eight = family.sigmas(8, HEIGHT, IMAGE_WIDTH)
    published = [1000.0, 954.5, 900.0, 833.3, 750.0, 642.9, 500.0, 300.0, 0.0]
    assert (eight * 1000).tolist() == pytest.approx(published, abs=0.06)
    # The training grid is every second node of the inference grid.
    torch.testing.assert_close(eight[::2], four, atol=1e-6, rtol=0)


def test_draw_is_the_stock_pipeline_from_the_same_noise(
    family: ZImage, pipeline: Any, noise: Tensor
) -> None:
    context = make_context((5, 40), 0)
    ours = family.generate(pipeline, context, noise, 4, HEIGHT, IMAGE_WIDTH)
    theirs = pipeline(
        prompt_embeds=features_list(context),
        latents=noise.clone(),
        height=HEIGHT,
        width=IMAGE_WIDTH,
        num_inference_steps=4,
        guidance_scale=0.0,
    ).images
    assert [image.size for image in ours] == [(IMAGE_WIDTH, HEIGHT)] * 2
    for a, b in zip(ours, theirs):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert not np.array_equal(np.asarray(ours[0]), np.asarray(ours[1]))


def test_bf16_takes_fp32_latents_and_gives_fp32_near_the_fp32_velocity(family: ZImage) -> None:
    latents, sigma = torch.randn(2, *LATENT), torch.tensor([1.0, 0.5])
    context = make_context((5, 40), 0)
    with torch.no_grad():
        full = family.velocity(
            family.load_transformer(torch.float32, "cpu"), latents, sigma, context
        )
        transformer = family.load_transformer(torch.bfloat16, "cpu")
        half = family.velocity(transformer, latents, sigma, context.to("cpu", torch.bfloat16))
    assert next(transformer.parameters()).dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert half.shape == latents.shape
    assert torch.isfinite(half).all()
    error = (half - full).norm() / full.norm()
    assert 1e-5 < error < 0.05


def test_padding_of_a_context_has_no_influence(family: ZImage) -> None:
    transformer = family.load_transformer(torch.float32, "cpu")
    latents, sigma = torch.randn(2, *LATENT), torch.tensor([0.9, 0.9])
    context = make_context((5, 40), 0)
    garbage = make_context((5, 40), 0)
    garbage.tensors["embeds"][0, 5:] = 1e4
    with torch.no_grad():
        clean, dirty = (family.velocity(transformer, latents, sigma, c) for c in (context, garbage))
        alone = family.velocity(transformer, latents[:1], sigma[:1], make_context((5,), 0))
    assert torch.equal(clean, dirty)
    torch.testing.assert_close(alone, clean[:1], atol=1e-5, rtol=1e-5)


def test_the_transformer_is_loaded_frozen(family: ZImage) -> None:
    transformer = family.load_transformer(torch.float32, "cpu", attention="native")
    assert not transformer.training
    assert not any(p.requires_grad for p in transformer.parameters())


def test_latent_shape(family: ZImage) -> None:
    assert family.latent_shape(HEIGHT, IMAGE_WIDTH) == LATENT
    assert family.latent_shape(64, 32) == (4, 32, 16)
    for height, width in ((30, 32), (32, 34)):
        with pytest.raises(ModelError, match=f"{width}x{height} pixels.*multiples of 4"):
            family.latent_shape(height, width)


def test_the_limits_are_those_of_the_transformer(family: ZImage) -> None:
    """What is allowed has positions, and what lies beyond has none."""
    transformer = family.load_transformer(torch.float32, "cpu")

    def draw(tokens: int, side: int) -> Tensor:
        shape = 4, side // family.latent_pixels, 2
        return family.velocity(
            transformer, torch.zeros(1, *shape), torch.ones(1), make_context((tokens,), 0)
        )

    text, side = family.max_text_tokens, family.max_side
    assert (text, side) == (480, 256) and family.kept_tokens(1024) == text
    assert draw(text, side).isfinite().all()
    for tokens, pixels in ((text + 1, side), (text, side + 4)):
        with pytest.raises(IndexError):
            draw(tokens, pixels)
    assert family.latent_shape(side, 32)
    with pytest.raises(ModelError, match="image of 32x260 pixels: this base has positions for 256"):
        family.latent_shape(side + 4, 32)


def test_a_family_is_cheap_to_construct(tiny_base: Path, tmp_path: Path) -> None:
    """Sigmas and shapes need configs only: a driver without the weights can plan."""
    for part in ("transformer", "vae", "scheduler"):
        (tmp_path / part).mkdir()
        for config in (tiny_base / part).glob("*.json"):
            (tmp_path / part / config.name).write_bytes(config.read_bytes())
    (tmp_path / "model_index.json").write_bytes((tiny_base / "model_index.json").read_bytes())
    family = FAMILIES["z_image"](str(tmp_path))
    assert family.latent_shape(HEIGHT, IMAGE_WIDTH) == LATENT
    assert len(family.sigmas(4, HEIGHT, IMAGE_WIDTH)) == 5


def test_bases_and_vlms_are_found_or_refused(tiny_base: Path, tmp_path: Path) -> None:
    assert resolve_base("owner/name") == "owner/name"
    assert resolve_vlm(str(tiny_base), None) == str(tiny_base / "vlm")
    assert resolve_vlm("owner/name", str(tiny_base)) == str(tiny_base)
    for wrong in ("nowhere", "./owner/name", f"{tmp_path}/missing", "a/b/c"):
        with pytest.raises(ModelError, match=f"model.base: '{wrong}'"):
            resolve_base(wrong)
        with pytest.raises(ModelError, match=f"^model.vlm: '{wrong}'"):
            resolve_vlm(str(tiny_base), wrong)
    with pytest.raises(ModelError, match=r"model\.vlm: missing"):
        resolve_vlm(str(tmp_path), None)
