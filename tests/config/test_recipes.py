"""Every recipe on tiny weights of its family: two steps of its method, without a cluster."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dopsd.config import RunConfig, load_config
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.run_data import read_spec
from dopsd.data.sample import Sample
from dopsd.driver.setup.checks import check_context
from dopsd.learner.student import build_student
from dopsd.method.ema import Ema
from dopsd.method.objective import state_loss
from dopsd.method.terms import stored_terms
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch
from dopsd.rollout.worker import InferenceWorker
from tests.config.test_configs import RECIPES
from tests.helpers.bundles import made_bundle
from tests.helpers.tiny import random_image
from tests.learner.whole import whole_bundle

SIZE = (32, 64)
TINY = [
    "model.vlm=null",
    "model.merge=[]",
    "model.draw_merged=false",
    "model.dtype=float32",
    "model.quantize=none",
    "device=cpu",
    "context.text_tokens=64",
    "context.image_text_tokens=96",
    "context.image_min_pixels=1024",
    "context.image_max_pixels=1024",
]


# The demos have a base of their own, and train whole elsewhere.
FAMILIES = [path for path in RECIPES if not path.stem.startswith("shapes")]


@pytest.fixture(params=FAMILIES, ids=lambda path: path.stem)
def config(
    request, tiny_base: Path, tiny_flux2: Path, tiny_krea2: Path, tiny_qwen_image: Path
) -> RunConfig:
    family = load_config(request.param).model.family
    base = {
        "z_image": tiny_base,
        "flux2_klein": tiny_flux2,
        "krea2": tiny_krea2,
        "qwen_image": tiny_qwen_image,
    }[family]
    return load_config(request.param, [*TINY, f"model.base={base}"])


def samples(config: RunConfig) -> list[Sample]:
    """Two samples with what the recipe's stream reads, and nothing else."""
    reads = read_spec(config)
    found = []
    for number in range(2):
        image = random_image(*SIZE, number) if reads.images else None
        pictures = (random_image(16, 24 + 8 * number, 5),) if reads.reference_pixels else ()
        detailed = "a red cat on a blue mat" if reads.prompt_pairs else None
        found.append(Sample(f"s{number}", "a cat", image, pictures, detailed))
    return found


class Served:
    """The recipe's inference workers: both adapters on one base, or a model for each."""

    def __init__(self, config: RunConfig) -> None:
        self.whole = config.adapters == "full"
        both = (STUDENT, TEACHER)
        adapters = ((STUDENT,), (TEACHER,)) if self.whole else (both,)
        self.workers = [InferenceWorker(config, "cpu", each) for each in adapters]
        self.family = self.workers[0].family

    def load(self, version: int, models: dict[str, dict[str, torch.Tensor]]) -> None:
        if self.whole:
            bundle = whole_bundle(version, models)
            for worker in self.workers:
                worker.load_buckets(bundle, bytes)
            return
        bundle = made_bundle(version, models[STUDENT], models[TEACHER], torch.float32, bytes)
        self.workers[0].load(version, *(bundle.refs[adapter] for adapter in (STUDENT, TEACHER)))

    def batch(self, version: int, block: pa.Table) -> TrainingBatch:
        first, last = self.workers[0], self.workers[-1]
        if not self.whole:
            return TrainingBatch.from_bytes(first.generate_and_score(version, block)[0])
        path, _ = first.generate(version, block)
        return TrainingBatch.from_bytes(last.score(version, block, path)[0])


def test_a_recipe_trains_two_steps(config: RunConfig) -> None:
    check_context(config)
    encoded = TrainingEncoderFactory(config, "cpu")().encode(samples(config))
    served = Served(config)
    student = build_student(config, served.family, "cpu", with_teacher=False)
    trained = student.trained.parameters(student.transformer, STUDENT)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learner.lr)
    ema = Ema(dict(trained), config.method.teacher_decay)
    for step in range(2):
        served.load(step, {STUDENT: dict(trained), TEACHER: ema.tensors})
        info = SampleInfo(step, 0, ("s0", "s1"), ("a cat", "a cat"), *SIZE, step_samples=2)
        block = pa.table({"payload": [EncodedBatch(info, *encoded).to_bytes()]})
        batch = served.batch(step, block)
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
    moved = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    assert moved == trained.keys()
