"""FLUX.2-klein through the rooms that draw: the exported LoRA, `generate`, preflight, preview."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dopsd.cli.main import main
from dopsd.contexts import EncoderFactory
from dopsd.data.sample import Sample
from dopsd.evaluation.preflight.check import check_teacher
from dopsd.evaluation.preview.sampler import PreviewSampler
from dopsd.evaluation.sampler import EvaluationSampler
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec
from dopsd.export import lora_file
from dopsd.method.noise import NoisePurpose, sample_noise
from dopsd.method.rollout import rollout
from dopsd.models import Flux2Klein
from dopsd.models.lora.layers import (
    STUDENT,
    TEACHER,
    adapter_parameters,
    bind_parameters,
    inject,
    resolve_targets,
)
from tests.helpers.tiny import HEIGHT, IMAGE_TOKEN_SIDE, IMAGE_WIDTH, random_image, random_state
from tests.helpers.tiny_flux2 import LATENT, make_flux2_config, make_flux2_context

RANK, ALPHA = 8, 16.0
STEPS = 4
SAMPLES = [
    Sample("one", "a red cat", random_image(HEIGHT, IMAGE_WIDTH, 0)),
    Sample("two", "a blue mat", random_image(32, 32, 1)),
]


@pytest.fixture(scope="module")
def family(tiny_flux2: Path) -> Flux2Klein:
    return Flux2Klein(str(tiny_flux2))


@pytest.fixture(scope="module")
def pipeline(family: Flux2Klein) -> Any:
    return family.load_pipeline(torch.float32, "cpu")


def adapted(
    family: Flux2Klein, targets: str | list[str], dora: bool = False
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The trainer's student with random LoRA weights."""
    transformer = family.load_transformer(torch.float32, "cpu")
    matched = resolve_targets(transformer, targets, family.lora_targets, family.lora_all_linear)
    inject(transformer, matched, RANK, ALPHA, 0, (STUDENT, TEACHER), dora=dora)
    state = random_state(adapter_parameters(transformer, STUDENT), 2)
    bind_parameters(adapter_parameters(transformer, STUDENT), state)
    return transformer, state


def merged(family: Flux2Klein, state: dict[str, Tensor]) -> nn.Module:
    """The base with W + alpha / r B A in its own weights, rows of DoRA at their magnitudes."""
    transformer = family.load_transformer(torch.float32, "cpu")
    names = {name.partition(".lora_")[0] for name in state}
    for name in names:
        down, up = (state[f"{name}.lora_{part}.weight"] for part in "AB")
        with torch.no_grad():
            weight = transformer.get_submodule(name).weight
            weight += ALPHA / RANK * up @ down
            if (magnitude := state.get(f"{name}.lora_magnitude_vector")) is not None:
                weight *= (magnitude / weight.norm(dim=1))[:, None]
    return transformer


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, np.int16) for picture in pictures])


@pytest.mark.parametrize(
    ("targets", "dora"), [("default", False), ("all-linear", False), ("all-linear", True)]
)
@torch.no_grad()
def test_stock_diffusers_draws_what_the_student_draws(
    family: Flux2Klein,
    pipeline: Any,
    tmp_path: Path,
    targets: str,
    dora: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # diffusers' own logger does not propagate to the root, where caplog listens.
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    context = make_flux2_context(2, 0)
    noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
    sigmas = family.sigmas(STEPS, HEIGHT, IMAGE_WIDTH)

    def draw(transformer: nn.Module) -> np.ndarray:
        states = rollout(lambda x, s: family.velocity(transformer, x, s, context), noise, sigmas)
        return pixels(family.decode(pipeline, states[-1]))

    def stock(lora: bytes | None = None) -> np.ndarray:
        path = tmp_path / "lora.safetensors"
        if lora is not None:
            path.write_bytes(lora)
            pipeline.load_lora_weights(str(path))
        try:
            size = HEIGHT, IMAGE_WIDTH
            return pixels(family.generate(pipeline, context, noise, STEPS, *size))
        finally:
            pipeline.unload_lora_weights()

    transformer, state = adapted(family, targets, dora)
    expected = draw(transformer)
    assert np.abs(draw(merged(family, state)) - expected).max() <= 1
    base = stock()
    caplog.clear()
    drawn = stock(lora_file(state, RANK, ALPHA, {"base": "tiny"}))
    assert [record.message for record in caplog.records if record.name.startswith("diff")] == []
    assert np.abs(drawn - expected).max() <= 1
    assert np.abs(base - expected).mean() > 2
    # Half strength, the failure of readers that drop alpha, would be seen.
    assert np.abs(stock(lora_file(state, RANK, RANK, {})) - expected).max() > 5
    assert np.array_equal(stock(), base)


def test_generate_draws_with_and_without_a_lora(
    family: Flux2Klein, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state = adapted(family, "default")
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(lora_file(state, RANK, ALPHA, {}))
    command = ["generate", "a red cat", "--width", "16", "--height", "32", "--steps", "2"]
    command += ["--family", "flux2_klein", "--base", family.base]
    drawn = []
    for extra in ([], ["--lora", str(lora)]):
        out = tmp_path / f"out{len(extra)}"
        assert main([*command, "--out", str(out), *extra]) == 0, capsys.readouterr().err
        drawn.append(Image.open(out / "000.png"))
    assert drawn[0].size == (16, 32)
    assert drawn[0].tobytes() != drawn[1].tobytes()


@torch.no_grad()
def test_evaluation_draws_what_the_stock_pipeline_draws(family: Flux2Klein, pipeline: Any) -> None:
    spec = EvaluateSpec(
        out="unused", prompts=(), base=family.base, family=family.name, height=32, width=16
    )
    (drawn,) = EvaluationSampler(spec, "cpu").generate(
        EvaluatedModel(BASE), (), ["a red cat"], [3], 2
    )
    shape = family.latent_shape(32, 16)
    noise = sample_noise(3, NoisePurpose.EVALUATION, "a red cat", shape)
    stock = pipeline(
        prompt="a red cat",
        latents=noise[None],
        height=32,
        width=16,
        num_inference_steps=2,
        guidance_scale=1.0,
    ).images
    assert np.array_equal(pixels([Image.open(io.BytesIO(drawn))]), pixels(stock))


@pytest.fixture(scope="module")
def config(tiny_flux2: Path) -> Any:
    return make_flux2_config(
        tiny_flux2,
        context={
            "text_tokens": 64,
            "image_text_tokens": 96,
            "image_min_pixels": IMAGE_TOKEN_SIDE**2,
            "image_max_pixels": 4 * IMAGE_TOKEN_SIDE**2,
        },
        preflight={"num_noises": 1},
        lora={"rank": RANK, "alpha": ALPHA},
    )


def test_preflight_draws_both_roles_and_measures_in_latents(config: Any) -> None:
    found = check_teacher(config, SAMPLES, "latent", EncoderFactory(config, "cpu"), "cpu")
    for sample in found.samples:
        assert sample.student_context.text.endswith("</think>\n\n")
        assert "<|image_pad|>" in sample.teacher_context.text
        assert not sample.teacher_context.truncated
        assert np.isfinite([*sample.student, *sample.teacher]).all()
        assert sample.student != sample.teacher


def test_preview_draws_base_student_and_teacher(config: Any, family: Flux2Klein) -> None:
    sampler = PreviewSampler(config, SAMPLES, "cpu")
    parameters = adapter_parameters(adapted(family, "default")[0], STUDENT)
    loras = [lora_file(random_state(parameters, seed), RANK, ALPHA, {}) for seed in (1, 2)]
    sampler.load(*([lambda payload=payload: payload] for payload in loras))
    for index, sample in enumerate(SAMPLES):
        drawn = {role: sampler.generate(index, role) for role in ("base", STUDENT, TEACHER)}
        height, width = sample.target.shape[:2]
        assert {picture.size for picture in drawn.values()} == {(width, height)}
        assert len({picture.tobytes() for picture in drawn.values()}) == 3
        steps = config.method.steps
        with torch.no_grad():
            stock = sampler.pipeline(
                prompt_embeds=sampler.context(index, TEACHER).tensors["embeds"],
                latents=sampler.noise(index),
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=1.0,
            ).images
        assert np.array_equal(pixels(stock), pixels([drawn[TEACHER]]))
