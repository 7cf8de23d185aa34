"""Contexts through the workers, and a whole run of two steps with references."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.run_data import read_spec
from dopsd.data.sample import Sample
from dopsd.driver.train import train
from dopsd.method.noise import batch_noise
from dopsd.method.terms import fused_terms
from dopsd.models import Flux2Klein
from dopsd.models.lora.layers import STUDENT, TEACHER, activate, adapter_parameters
from dopsd.models.sampling import batch_velocity
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch, unpack
from dopsd.rollout.baselines import baseline_targets
from dopsd.rollout.worker import InferenceWorker
from tests.helpers.bundles import made_bundle
from tests.helpers.loras import ups
from tests.helpers.runs import metrics, quiet
from tests.helpers.tiny import make_config, random_image, random_state
from tests.helpers.tiny_flux2 import BLOCKS, make_flux2_config

SIZE = (32, 48)
SAMPLES = [
    Sample("a", "make it red", random_image(*SIZE, 0), (random_image(24, 32, 5),)),
    Sample(
        "b",
        "make it blue",
        random_image(*SIZE, 1),
        (random_image(16, 16, 6), random_image(40, 24, 7)),
    ),
]
SETTINGS: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 8},
    "encoder": {"cpus": 0.2},
    "rollout": {"cpus": 0.2},
    "teacher": {"cpus": 0.2},
    "learner": {"cpus": 0.3, "steps": 2, "global_batch": 4, "micro_batch": 2, "lr": 1e-3},
    "method": {"steps": 2, "ema_decay": 0.9},
    "preview": {"samples": 1},
    "preflight": {"samples": 2, "num_noises": 1},
    "debug": {"dump_trajectories": 1},
}


@pytest.fixture(scope="module", params=["vlm", "edit", "edit_reference"])
def worker(request: Any, tiny_flux2: Path) -> InferenceWorker:
    """Both adapters, random and different, so that every role draws in its own way."""
    config = make_flux2_config(
        tiny_flux2, context={"name": request.param, "text_tokens": 64}, **SETTINGS
    )
    made = InferenceWorker(config, "cpu", (STUDENT, TEACHER))
    student, teacher = (
        random_state(adapter_parameters(made.transformer, adapter), seed)
        for seed, adapter in enumerate((STUDENT, TEACHER))
    )
    bundle = made_bundle(3, student, teacher, torch.float32, bytes)
    made.load(3, *(bundle.refs[adapter] for adapter in (STUDENT, TEACHER)))
    return made


def encoded(config: RunConfig, samples: list[Sample]) -> EncodedBatch:
    student, teacher, target = TrainingEncoderFactory(config, "cpu")().encode(samples)
    names, prompts = zip(*((sample.sample_id, sample.prompt) for sample in samples))
    info = SampleInfo(5, 0, names, prompts, *SIZE, step_samples=len(samples))
    return EncodedBatch(info, student, teacher, target)


def block_of(batch: EncodedBatch) -> pa.Table:
    return pa.table({"payload": [batch.to_bytes()]})


def test_apart_shared_and_fused_make_the_same_batch(worker: InferenceWorker) -> None:
    batch = encoded(worker.config, SAMPLES)
    block = block_of(batch)
    path, _ = worker.generate(3, block)
    apart = TrainingBatch.from_bytes(worker.score(3, block, path)[0])
    shared = TrainingBatch.from_bytes(worker.generate_and_score(3, block)[0])
    for name in ("states", "target_velocity", "finished"):
        assert torch.equal(getattr(apart, name), getattr(shared, name)), name
    assert apart.student.tensors.keys() == batch.student.tensors.keys()

    family = worker.family

    def velocity(adapter: str, context: Any, latents: Any, sigma: Any) -> Any:
        activate(worker.transformer, adapter)
        with torch.no_grad():
            return family.velocity(worker.transformer, latents, sigma, context)

    noise = batch_noise(worker.config.run.seed, 5, ("a", "b"), family.latent_shape(*SIZE))
    teacher = partial(velocity, TEACHER, batch.teacher)
    terms = fused_terms(noise, family.sigmas(2, *SIZE), batch.student, teacher, "x0")
    term = next(terms)
    for k in range(2):
        torch.testing.assert_close(term.state, apart.states[k], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(term.target, apart.target_velocity[k], atol=1e-5, rtol=1e-5)
        taken = velocity(STUDENT, term.context, term.state, term.sigma.expand(2))
        if k == 0:
            term = terms.send(taken)


def test_samples_train_alike_alone_and_together(worker: InferenceWorker) -> None:
    together = worker.generate_and_score(3, block_of(encoded(worker.config, SAMPLES)))[0]
    batch = TrainingBatch.from_bytes(together)
    for row, sample in enumerate(SAMPLES):
        alone = block_of(encoded(worker.config, [sample]))
        one = TrainingBatch.from_bytes(worker.generate_and_score(3, alone)[0])
        for name in ("states", "target_velocity"):
            difference = getattr(batch, name)[:, row] - getattr(one, name)[:, 0]
            assert difference.abs().max() < 1e-5, name


OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "off_policy"},
    {"objective": "off_policy", "off_policy_states": "teacher"},
    {"objective": "sft_on_teacher"},
    {"objective": "sft"},
]


@pytest.mark.parametrize("method", OBJECTIVES, ids=["noised", "teacher", "on-teacher", "sft"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("z_image", "enhanced_prompt"),
        ("flux2_klein", "enhanced_prompt"),
        ("flux2_klein", "edit"),
        ("flux2_klein", "edit_reference"),
    ],
)
def test_every_objective_takes_every_context(
    family: str, name: str, method: dict[str, Any], tiny_base: Path, tiny_flux2: Path
) -> None:
    make, base = {
        "z_image": (make_config, tiny_base),
        "flux2_klein": (make_flux2_config, tiny_flux2),
    }[family]
    pairs = [["short", "long"]] if name == "enhanced_prompt" else []
    config = make(
        base,
        **SETTINGS
        | {
            "context": {"name": name, "prompt_pairs": pairs, "text_tokens": 64},
            "method": SETTINGS["method"] | method,
            "debug": {},
            "source": "fused",
        },
    )
    reads = read_spec(config)
    samples = [
        Sample(
            each.sample_id,
            each.prompt,
            each.image if reads.images else None,
            each.references if reads.reference_pixels else (),
            "make it red, all of it" if reads.prompt_pairs else None,
        )
        for each in SAMPLES
    ]
    batch = encoded(config, samples)
    worker = InferenceWorker(config, "cpu", (TEACHER,))
    if method["objective"] == "sft":
        assert batch.teacher is None
        targets, _ = baseline_targets(config, worker.family, batch, None, "cpu")
        states, velocity, sigmas = targets.states, targets.velocity, targets.sigmas
    else:
        worker.version = 0
        made = TrainingBatch.from_bytes(worker.teach(0, block_of(batch))[0])
        states, velocity, sigmas = made.states, made.target_velocity, made.sigmas
    assert ("reference" in batch.student.tensors) == (name == "edit_reference")
    student = batch_velocity(worker.family, worker.transformer, batch.student, worker.dtype)
    with torch.no_grad():
        for state, target, sigma in zip(states, velocity, sigmas):
            error = student(state, sigma.expand(2)) - target
            assert error.isfinite().all() and error.abs().max() > 1e-3


@pytest.mark.integration
def test_edit_reference_trains_with_references_of_any_size(
    tmp_path: Path, tiny_flux2: Path, ray_cluster: None
) -> None:
    rows = []
    for number in range(4):
        Image.fromarray(random_image(32, 32, number)).save(tmp_path / f"{number}.png")
        names = [f"r{number}-{n}.png" for n in range(1 + number % 2)]
        for n, name in enumerate(names):
            Image.fromarray(random_image(24 + 8 * n, 40, n)).save(tmp_path / name)
        row = {"image": f"{number}.png", "caption": "make it red", "references": names}
        rows.append(json.dumps(row))
    (tmp_path / "set.jsonl").write_text("\n".join(rows))
    config = make_flux2_config(
        tiny_flux2,
        run={"folder": str(tmp_path / "run")},
        context={"name": "edit_reference", "text_tokens": 128},
        data={
            "source": str(tmp_path / "set.jsonl"),
            "pixel_area": 1024,
            "bucket_multiple": 8,
        },
        **SETTINGS,
    )
    done = train(config, quiet)
    assert done.problems == []
    assert done.adapted == dict.fromkeys(Flux2Klein.lora_targets, BLOCKS)
    losses = [line["loss"] for line in metrics(done)]
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert min(ups(done.lora).values()) > 0
    assert Image.open(done.sheet).width >= 4 * 192
    report = json.loads((Path(done.folder) / "preflight" / "report.json").read_text())
    assert report["samples"]
    for sample in report["samples"]:
        student, teacher = sample["student_context"], sample["teacher_context"]
        assert teacher["references"] == student["references"] + 1 >= 2
    dump = Path(done.folder) / "debug/trajectories/step000000-mb000.safetensors"
    tensors, _ = unpack(dump.read_bytes())
    lengths = [tensors[f"{role}.reference_lengths"] for role in ("student", "teacher")]
    assert (lengths[1] - lengths[0] == 64).all(), "the target, 32 x 32 pixels"
    assert sorted(lengths[0].tolist())[0] == 6 * 10
    assert "reference pictures" in Path(done.page).read_text(encoding="utf-8")
