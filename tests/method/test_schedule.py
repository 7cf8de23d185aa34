"""Few-step sigmas against the stock scheduler and the authors' figures."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dopsd.method.schedule import clean_estimate, euler_step, scheduler_sigmas, with_final_zero


def test_the_scheduler_is_not_changed() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    before = copy.deepcopy(scheduler.__dict__)
    scheduler_sigmas(scheduler, [1.0, 0.5], mu=0.5)
    after = scheduler.__dict__
    assert after.keys() == before.keys()
    assert torch.equal(after["sigmas"], before["sigmas"])
    assert torch.equal(after["timesteps"], before["timesteps"])
    assert after["_step_index"] == before["_step_index"]


def test_dynamic_shifting_takes_mu() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    unshifted = torch.tensor([1.0, 0.75, 0.5, 0.25])
    mu = 0.9
    expected = torch.exp(torch.tensor(mu)) / (torch.exp(torch.tensor(mu)) + (1 / unshifted - 1))
    sigmas = scheduler_sigmas(scheduler, unshifted.tolist(), mu)
    torch.testing.assert_close(sigmas, torch.cat([expected, torch.zeros(1)]), atol=1e-6, rtol=0)
    assert not torch.allclose(sigmas, scheduler_sigmas(scheduler, unshifted.tolist(), 0.1))


def test_given_sigmas_end_in_zero() -> None:
    assert with_final_zero([1.0, 0.5]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("sigma", [1.0, 0.75, 0.3])
def test_a_straight_path_is_followed_exactly(sigma: float) -> None:
    """Along x_sigma = (1 - sigma) x0 + sigma eps, one step of u = eps - x0 is exact."""
    image, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    at = torch.tensor(sigma)
    state, velocity = (1 - at) * image + at * noise, noise - image
    torch.testing.assert_close(clean_estimate(state, velocity, at), image, atol=1e-6, rtol=1e-5)
    for target in (0.0, 0.2):
        moved = euler_step(state, velocity, at, torch.tensor(target))
        expected = (1 - target) * image + target * noise
        torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-5)
