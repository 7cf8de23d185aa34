"""Counter-based noise: a pure function of (seed, step, sample), never of worker or device."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class NoisePurpose(IntEnum):
    """What noise is for, in place of a training step: the same sample gets other noise for each."""

    PREVIEW = -1
    """Pictures of the run page and the contact sheet."""
    EVALUATION = -2
    """Pictures that are scored; the sample is the prompt."""
    PRIOR = -3
    """The base's own samples that a run trains on; never those that it is scored by."""
    PREFLIGHT = -1000
    """The look before training; its n-th noise is that of -1000 - n."""


def sample_noise(seed: int, step: int, sample_id: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one sample, float32 on the CPU.

    Philox-4x64 keyed by the first 16 bytes of BLAKE2b(``"{seed}/{step}/{sample_id}"``), counter
    0: anybody with numpy can draw it again.
    """
    return torch.from_numpy(
        _generator(seed, step, sample_id).standard_normal(shape, dtype=np.float32)
    )


def _generator(seed: int, step: int, sample_id: str, purpose: bytes = b"") -> np.random.Generator:
    key = f"{seed}/{int(step)}/{sample_id}".encode()
    digest = hashlib.blake2b(key, digest_size=16, person=purpose).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def batch_noise(
    seed: int, step: int, sample_ids: tuple[str, ...], shape: tuple[int, ...]
) -> Tensor:
    """Noise of a micro-batch: [B, *shape] float32 on the CPU."""
    return torch.stack([sample_noise(seed, step, name, shape) for name in sample_ids])


def batch_uniform(seed: int, step: int, sample_ids: tuple[str, ...], count: int) -> Tensor:
    """``count`` numbers in [0, 1) for each sample, one from each equal slice: [count, B] float32.

    Drawn as the noise is, under BLAKE2b's personalisation ``sigma``: independent of it.
    """
    slices = np.arange(count, dtype=np.float32)
    rows = [
        (slices + _generator(seed, step, name, b"sigma").random(count, dtype=np.float32)) / count
        for name in sample_ids
    ]
    # Rounding must not reach 1.
    return torch.from_numpy(np.stack(rows, 1)).clamp(max=1 - 2**-24)
