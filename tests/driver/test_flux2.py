"""FLUX.2-klein as the learner trains it: who gets gradients."""

from __future__ import annotations

import math

import pytest
import torch

from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.learner.student import Student, build_student
from dopsd.method.noise import batch_noise
from dopsd.method.terms import fused_terms
from dopsd.models import Flux2Klein
from dopsd.models.lora.layers import STUDENT, TEACHER, activate, adapter_parameters
from dopsd.records import Context
from tests.helpers.tiny import random_image
from tests.helpers.tiny_flux2 import BLOCKS, make_flux2_config

STEPS = 2
CONTEXT = {"text_tokens": 48, "image_text_tokens": 64, "image_min_pixels": 1024}


def losses(student: Student, contexts: tuple[Context, Context], size: tuple[int, int]) -> list:
    """The K losses of one micro-batch, each with its own backward, as the learner makes them."""
    family, transformer = student.family, student.transformer
    noise = batch_noise(0, 0, ("a", "b"), family.latent_shape(*size))

    @torch.no_grad()
    def teacher(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        activate(transformer, TEACHER)
        try:
            return family.velocity(transformer, latents, sigma, contexts[1])
        finally:
            activate(transformer, STUDENT)

    terms = fused_terms(noise, family.sigmas(STEPS, *size), contexts[0], teacher, "x0")
    found = []
    term = next(terms)
    while True:
        sigma = term.sigma.expand(len(noise))
        velocity = student(term.state, sigma, term.context.tensors)
        loss = term.weight * (velocity - term.target).square().mean()
        loss.backward()
        found.append(float(loss))
        try:
            term = terms.send(velocity.detach())
        except StopIteration:
            return found


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_student_gets_gradients(tiny_flux2, references, checkpointing) -> None:
    config = make_flux2_config(
        tiny_flux2,
        context=CONTEXT,
        lora={"rank": 4, "alpha": 8},
        method={"objective": "off_policy"},
        learner={"gradient_checkpointing": checkpointing},
    )
    samples = [Sample(name, name, random_image(32, 48, row)) for row, name in enumerate("ab")]
    plain, seeing, target = TrainingEncoderFactory(config, "cpu")().encode(samples)
    family = Flux2Klein(str(tiny_flux2))
    if references:
        tokens = family.reference_tokens([[row] for row in target])
        seeing = Context({**plain.tensors, **tokens})
    student = build_student(config, family, "cpu", with_teacher=True)

    # Equal contexts under equal weights: nothing to learn, whatever the states.
    assert losses(student, (plain, plain), (32, 48)) == [0.0] * STEPS
    assert losses(student, (seeing, seeing), (32, 48)) == [0.0] * STEPS
    student.zero_grad()
    found = losses(student, (plain, seeing), (32, 48))
    assert all(math.isfinite(loss) and loss > 0 for loss in found)
    parameters = adapter_parameters(student.transformer, STUDENT)
    own = {id(parameter) for parameter in parameters.values()}
    assert all(p.grad is None for p in student.parameters() if id(p) not in own)
    # B starts at zero, so A has no gradient yet.
    ups = {name: p.grad for name, p in parameters.items() if ".lora_B." in name}
    assert len(ups) == 12 * BLOCKS
    for name, gradient in ups.items():
        assert gradient.abs().max() > 0, name
