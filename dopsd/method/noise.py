"""Counter-based noise: a pure function of (seed, step, sample), never of worker or device."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def sample_noise(seed: int, step: int, sample_id: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one sample, float32 on the CPU.

    Philox-4x64 keyed by the first 16 bytes of BLAKE2b(``"{seed}/{step}/{sample_id}"``), counter
    0: anybody with numpy can draw it again.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{sample_id}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def batch_noise(
    seed: int, step: int, sample_ids: tuple[str, ...], shape: tuple[int, ...]
) -> Tensor:
    """Noise of a micro-batch: [B, *shape] float32 on the CPU."""
    return torch.stack([sample_noise(seed, step, name, shape) for name in sample_ids])
