"""Noise is a function of (seed, step, sample id) and nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from dopsd.method.noise import batch_noise, sample_noise

SHAPE = (4, 6, 10)


def test_anybody_with_numpy_can_draw_it_again() -> None:
    key = hashlib.blake2b(b"7/12/cat/0.png", digest_size=16).digest()
    philox = np.random.Philox(counter=0, key=int.from_bytes(key, "little"))
    expected = np.random.Generator(philox).standard_normal(SHAPE, dtype=np.float32)
    noise = sample_noise(7, 12, "cat/0.png", SHAPE)
    assert noise.dtype == torch.float32
    assert np.array_equal(noise.numpy(), expected)


def test_it_ignores_every_other_source_of_randomness() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = sample_noise(0, 3, "a", SHAPE)
    torch.manual_seed(2)
    np.random.seed(2)
    sample_noise(5, 5, "b", SHAPE)
    assert torch.equal(first, sample_noise(0, 3, "a", SHAPE))


@pytest.mark.parametrize("other", [(1, 3, "a"), (0, 4, "a"), (0, 3, "b"), (0, 3, "A")])
def test_it_differs_when_any_part_differs(other: tuple[int, int, str]) -> None:
    first, second = sample_noise(0, 3, "a", SHAPE), sample_noise(*other, SHAPE)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 0.3


def test_a_batch_is_its_samples_in_any_company() -> None:
    together = batch_noise(0, 1, ("a", "b", "c"), SHAPE)
    assert together.shape == (3, *SHAPE)
    assert torch.equal(together[1], sample_noise(0, 1, "b", SHAPE))
    assert torch.equal(batch_noise(0, 1, ("c", "a"), SHAPE), together[[2, 0]])


def test_it_is_standard_normal() -> None:
    draws = batch_noise(3, 0, tuple(str(i) for i in range(200)), (4, 16, 16)).double()
    count = draws.numel()
    assert abs(draws.mean()) < 4 / count**0.5
    assert abs(draws.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((draws**4).mean() - 3) < 4 * (96 / count) ** 0.5
