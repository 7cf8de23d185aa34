"""Every recipe on tiny weights of its family: two steps of its method, without a cluster."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dopsd.config import RunConfig, load_config
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.method.ema import Ema
from dopsd.method.objective import state_loss
from dopsd.method.terms import stored_terms
from dopsd.models.lora import STUDENT, TEACHER, adapter_parameters
from dopsd.runtime.data import check_context, wanted
from dopsd.runtime.student import build_student
from dopsd.runtime.weights import Bundle
from dopsd.runtime.workers import InferenceWorker
from dopsd.types import EncodedBatch, SampleInfo, TrainingBatch
from tests.test_configs import RECIPES
from tests.tiny import random_image

SIZE = (32, 48)
TINY = [
    "model.vlm=null",
    "model.dtype=float32",
    "device=cpu",
    "context.text_tokens=64",
    "context.image_text_tokens=96",
    "context.image_min_pixels=1024",
    "context.image_max_pixels=1024",
]


@pytest.fixture(params=[path for path in RECIPES if path.stem != "shapes"], ids=lambda p: p.stem)
def config(request, tiny_base: Path, tiny_flux2: Path) -> RunConfig:
    family = load_config(request.param).model.family
    base = {"z_image": tiny_base, "flux2_klein": tiny_flux2}[family]
    return load_config(request.param, [*TINY, f"model.base={base}"])


def samples(config: RunConfig) -> list[Sample]:
    """Two samples with what the recipe's stream reads, and nothing else."""
    reads = wanted(config)
    found = []
    for number in range(2):
        image = random_image(*SIZE, number) if reads.images else None
        pictures = (random_image(16, 24 + 8 * number, 5),) if reads.reference_pixels else ()
        detailed = "a red cat on a blue mat" if reads.prompt_pairs else None
        found.append(Sample(f"s{number}", "a cat", image, pictures, detailed))
    return found


def test_a_recipe_trains_two_steps(config: RunConfig) -> None:
    check_context(config)
    encoded = TrainingEncoderFactory(config, "cpu")().encode(samples(config))
    worker = InferenceWorker(config, "cpu", (STUDENT, TEACHER))
    student = build_student(config, worker.family, "cpu", with_teacher=False)
    trained = adapter_parameters(student.transformer, STUDENT)
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learner.lr)
    ema = Ema(dict(trained), config.method.teacher_decay)
    for step in range(2):
        bundle = Bundle.create(step, dict(trained), ema.tensors, torch.float32, bytes)
        worker.load(*(bundle.refs[adapter] for adapter in (STUDENT, TEACHER)))
        info = SampleInfo(step, 0, ("s0", "s1"), ("a cat", "a cat"), *SIZE, step_samples=2)
        block = pa.table({"payload": [EncodedBatch(info, *encoded).to_bytes()]})
        batch = TrainingBatch.from_bytes(worker.generate_and_score(step, block)[0])
        for term in stored_terms(batch):
            velocity = student(term.state, term.sigma.expand(2), term.context.tensors)
            loss = state_loss(velocity, term.target, term.weight).mean()
            assert math.isfinite(float(loss)) and loss > 0
            loss.backward()
        own = {id(parameter) for parameter in trained.values()}
        assert all(p.grad is None for p in student.parameters() if id(p) not in own)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(trained)
    ups = {name: p for name, p in trained.items() if ".lora_B." in name}
    assert all(p.abs().max() > 0 for p in ups.values())
