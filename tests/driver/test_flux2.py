"""FLUX.2-klein through the trainer: who gets gradients, and whole runs from both sources."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.driver.summary import Summary
from dopsd.driver.train import train
from dopsd.learner.student import Student, build_student
from dopsd.method.noise import batch_noise
from dopsd.method.terms import fused_terms
from dopsd.models import Flux2Klein
from dopsd.models.lora import STUDENT, TEACHER, activate, adapter_parameters
from dopsd.records import Context
from tests.loras import read_lora
from tests.tiny import random_image
from tests.tiny_flux2 import BLOCKS, make_flux2_config

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


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, (height, width) in enumerate([(32, 32), (32, 32), (24, 48)]):
        Image.fromarray(random_image(height, width, number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat, number {number}")
    return folder


@pytest.fixture(scope="module")
def runs(tiny_flux2, images, tmp_path_factory, ray_cluster) -> dict[str, Summary]:
    """The same two steps by the learner alone, and by roll-out and teacher workers."""

    def run(source: str) -> Summary:
        config = make_flux2_config(
            tiny_flux2,
            run={"folder": str(tmp_path_factory.mktemp(source)), "seed": 3},
            context=CONTEXT,
            data={"source": str(images), "pixel_area": 1024, "bucket_multiple": 8},
            lora={"rank": 4, "alpha": 8},
            encoder={"cpus": 0.2},
            rollout={"cpus": 0.2},
            teacher={"cpus": 0.2},
            learner={"cpus": 0.3, "steps": STEPS, "global_batch": 2, "micro_batch": 2, "lr": 1e-3},
            method={"steps": STEPS, "ema_decay": 0.9},
            preview={"samples": 1 if source == "fused" else 0},
            preflight={"mode": "off"},
            source=source,
        )
        return train(config, lambda phase, status: None)

    return {source: run(source) for source in ("fused", "disaggregated")}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["fused", "disaggregated"])
def test_two_steps_of_training(runs, source) -> None:
    done = runs[source]
    assert done.problems == [] and (done.sheet is not None) == (source == "fused")
    assert done.adapted == dict.fromkeys(Flux2Klein.lora_targets, BLOCKS)
    lines = (Path(done.folder) / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line)["loss"] for line in lines]
    assert len(values) == STEPS and all(math.isfinite(v) and v > 0 for v in values)
    student = read_lora(done.lora)
    assert all(t.abs().max() > 0 for name, t in student.items() if ".lora_B." in name)


@pytest.mark.slow
def test_both_sources_train_the_same_adapter(runs) -> None:
    fused, apart = (read_lora(runs[source].lora) for source in ("fused", "disaggregated"))
    assert fused.keys() == apart.keys()
    assert max(float((fused[name] - apart[name]).abs().max()) for name in fused) < 1e-5
