"""Every objective: what its batches hold, and that both sources agree."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.sample import Sample
from dopsd.export import lora_metadata
from dopsd.learner.sources import DisaggregatedSource, FusedSource
from dopsd.method.noise import batch_noise, batch_uniform
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import TEACHER
from dopsd.records import Context, EncodedBatch, SampleInfo
from dopsd.rollout.baselines import baseline_targets
from dopsd.rollout.worker import InferenceWorker
from tests.helpers.bundles import made_bundle
from tests.helpers.tiny import make_config, random_image, random_state


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


TAUGHT = {
    "noised": {"objective": "off_policy"},
    "teacher-path": {"objective": "off_policy", "off_policy_states": "teacher"},
    "sft-on-teacher": {"objective": "sft_on_teacher"},
}
"""Objectives with a teacher, in which the student does not roll out."""


@pytest.mark.parametrize("method", TAUGHT.values(), ids=TAUGHT)
def test_a_teacher_worker_and_a_fused_learner_make_the_same_terms(method, encoded) -> None:
    """Both with random adapters: weights, states, targets and the contexts that are trained."""
    config, family, batch, _ = encoded(**method)
    batch.mask = torch.zeros(2, 32, 48, dtype=torch.uint8)
    batch.mask[:, :16] = 255
    block = pa.table({"payload": [batch.to_bytes()]})
    worker = InferenceWorker(config, "cpu", (TEACHER,))
    teacher = random_state(worker.trained.parameters(worker.transformer, TEACHER), 1)
    worker.load(7, made_bundle(7, {}, teacher).refs[TEACHER])
    payload, _ = worker.teach(7, block)
    device = torch.device("cpu")
    apart = DisaggregatedSource(lambda step: iter([(payload, True)]), device, torch.float32)

    def velocity(state, sigma, tensors) -> torch.Tensor:
        with torch.no_grad():
            return family.velocity(worker.transformer, state, sigma, Context(tensors))

    engine = SimpleNamespace(student=SimpleNamespace(family=family), teacher_velocity=velocity)
    fused = FusedSource(config, lambda step: iter([(block, True)]), engine, device, None)
    (one,), (other,) = apart(7), fused(7)
    assert one.info.step_samples == other.info.step_samples
    assert one.info.sample_ids == other.info.sample_ids
    pairs = list(zip(one.terms, other.terms, strict=True))
    assert len(pairs) == config.method.steps
    for first, second in pairs:
        for name in ("state", "sigma", "target", "weight"):
            torch.testing.assert_close(
                getattr(first, name), getattr(second, name), atol=1e-5, rtol=1e-5, msg=name
            )
        assert first.context.tensors.keys() == second.context.tensors.keys()
        assert all(
            torch.equal(tensor, second.context.tensors[name])
            for name, tensor in first.context.tensors.items()
        )
        assert (
            torch.equal(first.mask, second.mask) and first.mask.shape[2:] == first.state.shape[2:]
        )
        assert (
            first.mask.chunk(2, 2)[0].unique().tolist() == [2]
            and not first.mask.chunk(2, 2)[1].any()
        )
        # A teacher that is not heard of would leave the base's own velocity.
        assert first.target.abs().max() > 0


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
