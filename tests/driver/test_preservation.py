"""Differential output preservation: nothing at a LoRA's beginning, then what is written out here,
from both sources."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.read import READ_SCHEMA
from dopsd.data.sample import Sample
from dopsd.data.stream.block import load_encoded
from dopsd.data.stream.pipeline import encode_micro_batch
from dopsd.driver.train import train
from dopsd.learner.sources import DisaggregatedSource, FusedSource
from dopsd.method.noise import batch_noise
from dopsd.method.objective import state_loss
from dopsd.method.terms import Terms
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import BASE, STUDENT, TEACHER, activate
from dopsd.records import Context, EncodedBatch, SampleInfo, TrainingBatch
from dopsd.rollout.worker import InferenceWorker
from dopsd.run_folder.trajectories import trajectory_record
from tests.helpers.bundles import made_bundle
from tests.helpers.runs import metrics, quiet, run_config, write_images
from tests.helpers.tiny import make_config, random_image, random_state

STEPS, WEIGHT = 2, 3.0
NAMES, PROMPTS = ("a", "b"), ("a red [V]", "a dog")
CLASS_PROMPTS = ("a red cat", "a dog")
SIZE = (32, 48)


class World:
    """One micro-batch of two samples, of which the first has the token, and a worker with both
    adapters on one base."""

    def __init__(self, base) -> None:
        preservation = {"class_word": "cat", "weight": WEIGHT}
        self.config = make_config(
            base,
            method={"steps": STEPS},
            data={"source": "unused", "preservation": preservation},
            lora={"rank": 4, "alpha": 8},
        )
        samples = [
            Sample(*each, class_prompt=kept)
            for *each, kept in zip(NAMES, PROMPTS, map(picture, range(2)), CLASS_PROMPTS)
        ]
        self.encoder = TrainingEncoderFactory(self.config, "cpu")()
        student, teacher, _ = self.encoder.encode(samples)
        info = SampleInfo(7, 0, NAMES, PROMPTS, *SIZE, 4, class_prompts=CLASS_PROMPTS)
        self.kept = self.encoder.encode_class(samples)
        self.batch = EncodedBatch(info, student, teacher, class_student=self.kept)
        self.block = pa.table({"payload": [self.batch.to_bytes()]})
        self.family = FAMILIES["z_image"](str(base))
        self.worker = InferenceWorker(self.config, "cpu", (STUDENT, TEACHER))
        self.transformer = self.worker.transformer
        self.own = self.worker.trained.parameters(self.transformer, STUDENT)
        self.zero = {name: tensor.detach().clone() for name, tensor in self.own.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Student and teacher of version 7; the teacher is another in any case."""
        refs = made_bundle(7, weights, random_state(self.zero, 5)).refs
        self.worker.load(7, refs[STUDENT], refs[TEACHER])
        for parameter in self.own.values():
            parameter.requires_grad_(True)

    def velocity(self, adapter: str, state: Tensor, sigma: Tensor, tensors: dict) -> Tensor:
        activate(self.transformer, adapter)
        return self.family.velocity(self.transformer, state, sigma, Context(tensors))

    def fused(self) -> Terms:
        @torch.no_grad()
        def teacher(*inputs) -> Tensor:
            return self.velocity(TEACHER, *inputs)

        @torch.no_grad()
        def base(*inputs) -> Tensor:
            return self.velocity(BASE, *inputs)

        student = SimpleNamespace(family=self.family)
        engine = SimpleNamespace(student=student, teacher_velocity=teacher, base_velocity=base)
        one = [(self.block, True)]
        (micro,) = FusedSource(self.config, lambda _: iter(one), engine, torch.device("cpu"), None)(
            7
        )
        return micro.terms

    def apart(self) -> Terms:
        payload, _ = self.worker.generate_and_score(7, self.block)
        one = [(payload, True)]
        (micro,) = DisaggregatedSource(lambda _: iter(one), torch.device("cpu"), torch.float32)(7)
        return micro.terms

    def trained(self, terms: Terms) -> tuple[list[bool], dict[str, Tensor]]:
        """Which terms preserve, and the gradients of those that do, as a learner makes them."""
        preserves, velocity = [], None
        self.transformer.zero_grad(set_to_none=True)
        while True:
            try:
                term = next(terms) if velocity is None else terms.send(velocity)
            except StopIteration:
                gradients = {name: p.grad.clone() for name, p in self.own.items()}
                self.transformer.zero_grad(set_to_none=True)
                return preserves, gradients
            sigma = term.sigma.expand(2)
            velocity = self.velocity(STUDENT, term.state, sigma, term.context.tensors)
            if term.preserves:
                assert term.mask is None
                losses = state_loss(velocity, term.target, term.weight)
                (losses.sum() / (self.batch.info.step_samples * STEPS)).backward()
            preserves.append(term.preserves)
            velocity = velocity.detach()

    def written_out(self) -> dict[str, Tensor]:
        """The gradients of the same, on a base of its own that never had an adapter."""
        base = self.family.load_transformer(torch.float32, "cpu")
        sigmas = self.family.sigmas(STEPS, *SIZE)
        shape = self.family.latent_shape(*SIZE)
        state, total = batch_noise(self.config.run.seed, 7, NAMES, shape), torch.zeros(())
        for sigma, after in zip(sigmas[:-1], sigmas[1:]):
            level = sigma.expand(2)
            mine = self.velocity(STUDENT, state, level, self.kept.tensors)
            with torch.no_grad():
                its = self.family.velocity(base, state, level, self.kept)
            clean = (state - sigma * mine) - (state - sigma * its)
            total = total + clean[0].square().mean()  # of the one that has the token
            state = (state + (after - sigma) * mine).detach()
        (WEIGHT * total / (self.batch.info.step_samples * STEPS)).backward()
        gradients = {name: p.grad.clone() for name, p in self.own.items()}
        self.transformer.zero_grad(set_to_none=True)
        return gradients


def picture(number: int):
    return random_image(*SIZE, number)


@pytest.fixture(scope="module")
def world(tiny_base) -> World:
    return World(tiny_base)


def test_a_lora_that_begins_is_the_base_and_moves_nowhere(world: World) -> None:
    world.load(world.zero)
    preserves, gradients = world.trained(world.fused())
    assert preserves == [False] * STEPS + [True] * STEPS
    assert all(not gradient.any() for gradient in gradients.values())
    _, gradients = world.trained(world.apart())  # its base sees all states as one batch
    assert max(gradient.abs().max() for gradient in gradients.values()) < 1e-5


def test_after_a_step_both_sources_pull_to_the_base_as_written_out(world: World) -> None:
    world.load(random_state(world.zero, 3))
    expected = world.written_out()
    assert min(gradient.abs().max() for gradient in expected.values()) > 1e-5
    for source in (world.fused, world.apart):
        preserves, gradients = world.trained(source())
        assert preserves == [False] * STEPS + [True] * STEPS
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_concepts_own_terms_are_those_of_a_run_that_preserves_nothing(world: World) -> None:
    world.load(random_state(world.zero, 3))
    plain = EncodedBatch(
        SampleInfo(7, 0, NAMES, PROMPTS, *SIZE, 4), world.batch.student, world.batch.teacher
    )
    block = pa.table({"payload": [plain.to_bytes()]})
    alone, _ = world.worker.generate_and_score(7, block)
    one = [(alone, True)]
    (micro,) = DisaggregatedSource(lambda _: iter(one), torch.device("cpu"), torch.float32)(7)
    wanted = list(micro.terms)
    for first, second in zip(wanted, world.apart()):
        for name in ("state", "sigma", "target", "weight"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    scored, _ = world.worker.generate_and_score(7, world.block)
    dumps = [
        trajectory_record(world.config, batch, TrainingBatch.from_bytes(payload))
        for batch, payload in ((plain, alone), (world.batch, scored))
    ]
    assert len(dumps[1]) - len(dumps[0]) < 100, "the class prompts' texts alone are more"


def test_the_stream_encodes_class_prompts_beside_the_prompts(world: World) -> None:
    values = {
        "step": 7,
        "index": 0,
        "step_samples": 4,
        "sample_ids": list(NAMES),
        "repeats": [0, 0],
        "prompts": list(PROMPTS),
        "teacher_prompts": None,
        "class_prompts": list(CLASS_PROMPTS),
        "height": SIZE[0],
        "width": SIZE[1],
        "pixels": b"".join(picture(number).tobytes() for number in range(2)),
        "pictured": [True, True],
        "references": [[], []],
        "mask": None,
    }
    read = pa.Table.from_pylist([values], schema=READ_SCHEMA)
    batch = load_encoded(encode_micro_batch(read, world.encoder))
    assert batch.class_student is not None
    assert torch.equal(batch.class_student.tensors["embeds"], world.kept.tensors["embeds"])
    assert batch.info.preserved.tolist() == [1, 0]


@pytest.mark.nightly
@pytest.mark.integration
def test_whole_runs_preserve_from_the_second_step_on(ray_cluster, tiny_base, tmp_path) -> None:
    """Fused and disaggregated, with the accumulation of a step that has twice the terms."""
    images = write_images(tmp_path / "images", [(32, 32)] * 6)
    lines = []
    for source in ("fused", "disaggregated"):
        preservation = {"class_word": "animal", "weight": WEIGHT}
        data = {"token": "cat", "preservation": preservation}
        learner = {"steps": 3, "lr": 1e-3}
        config = run_config(
            tiny_base, tmp_path / source, images, source=source, data=data, learner=learner
        )
        lines.append(metrics(train(config, quiet)))
    for first, second in zip(*lines, strict=True):
        for name in ("loss", "preservation_loss", "grad_norm"):
            assert first[name] == pytest.approx(second[name], rel=1e-2, abs=1e-7), name
        assert first["preservation_loss"] < first["loss"]
    kept = [line["preservation_loss"] for line in lines[0]]
    assert kept[0] == 0.0 < min(kept[1:])
