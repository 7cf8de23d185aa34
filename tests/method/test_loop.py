"""The method against docs/method.md written out plainly: one loop, one backward."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dopsd.method.objective import Weighting, loss_mask, state_loss, state_weights
from dopsd.method.rollout import rollout, score
from dopsd.method.terms import Terms, fused_terms, stored_terms
from dopsd.models import ZImage
from dopsd.models.lora.layers import (
    STUDENT,
    TEACHER,
    activate,
    adapter_parameters,
    bind_parameters,
    inject,
    resolve_targets,
)
from dopsd.records import Context, SampleInfo, TrainingBatch
from tests.helpers.tiny import HEIGHT, IMAGE_WIDTH, LATENT, make_context, random_state

STEPS = 4
BATCH = 3
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Setup:
    """A tiny student and teacher that differ, and a micro-batch with contexts of any length."""

    def __init__(self, base: Path) -> None:
        self.family = ZImage(str(base))
        self.transformer = self.family.load_transformer(torch.float32, "cpu")
        matched = resolve_targets(self.transformer, "default", ZImage.lora_targets)
        inject(self.transformer, matched, 4, 8, seed=0, adapters=(STUDENT, TEACHER))
        for seed, adapter in enumerate((STUDENT, TEACHER)):
            shapes = adapter_parameters(self.transformer, adapter)
            bind_parameters(shapes, random_state(shapes, seed))
        self.student = make_context((5, 40, 17), seed=1)
        self.teacher = make_context((60, 9, 33), seed=2)
        self.noise = torch.randn(BATCH, *LATENT, generator=torch.Generator().manual_seed(3))
        self.sigmas = self.family.sigmas(STEPS, HEIGHT, IMAGE_WIDTH)

    def velocity(self, adapter: str, context: Context, x: Tensor, sigma: Tensor) -> Tensor:
        activate(self.transformer, adapter)
        return self.family.velocity(self.transformer, x, sigma, context)

    @torch.no_grad()
    def teacher_velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        context = self.teacher.repeat(len(x) // BATCH)
        return self.velocity(TEACHER, context, x, sigma)

    def gradients(self) -> dict[str, Tensor]:
        """The student's gradients, which are then cleared; the teacher must have none."""
        for parameter in adapter_parameters(self.transformer, TEACHER).values():
            assert parameter.grad is None
        parameters = adapter_parameters(self.transformer, STUDENT)
        gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        assert gradients.keys() == parameters.keys()
        self.transformer.zero_grad(set_to_none=True)
        return gradients


@pytest.fixture(scope="module")
def setup(tiny_base: Path) -> Setup:
    return Setup(tiny_base)


def plain_loop(setup: Setup, weighting: Weighting) -> tuple[Tensor, dict[str, Tensor]]:
    """K graphs alive, one backward of the mean over states and samples; nothing of dopsd.method."""

    def network(adapter: str, x: Tensor, sigma: float, context: Context) -> Tensor:
        activate(setup.transformer, adapter)
        lengths = context.tensors["lengths"]
        features = [row[:n] for row, n in zip(context.tensors["embeds"], lengths)]
        time = torch.full((BATCH,), 1 - sigma)
        images = setup.transformer([image[:, None] for image in x], time, features).sample
        return -torch.stack([image[:, 0] for image in images])

    unshifted = [1 - k / STEPS for k in range(STEPS)]
    sigmas = [3 * s / (1 + 2 * s) for s in unshifted] + [0.0]
    x, losses = setup.noise, []
    for sigma, next_sigma in zip(sigmas, sigmas[1:]):
        u_s = network(STUDENT, x, sigma, setup.student)
        with torch.no_grad():
            u_t = network(TEACHER, x, sigma, setup.teacher)
        if weighting == "velocity":
            losses.append(((u_s - u_t) ** 2).mean(dim=(1, 2, 3)))
        else:
            x0_s, x0_t = x - sigma * u_s, x - sigma * u_t
            losses.append(((x0_s - x0_t) ** 2).mean(dim=(1, 2, 3)))
        x = (x + (next_sigma - sigma) * u_s).detach()
    table = torch.stack(losses)
    table.mean().backward()
    return table.detach(), setup.gradients()


def backward_per_state(
    setup: Setup, terms: Terms, batch: int = BATCH, total: int = BATCH
) -> Tensor:
    """What a learner does with a source of terms. Returns the losses [K, B]."""
    rows = []
    term = next(terms)
    while True:
        sigma = term.sigma.expand(batch)
        velocity = setup.velocity(STUDENT, term.context, term.state, sigma)
        losses = state_loss(velocity, term.target, term.weight)
        (losses.sum() / (STEPS * total)).backward()
        rows.append(losses.detach())
        try:
            term = terms.send(velocity.detach())
        except StopIteration:
            return torch.stack(rows)


def stored_batch(setup: Setup, weighting: Weighting, rows: slice = slice(None)) -> TrainingBatch:
    """Roll out, score all K states at once, and travel as bytes."""

    def cut(context: Context) -> Context:
        return Context({name: tensor[rows] for name, tensor in context.tensors.items()})

    student, teacher, noise = cut(setup.student), cut(setup.teacher), setup.noise[rows]
    states = rollout(partial(setup.velocity, STUDENT, student), noise, setup.sigmas)
    target = score(
        partial(setup.velocity, TEACHER, teacher.repeat(STEPS)), states[:-1], setup.sigmas[:-1]
    )
    batch = TrainingBatch(
        info=SampleInfo(0, 0, ("a",) * len(noise), ("",) * len(noise), 32, 48, BATCH),
        policy_version=0,
        teacher_version=0,
        states=states[:-1],
        sigmas=setup.sigmas[:-1],
        student=student,
        target_velocity=target,
        weight=state_weights(setup.sigmas[:-1], weighting),
    )
    return TrainingBatch.from_bytes(batch.to_bytes())


@pytest.mark.parametrize("weighting", ["x0", "velocity"])
def test_fused_and_stored_equal_the_plain_loop(setup: Setup, weighting: Weighting) -> None:
    losses, gradients = plain_loop(setup, weighting)
    # Guard against a vacuous comparison.
    assert losses.min() > 1e-3
    assert min(g.abs().max() for g in gradients.values()) > 1e-4

    terms = fused_terms(setup.noise, setup.sigmas, setup.student, setup.teacher_velocity, weighting)
    torch.testing.assert_close(backward_per_state(setup, terms), losses, **TOLERANCE)
    torch.testing.assert_close(setup.gradients(), gradients, **TOLERANCE)

    batch = stored_batch(setup, weighting)
    torch.testing.assert_close(backward_per_state(setup, stored_terms(batch)), losses, **TOLERANCE)
    torch.testing.assert_close(setup.gradients(), gradients, **TOLERANCE)


def test_micro_batches_add_up_to_the_whole_batch(setup: Setup) -> None:
    _, gradients = plain_loop(setup, "x0")
    for rows in (slice(0, 1), slice(1, 3)):
        batch = stored_batch(setup, "x0", rows)
        backward_per_state(setup, stored_terms(batch), batch=batch.states.shape[1])
    torch.testing.assert_close(setup.gradients(), gradients, **TOLERANCE)


def test_the_two_weightings_differ(setup: Setup) -> None:
    x0, _ = plain_loop(setup, "x0")
    velocity, _ = plain_loop(setup, "velocity")
    torch.testing.assert_close(x0, velocity * setup.sigmas[:-1, None] ** 2, **TOLERANCE)
    assert not torch.allclose(x0, velocity)


def test_the_rollout_starts_at_the_noise_and_keeps_no_graph(setup: Setup) -> None:
    velocity = partial(setup.velocity, STUDENT, setup.student)
    states = rollout(velocity, setup.noise, setup.sigmas)
    assert states.shape == (STEPS + 1, BATCH, *LATENT)
    assert states.dtype == torch.float32
    assert not states.requires_grad
    assert torch.equal(states[0], setup.noise)
    again = rollout(velocity, setup.noise, setup.sigmas)
    assert torch.equal(states, again)


def test_scoring_one_batch_equals_scoring_each_state(setup: Setup) -> None:
    """Also that contexts and sigmas meet the right states: all rows differ."""
    states = torch.randn(STEPS, BATCH, *LATENT)
    together = score(setup.teacher_velocity, states, setup.sigmas[:-1])
    for state, sigma, row in zip(states, setup.sigmas, together):
        alone = setup.teacher_velocity(state, sigma.expand(BATCH))
        torch.testing.assert_close(row, alone, **TOLERANCE)


def test_no_gradient_reaches_the_target() -> None:
    velocity = nn.Parameter(torch.ones(2, 1, 2, 2))
    target = nn.Parameter(torch.zeros(2, 1, 2, 2))
    losses = state_loss(velocity, target, torch.tensor(0.25))
    assert losses.tolist() == [0.25, 0.25]
    losses.sum().backward()
    assert target.grad is None
    assert velocity.grad is not None


def test_a_sample_counts_the_same_at_any_resolution() -> None:
    small, large = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 16, 16), 3.0)
    weight = torch.tensor(1.0)
    assert torch.equal(
        state_loss(small, torch.zeros_like(small), weight),
        state_loss(large, torch.zeros_like(large), weight),
    )


def test_gradient_checkpointing_recomputes_under_the_student(setup: Setup) -> None:
    """The teacher runs between the student's forwards; recomputation must not meet its adapter."""
    losses, gradients = plain_loop(setup, "x0")
    setup.transformer.enable_gradient_checkpointing()
    try:
        terms = fused_terms(setup.noise, setup.sigmas, setup.student, setup.teacher_velocity, "x0")
        torch.testing.assert_close(backward_per_state(setup, terms), losses, **TOLERANCE)
    finally:
        setup.transformer.disable_gradient_checkpointing()
    torch.testing.assert_close(setup.gradients(), gradients, **TOLERANCE)


def test_what_a_mask_leaves_out_has_neither_loss_nor_gradient():
    torch.manual_seed(0)
    velocity, target = torch.randn(2, 2, 3, 4, 6)
    pixels = torch.full((2, 32, 48), 255, dtype=torch.uint8)
    pixels[0, :, 16:] = 0
    mask = loss_mask(pixels, velocity.shape)
    assert mask[0, 0, 0].tolist() == [3, 3, 0, 0, 0, 0]
    velocity.requires_grad_()
    losses = state_loss(velocity, target, torch.tensor(0.5), mask)
    losses.sum().backward()
    # A sample counts as much as one that is no larger than its mask.
    kept = state_loss(velocity[:1, :, :, :2], target[:1, :, :, :2], torch.tensor(0.5))
    torch.testing.assert_close(losses[:1], kept)
    assert not velocity.grad[0, :, :, 2:].any() and velocity.grad[0, :, :, :2].all()
    # Where all counts, and without any mask, every bit is the same.
    plain = state_loss(velocity, target, torch.tensor(0.5))
    assert torch.equal(losses[1], plain[1])
    assert loss_mask(None, velocity.shape) is None
