"""The `enhanced_prompt` context: two captions, one text encoder, nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import EncoderFactory
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.models import FAMILIES
from tests.contexts.shown import losses
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, make_config, random_image
from tests.helpers.tiny_flux2 import make_flux2_config

CONTEXT = {"name": "enhanced_prompt", "prompt_pairs": [["short", "detailed"]], "text_tokens": 64}
SAMPLES = [
    Sample("a", "a cat", None, teacher_prompt="a red cat, asleep on a blue mat"),
    Sample("b", "a dog", None, teacher_prompt="a dog that reads a letter by a window"),
]


@pytest.fixture(scope="module", params=["z_image", "flux2_klein"])
def config(request: Any, tiny_base: Path, tiny_flux2: Path) -> RunConfig:
    if request.param == "z_image":
        return make_config(tiny_base, context=CONTEXT)
    return make_flux2_config(tiny_flux2, context=CONTEXT)


@pytest.fixture(scope="module")
def encoder(config: RunConfig) -> Any:
    return EncoderFactory(config, "cpu")()


def loss(config: RunConfig, encoder: Any, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    family = FAMILIES[config.model.family](config.model.base)
    shape = family.latent_shape(HEIGHT, IMAGE_WIDTH)
    noise = torch.randn(len(samples), *shape, generator=torch.Generator().manual_seed(3))
    transformer = family.load_transformer(torch.float32, "cpu")
    sigmas = family.sigmas(2, HEIGHT, IMAGE_WIDTH)
    return losses(family, transformer, *encoder.encode(samples), noise, sigmas)


def test_each_role_reads_its_own_caption(encoder: Any) -> None:
    student, teacher = encoder.encode(SAMPLES)
    for context, texts in (
        (student, [s.prompt for s in SAMPLES]),
        (teacher, [s.teacher_prompt for s in SAMPLES]),
    ):
        alone = encoder.text.encode(texts)
        assert all(torch.equal(t, alone.tensors[name]) for name, t in context.tensors.items())
    assert "reference" not in teacher.tensors
    only = encoder.encode_student(SAMPLES)
    assert torch.equal(only.tensors["embeds"], student.tensors["embeds"])


def test_views_show_both_texts_and_what_is_cut(encoder: Any) -> None:
    for sample, (student, teacher) in zip(SAMPLES, encoder.views(SAMPLES)):
        assert f"user\n{sample.prompt}<|im_end|>" in student.text
        assert f"user\n{sample.teacher_prompt}<|im_end|>" in teacher.text
        assert student.tokens < teacher.tokens <= teacher.limit == 64
    long = replace(SAMPLES[0], teacher_prompt="a red cat " * 40)
    student, teacher = encoder.views([long])[0]
    assert teacher.truncated and not student.truncated


def test_the_same_caption_twice_is_a_loss_of_zero(config: RunConfig, encoder: Any) -> None:
    same = [replace(sample, teacher_prompt=sample.prompt) for sample in SAMPLES]
    fused, stored = loss(config, encoder, same)
    assert not fused.any(), "bitwise the same context, so bitwise the same velocity"
    assert stored.max() < 1e-9, "all K states in one batch: equal up to rounding"
    fused, stored = loss(config, encoder, SAMPLES)
    assert (fused > 1e-4).all()
    torch.testing.assert_close(fused, stored, rtol=1e-4, atol=1e-6)


def test_targets_are_there_for_the_objectives_that_need_them(config: RunConfig) -> None:
    method = {**config.method.model_dump(), "objective": "off_policy"}
    noised = config.model_validate({**config.model_dump(), "method": method})
    encoder = TrainingEncoderFactory(noised, "cpu")()
    shown = [replace(s, image=random_image(HEIGHT, IMAGE_WIDTH, n)) for n, s in enumerate(SAMPLES)]
    student, teacher, target = encoder.encode(shown)
    family = FAMILIES[config.model.family](config.model.base)
    assert target.shape == (2, *family.latent_shape(HEIGHT, IMAGE_WIDTH))
    assert not torch.equal(student.tensors["embeds"], teacher.tensors["embeds"])
