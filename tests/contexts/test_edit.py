"""The contexts `edit` and `edit_reference`: who sees which pictures, and when a loss is zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import EncoderFactory
from dopsd.contexts.edit import EditEncoder
from dopsd.contexts.edit_reference import EditReferenceEncoder
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.errors import DataError
from dopsd.models import Flux2Klein
from dopsd.records import Context
from tests.contexts.shown import losses
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, random_image
from tests.helpers.tiny_flux2 import make_flux2_config

TOKENS = (HEIGHT // 4) * (IMAGE_WIDTH // 4)
"""Reference tokens of a target."""


def sample(number: int, *sizes: tuple[int, int]) -> Sample:
    references = tuple(random_image(*size, 10 * number + n) for n, size in enumerate(sizes))
    target = random_image(HEIGHT, IMAGE_WIDTH, number)
    return Sample(f"s{number}", f"make it red, number {number}", target, references)


ALIKE = [sample(0, (24, 32)), sample(1, (24, 32))]
MIXED = [sample(2, (24, 32)), sample(3, (16, 16), (40, 24)), sample(4, (24, 32))]


def make(tiny_flux2: Path, name: str, **context: Any) -> RunConfig:
    return make_flux2_config(tiny_flux2, context={"name": name, "text_tokens": 96, **context})


@pytest.fixture(scope="module")
def edit(tiny_flux2: Path) -> EditEncoder:
    return EncoderFactory(make(tiny_flux2, "edit"), "cpu")()


@pytest.fixture(scope="module")
def by_reference(edit: EditEncoder) -> EditReferenceEncoder:
    return EditReferenceEncoder(edit.text, edit.family, edit.vae)


def loss(family: Flux2Klein, student: Context, teacher: Context) -> tuple[Tensor, Tensor]:
    rows = len(student.tensors["embeds"])
    shape = family.latent_shape(HEIGHT, IMAGE_WIDTH)
    noise = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(3))
    transformer = family.load_transformer(torch.float32, "cpu")
    sigmas = family.sigmas(2, HEIGHT, IMAGE_WIDTH)
    return losses(family, transformer, student, teacher, noise, sigmas)


def test_only_the_teacher_of_edit_sees_the_target_and_the_instruction(edit: EditEncoder) -> None:
    student, teacher = edit.encode(ALIKE)
    assert set(student.tensors) == {"embeds"}, "no pictures, even where the data has references"
    latents = edit.family.encode_images(edit.vae, [each.target for each in ALIKE])
    expected = edit.family.reference_tokens([[row] for row in latents])
    assert teacher.tensors["reference"].shape == (2, TOKENS, 16)
    torch.testing.assert_close(teacher.tensors["reference"], expected["reference"])
    assert torch.equal(teacher.tensors["reference_ids"], expected["reference_ids"])
    read = edit.text.encode([f"{s.prompt}\n{edit.default_instruction}" for s in ALIKE])
    assert torch.equal(teacher.tensors["embeds"], read.tensors["embeds"])
    assert torch.equal(
        student.tensors["embeds"], edit.text.encode([s.prompt for s in ALIKE]).tensors["embeds"]
    )


def test_the_target_is_the_last_reference_of_the_teacher(by_reference: EditReferenceEncoder):
    student, teacher = by_reference.encode(MIXED)
    lengths = [48, 16 + 60, 48]
    assert student.tensors["reference_lengths"].tolist() == lengths
    assert teacher.tensors["reference_lengths"].tolist() == [n + TOKENS for n in lengths]
    vae, family = by_reference.vae, by_reference.family
    for row, (each, length) in enumerate(zip(MIXED, lengths)):
        seen, shown = teacher.tensors["reference"][row], student.tensors["reference"][row]
        assert torch.equal(seen[:length], shown[:length]), "both see the sources"
        target = family.encode_images(vae, [each.target])[0].flatten(1).T
        assert torch.equal(seen[length : length + TOKENS], target)
        times = teacher.tensors["reference_ids"][row, : length + TOKENS, 0]
        assert times.unique().tolist() == [10 * (n + 1) for n in range(len(each.references) + 1)]
        assert (times[length:] == 10 * (len(each.references) + 1)).all()
    assert torch.equal(
        by_reference.encode_student(MIXED).tensors["reference"], student.tensors["reference"]
    )


def test_views_count_pictures_and_show_the_instruction(by_reference: EditReferenceEncoder):
    views = by_reference.views(MIXED)
    assert [(student.references, teacher.references) for student, teacher in views] == [
        (1, 2),
        (2, 3),
        (1, 2),
    ]
    student, teacher = views[0]
    assert f"user\n{MIXED[0].prompt}<|im_end|>" in student.text
    assert f"{MIXED[0].prompt}\n{by_reference.default_instruction}<|im_end|>" in teacher.text


def test_a_withheld_target_is_a_loss_of_zero(edit: EditEncoder) -> None:
    plain = EditEncoder(edit.text, edit.family, edit.vae, instruction="")
    student, teacher = plain.encode(ALIKE)
    blind = Context({"embeds": teacher.tensors["embeds"]})
    fused, stored = loss(plain.family, student, blind)
    assert not fused.any()
    assert stored.max() < 1e-9
    fused, stored = loss(plain.family, student, teacher)
    assert (fused > 1e-4).all(), "the picture alone makes the difference"
    torch.testing.assert_close(fused, stored, rtol=1e-4, atol=1e-6)


def test_a_withheld_ground_truth_is_a_loss_of_zero(by_reference: EditReferenceEncoder) -> None:
    student, teacher = by_reference.encode(MIXED)
    assert not loss(by_reference.family, student, student)[0].any()
    fused, stored = loss(by_reference.family, student, teacher)
    assert (fused > 1e-4).all()
    torch.testing.assert_close(fused, stored, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_of_other_numbers_and_sizes_is_its_samples(
    by_reference: EditReferenceEncoder,
) -> None:
    family = by_reference.family
    transformer = family.load_transformer(torch.float32, "cpu")
    shape = family.latent_shape(HEIGHT, IMAGE_WIDTH)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(4))
    sigma = torch.tensor([0.9, 0.5, 0.2])
    for role in (0, 1):
        together = family.velocity(transformer, noise, sigma, by_reference.encode(MIXED)[role])
        for row, each in enumerate(MIXED):
            alone = by_reference.encode([each])[role]
            one = family.velocity(transformer, noise[row : row + 1], sigma[row : row + 1], alone)
            assert (together[row] - one[0]).abs().max() < 1e-5


def test_a_sample_without_references_is_named(by_reference: EditReferenceEncoder) -> None:
    with pytest.raises(DataError, match="sample s1: has no reference pictures"):
        by_reference.encode([ALIKE[0], replace(ALIKE[1], references=())])


def test_a_dropped_caption_leaves_the_instruction(edit: EditEncoder) -> None:
    _, view = edit.views([replace(ALIKE[0], prompt="")])[0]
    assert f"user\n{edit.default_instruction}<|im_end|>" in view.text


def test_an_instruction_of_ones_own_and_one_vae(tiny_flux2: Path) -> None:
    config = make(tiny_flux2, "edit", instruction="Paint it again.")
    config.method.objective = "off_policy"
    encoder = TrainingEncoderFactory(config, "cpu")()
    assert encoder.vae is encoder.contexts.vae
    _, teacher, target = encoder.encode(ALIKE)
    torch.testing.assert_close(target.flatten(2).transpose(1, 2), teacher.tensors["reference"])
    _, view = encoder.contexts.views(ALIKE)[0]
    assert f"{ALIKE[0].prompt}\nPaint it again." in view.text
