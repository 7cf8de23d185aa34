"""Whole runs of every objective: what each batch holds, and that both sources agree."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.driver.summary import Summary
from dopsd.driver.train import train
from dopsd.export import lora_metadata
from dopsd.learner.sources import FusedSource
from dopsd.method.noise import batch_noise, batch_uniform
from dopsd.models import FAMILIES
from dopsd.records import EncodedBatch, SampleInfo
from dopsd.rollout.baselines import baseline_targets
from tests.loras import read_lora
from tests.tiny import make_config, random_image

STEPS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        Image.fromarray(random_image(32, 32, number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat, number {number}")
    return folder


@pytest.fixture(scope="module")
def run(tiny_base, images, tmp_path_factory, ray_cluster):
    def start(source: str, **method) -> Summary:
        config = make_config(
            tiny_base,
            run={"folder": str(tmp_path_factory.mktemp("run")), "seed": 3},
            data={"source": str(images), "pixel_area": 1024, "bucket_multiple": 8},
            lora={"rank": 4, "alpha": 8},
            encoder={"cpus": 0.2},
            rollout={"cpus": 0.2},
            teacher={"cpus": 0.2},
            learner={"cpus": 0.3, "steps": STEPS, "global_batch": 4, "micro_batch": 2, "lr": 1e-3},
            method={"ema_decay": 0.9, **method},
            preview={"samples": 0},
            preflight={"mode": "off"},
            source=source,
        )
        return train(config, lambda phase, status: None)

    return start


def adapter(summary: Summary, name: str = "lora") -> dict[str, torch.Tensor]:
    return read_lora(str(Path(summary.folder) / f"{name}.safetensors"))


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def ups(weights: dict[str, torch.Tensor]) -> float:
    return max(float(t.abs().max()) for name, t in weights.items() if ".lora_B." in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"objective": "off_policy"},
        {"objective": "off_policy", "off_policy_states": "teacher"},
        {"objective": "sft_on_teacher"},
    ],
    ids=["noised", "teacher-path", "sft-on-teacher"],
)
def test_sources_agree_on_objectives_with_a_teacher(method, run) -> None:
    apart, fused = run("disaggregated", **method), run("fused", **method)
    assert ups(adapter(apart)) > 0
    assert difference(adapter(apart), adapter(fused)) < 1e-5
    lines = [
        json.loads(line) for line in (Path(apart.folder) / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == STEPS and all(line["teacher_seconds"] > 0 for line in lines)
    assert not any(key.startswith("rollout") for key in lines[0])


@pytest.mark.slow
def test_sft_learns_without_a_teacher(run) -> None:
    done = run("fused", objective="sft")
    assert ups(adapter(done)) > 0 and done.first_loss > 0


@pytest.mark.slow
def test_the_teachers_weights_are_the_base_or_the_student(run) -> None:
    frozen = run("fused", teacher="frozen")
    assert ups(adapter(frozen)) > 0 and ups(adapter(frozen, "teacher_lora")) == 0
    live = run("fused", teacher="live")
    assert difference(adapter(live), adapter(live, "teacher_lora")) == 0


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ({"objective": "sft"}, "sft K=4 weighting=x0 lr="),
        (
            {"objective": "off_policy", "off_policy_states": "teacher", "teacher": "frozen"},
            "off_policy off_policy_states=teacher K=4 weighting=x0 teacher=frozen ",
        ),
    ],
)
def test_the_recipe_names_what_the_objective_has(method, recipe) -> None:
    config = make_config("base", method=method, source="fused")
    manifest = SimpleNamespace(fingerprint="f")
    assert lora_metadata(config, manifest)["dopsd.recipe"].startswith(recipe)


@pytest.fixture
def encoded(tiny_base):
    """A config of an objective and one micro-batch as its stream would deliver it."""

    def make(**method) -> tuple:
        config = make_config(tiny_base, method={"steps": 2, **method}, source="fused")
        names, prompts = ("a", "b"), ["a red cat", "a dog"]
        pictures = [random_image(32, 48, number) for number in range(2)]
        encoder = TrainingEncoderFactory(config, "cpu")()
        samples = [Sample(*each) for each in zip(names, prompts, pictures)]
        student, teacher, target = encoder.encode(samples)
        info = SampleInfo(7, 0, names, tuple(prompts), 32, 48, 2)
        family = FAMILIES["z_image"](str(tiny_base))
        return config, family, EncodedBatch(info, student, teacher, target), pictures

    return make


def test_targets_are_the_vaes_own_latents(encoded) -> None:
    config, family, batch, pictures = encoded(objective="sft")
    assert batch.teacher is None
    vae = family.load_pipeline(torch.float32, "cpu", text_encoder=False).vae
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
    expected = (mode - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(batch.target, expected)
    assert torch.equal(EncodedBatch.from_bytes(batch.to_bytes()).target, batch.target)

    targets, drawn = baseline_targets(config, family, batch, None, "cpu")
    noise = batch_noise(config.run.seed, 7, ("a", "b"), (3, *batch.target.shape[1:]))
    table = family.sigmas(1000, 32, 48)
    levels = table[(batch_uniform(config.run.seed, 7, ("a", "b"), 2) * 1000).long()]
    assert drawn is None and torch.equal(targets.sigmas, levels)
    for k in range(2):
        level = levels[k].view(2, 1, 1, 1)
        state = (1 - level) * batch.target + level * noise[:, k + 1]
        torch.testing.assert_close(targets.states[k], state)
        torch.testing.assert_close(targets.velocity[k], noise[:, k + 1] - batch.target)


def test_a_fused_baselines_teacher_runs_when_a_term_is_asked_for(encoded) -> None:
    config, family, batch, _ = encoded(objective="off_policy", off_policy_states="teacher")
    forwards = []

    def velocity(state: torch.Tensor, *arguments) -> torch.Tensor:
        forwards.append(state)
        return state

    engine = SimpleNamespace(student=SimpleNamespace(family=family), teacher_velocity=velocity)
    block = pa.table({"payload": [batch.to_bytes()]})
    device = torch.device("cpu")
    source = FusedSource(config, lambda step: iter([(block, True)]), engine, device, None)
    (micro,) = source(7)
    assert forwards == [], "the learner's clock is not running yet"
    assert len(list(micro.terms)) == len(forwards) == 2


def test_sft_on_teacher_noises_what_the_teacher_drew(encoded) -> None:
    config, family, batch, _ = encoded(objective="sft_on_teacher")
    assert batch.target is None

    def teacher(state: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return state - 0.5 * sigma.view(-1, 1, 1, 1)

    targets, drawn = baseline_targets(config, family, batch, teacher, "cpu")
    shape = family.latent_shape(32, 48)
    state = batch_noise(config.run.seed, 7, ("a", "b"), shape)
    grid = family.sigmas(2, 32, 48)
    for now, after in zip(grid[:-1], grid[1:]):
        state = state + (after - now) * (state - 0.5 * now)
    torch.testing.assert_close(drawn, state)
    noise = batch_noise(config.run.seed, 7, ("a", "b"), (3, *shape))
    torch.testing.assert_close(targets.velocity[0], noise[:, 1] - state)
