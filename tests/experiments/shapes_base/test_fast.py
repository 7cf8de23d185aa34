"""The base's training forwards equal the library's own, and our sampling the stock pipeline's."""

from __future__ import annotations

import random

import pytest
import torch

from dopsd.experiments.shapes_base import fast, nets
from dopsd.experiments.shapes_base.tokenizer import make_tokenizer
from dopsd.shapes import grid, world


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vlm = nets.make_vlm(tokenizer).eval()
    transformer = nets.make_transformer().eval()
    # A zero output layer would make any two forwards equal.
    torch.nn.init.normal_(transformer.all_final_layer["2-1"].linear.weight, std=0.1)
    return tokenizer, vlm, transformer


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(1)
    scenes = [world.sample_scene(rng) for _ in range(3)]
    keeps = [world.ATTRIBUTES, ("fill",), ("pattern", "shape")]
    return scenes, [world.caption(s, k) for s, k in zip(scenes, keeps, strict=True)]


@torch.no_grad()
def test_text_features_and_transformer_equal_the_library(parts, prompts):
    tokenizer, vlm, transformer = parts
    _, texts = prompts
    forwards, tokens = fast.Forwards(), fast.PromptTokens(tokenizer)
    pipeline = nets.make_pipeline(nets.make_vae(), vlm, transformer, tokenizer)
    stock = pipeline._encode_prompt(list(texts), device=torch.device("cpu"))
    features, lengths = forwards.encode(vlm, tokens, texts)
    for row, expected in enumerate(stock):
        assert len(expected) == lengths[row]
        torch.testing.assert_close(features[row, : lengths[row]], expected, atol=1e-5, rtol=1e-5)

    latents, time = torch.randn(3, 4, 16, 16), torch.tensor([0.0, 0.3, 0.7])
    outputs = transformer(list(latents.unsqueeze(2)), time, stock, return_dict=False)[0]
    expected = torch.stack([output[:, 0] for output in outputs])
    output = forwards.transformer(transformer, latents, time, features, lengths)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_multimodal_features_equal_the_library_through_the_stock_processor(parts, prompts):
    tokenizer, vlm, _ = parts
    scenes, texts = prompts
    images = (world.render(scenes) * 255).round() / 255
    processed = nets.make_image_processor()(
        images=[grid.to_image(image) for image in images], return_tensors="pt"
    )
    forwards, tokens = fast.Forwards(), fast.PromptTokens(tokenizer)
    ids, lengths = tokens(texts, image=True)
    expected = vlm(
        input_ids=ids,
        attention_mask=(torch.arange(fast.CAPTION_TOKENS)[None] < lengths[:, None]).long(),
        pixel_values=processed["pixel_values"],
        image_grid_thw=processed["image_grid_thw"],
        mm_token_type_ids=(ids == vlm.config.image_token_id).int(),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states[-2]
    features, _ = forwards.encode(vlm, tokens, texts, images)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            features[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@torch.no_grad()
def test_sampling_equals_the_stock_pipeline(parts, prompts, guidance):
    tokenizer, vlm, transformer = parts
    _, texts = prompts
    forwards, tokens = fast.Forwards(), fast.PromptTokens(tokenizer)
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline = nets.make_pipeline(nets.make_vae(), vlm, transformer, tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        prompt=list(texts),
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise.clone(),
        output_type="latent",
    ).images
    ours = fast.integrate(
        forwards,
        transformer,
        forwards.encode(vlm, tokens, texts),
        noise,
        fast.sigmas(4),
        guidance=guidance,
        empty=forwards.encode(vlm, tokens, [""]),
    )
    torch.testing.assert_close(ours, stock, atol=2e-5, rtol=1e-4)
