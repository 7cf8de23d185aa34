"""The baselines' batches against their formulas, written out per sample and state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dopsd.method.noise import batch_noise, batch_uniform
from dopsd.method.off_policy import flow_matching, teacher_at_noised, teacher_path, training_levels
from dopsd.method.terms import target_terms
from dopsd.records import Context

K, B, SHAPE = 3, 2, (4, 2, 6)
SCHEDULE = torch.tensor([1.0, 0.8, 0.5, 0.0])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def teacher(state: Tensor, sigma: Tensor) -> Tensor:
    """Depends on state and level, row by row."""
    return torch.tanh(state) * sigma.view(-1, 1, 1, 1) + 0.1


def test_flow_matching_is_noise_minus_image_at_each_samples_own_level() -> None:
    clean, noise = draw(B, *SHAPE), draw(K, B, *SHAPE)
    sigmas = torch.tensor([[0.9, 0.2], [0.5, 0.4], [0.1, 0.7]])
    found = flow_matching(clean, noise, sigmas)
    for k in range(K):
        for b in range(B):
            level = float(sigmas[k, b])
            expected = clean[b] * (1 - level) + noise[k, b] * level
            torch.testing.assert_close(found.states[k, b], expected)
            torch.testing.assert_close(found.velocity[k, b], noise[k, b] - clean[b])
    assert found.weight.tolist() == [1.0] * K


@pytest.mark.parametrize(("weighting", "power"), [("x0", 2), ("velocity", 0)])
def test_the_teacher_is_asked_at_noised_targets(weighting, power) -> None:
    clean, noise = draw(B, *SHAPE), draw(K, B, *SHAPE)
    found = teacher_at_noised(clean, noise, SCHEDULE[:-1], teacher, weighting)
    for k, sigma in enumerate(SCHEDULE[:-1].tolist()):
        state = clean * (1 - sigma) + noise[k] * sigma
        torch.testing.assert_close(found.states[k], state)
        torch.testing.assert_close(found.velocity[k], torch.tanh(state) * sigma + 0.1)
        assert float(found.weight[k]) == pytest.approx(sigma**power)


def test_the_teachers_own_path_is_its_euler_steps() -> None:
    noise = draw(B, *SHAPE)
    found, finished = teacher_path(noise, SCHEDULE, teacher, "x0")
    state = noise
    for k in range(K):
        now, after = float(SCHEDULE[k]), float(SCHEDULE[k + 1])
        velocity = torch.tanh(state) * now + 0.1
        torch.testing.assert_close(found.states[k], state)
        torch.testing.assert_close(found.velocity[k], velocity)
        state = state - (now - after) * velocity
    torch.testing.assert_close(finished, state)


def test_levels_are_uniform_in_the_schedules_own_time() -> None:
    schedule = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    uniform = torch.tensor([[0.0, 0.24], [0.25, 0.6], [0.75, 1 - 2**-24]])
    expected = torch.tensor([[1.0, 1.0], [0.9, 0.75], [0.5, 0.5]])
    assert torch.equal(training_levels(uniform, schedule), expected)


def test_uniform_draws_are_one_a_slice_and_a_matter_of_the_sample_alone() -> None:
    names = tuple(str(number) for number in range(500))
    drawn = batch_uniform(0, 3, names, 4)
    assert drawn.shape == (4, 500)
    for k in range(4):
        assert k / 4 <= float(drawn[k].min()) < float(drawn[k].max()) < (k + 1) / 4
        assert float(drawn[k].mean()) == pytest.approx((k + 0.5) / 4, abs=0.02)
    assert torch.equal(batch_uniform(0, 3, ("7",), 4)[:, 0], drawn[:, 7])
    assert not torch.equal(batch_uniform(0, 4, ("7",), 4)[:, 0], drawn[:, 7])


def test_noised_states_share_the_first_noise_with_a_rollout() -> None:
    """A baseline's roll-out starts where `dopsd`'s does: one counter, drawn further."""
    assert torch.equal(
        batch_noise(1, 2, ("a",), (K + 1, *SHAPE))[:, 0], batch_noise(1, 2, ("a",), SHAPE)
    )


def test_terms_carry_a_level_for_each_sample() -> None:
    found = flow_matching(draw(B, *SHAPE), draw(K, B, *SHAPE), torch.rand(K, B))
    terms = list(target_terms(found, Context({"lengths": torch.ones(B, dtype=torch.long)})))
    assert len(terms) == K
    assert torch.equal(terms[1].sigma, found.sigmas[1]) and terms[1].sigma.shape == (B,)
    assert torch.equal(terms[2].state, found.states[2])
