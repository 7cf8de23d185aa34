"""The LoRA file: what the trainer's student draws is what stock diffusers draws with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from dopsd.export import lora_file
from dopsd.method.rollout import rollout
from dopsd.models import ZImage
from dopsd.models.lora.layers import (
    STUDENT,
    TEACHER,
    adapter_parameters,
    bind_parameters,
    inject,
    resolve_targets,
)
from tests.helpers.loras import read_lora
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, LATENT, make_context, random_state

RANK, ALPHA = 8, 16.0
STEPS = 4


class Drawing:
    """One context and one noise; pictures of the base, of a student and of a LoRA file."""

    def __init__(self, base: Path) -> None:
        self.family = ZImage(str(base))
        self.context = make_context((9, 36), 0)
        self.noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
        self.pipeline = self.family.load_pipeline(torch.float32, "cpu")

    @torch.no_grad()
    def student(self, targets: str, **variant: bool) -> tuple[dict[str, Tensor], np.ndarray]:
        """Adapter weights, and the pictures [2, H, W, 3] in [0, 1] of the trainer's student."""
        transformer = self.family.load_transformer(torch.float32, "cpu")
        matched = resolve_targets(transformer, targets, ZImage.lora_targets)
        inject(transformer, matched, RANK, ALPHA, 0, (STUDENT, TEACHER), **variant)
        state = random_state(adapter_parameters(transformer, STUDENT), 2)
        bind_parameters(adapter_parameters(transformer, STUDENT), state)
        velocity = partial(self.family.velocity, transformer)
        sigmas = self.family.sigmas(STEPS, HEIGHT, IMAGE_WIDTH)
        states = rollout(lambda x, s: velocity(x, s, self.context), self.noise, sigmas)
        vae = self.pipeline.vae
        latents = states[-1] / vae.config.scaling_factor + vae.config.shift_factor
        images = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        return state, images.permute(0, 2, 3, 1).numpy()

    def stock(self, lora: Path | None = None) -> np.ndarray:
        """Pictures of the stock pipeline, with a LoRA file or without."""
        if lora is not None:
            self.pipeline.load_lora_weights(str(lora))
        try:
            return self.pipeline(
                prompt_embeds=[
                    row[:n]
                    for row, n in zip(
                        self.context.tensors["embeds"], self.context.tensors["lengths"]
                    )
                ],
                negative_prompt_embeds=[],
                latents=self.noise.clone(),
                height=HEIGHT,
                width=IMAGE_WIDTH,
                num_inference_steps=STEPS,
                guidance_scale=0.0,
                output_type="np",
            ).images
        finally:
            if lora is not None:
                self.pipeline.unload_lora_weights()


@pytest.fixture(scope="module")
def drawing(tiny_base: Path) -> Drawing:
    return Drawing(tiny_base)


@pytest.fixture
def diffusers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """diffusers' own logger does not propagate to the root, where caplog listens."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("targets", "dora", "rank_stabilized"),
    [("default", False, False), ("all-linear", False, True), ("default", True, True)],
)
def test_stock_diffusers_draws_what_the_student_draws(
    drawing: Drawing,
    tmp_path: Path,
    targets: str,
    dora: bool,
    rank_stabilized: bool,
    diffusers_log: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    state, expected = drawing.student(targets, dora=dora, rank_stabilized=rank_stabilized)
    path = tmp_path / "lora.safetensors"
    metadata = {"base": "tiny"}
    path.write_bytes(lora_file(state, RANK, ALPHA, metadata, rank_stabilized=rank_stabilized))
    diffusers_log.clear()
    recwarn.clear()
    drawn = drawing.stock(path)
    assert diffusers_log.messages == []
    assert [str(w.message) for w in recwarn if "lora" in str(w.message).lower()] == []
    np.testing.assert_allclose(drawn, expected, atol=2e-5)

    base = drawing.stock()
    assert np.abs(base - expected).mean() > 0.01
    # Half strength, the failure of readers that drop alpha, would be seen.
    path.write_bytes(lora_file(state, RANK, RANK, {}))
    assert np.abs(drawing.stock(path) - expected).max() > 1e-2
    # The base is itself again: nothing above was left behind in the pipeline.
    assert np.array_equal(drawing.stock(), base)


def test_pefts_own_prefix_loads_nothing(
    drawing: Drawing, tmp_path: Path, diffusers_log: pytest.LogCaptureFixture
) -> None:
    """Why the file has its own keys; also proof that the test above can see the warning."""
    state, _ = drawing.student("default")
    wrong = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    save_file(wrong, tmp_path / "peft.safetensors")
    diffusers_log.clear()
    drawing.pipeline.load_lora_weights(str(tmp_path / "peft.safetensors"))
    assert any("No LoRA keys" in message for message in diffusers_log.messages)


def test_keys_scale_dtype_and_metadata(tmp_path: Path) -> None:
    state = {
        "layers.0.attention.to_q.lora_A.weight": torch.full((2, 4), 3.0).bfloat16(),
        "layers.0.attention.to_q.lora_B.weight": torch.full((4, 2), 5.0).bfloat16(),
    }
    metadata = {"base": "Tongyi/Z-Image-Turbo", "recipe": json.dumps({"rank": 2}), "名": "猫"}
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file(state, 2, 3.0, metadata))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}
        assert sorted(file.keys()) == [f"transformer.{name}" for name in sorted(state)]
    tensors = load(path.read_bytes())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    down, up = (tensors[f"transformer.layers.0.attention.to_q.lora_{part}.weight"] for part in "AB")
    assert torch.equal(down, torch.full((2, 4), 3.0))
    assert torch.equal(up, torch.full((4, 2), 7.5))
    assert not any(name.endswith(".alpha") for name in tensors)
    # The caller's weights are not scaled in place.
    assert state["layers.0.attention.to_q.lora_B.weight"].unique().tolist() == [5.0]


def test_an_exported_lora_binds_at_full_strength(drawing: Drawing, tmp_path: Path) -> None:
    """With alpha / r folded in, the file belongs into an adapter of alpha = r."""
    state, _ = drawing.student("default")
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file(state, RANK, ALPHA, {}))
    again = read_lora(str(path))
    assert again.keys() == state.keys()
    outputs: list[Any] = []
    for weights, alpha in ((state, ALPHA), (again, RANK)):
        transformer = drawing.family.load_transformer(torch.float32, "cpu")
        matched = resolve_targets(transformer, "default", ZImage.lora_targets)
        inject(transformer, matched, RANK, alpha, 0)
        bind_parameters(adapter_parameters(transformer, STUDENT), weights)
        with torch.no_grad():
            outputs.append(
                drawing.family.velocity(
                    transformer, drawing.noise, torch.tensor([0.9, 0.5]), drawing.context
                )
            )
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


def test_equal_weights_give_equal_bytes() -> None:
    state = {
        f"layer{i}.lora_{part}.weight": torch.ones(2, 2) * i for i in range(5) for part in "AB"
    }
    metadata = {f"dopsd.{key}": key * 3 for key in "abcdefgh"}
    files = {lora_file(state, 2, 4, metadata) for _ in range(5)}
    assert len(files) == 1
    loaded = load(files.pop())
    assert torch.equal(loaded["transformer.layer3.lora_B.weight"], torch.full((2, 2), 6.0))
