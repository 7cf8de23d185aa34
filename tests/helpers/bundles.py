"""Bundles of made-up weights, as a learner publishes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import BUCKET
from dopsd.policy.bundle import Bundle
from dopsd.records import pack


def made_bundle(
    version: int,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    put: Callable[[bytes], Any] = bytes,
) -> Bundle:
    """Of both adapters, cast to ``dtype``; ``put`` stores bytes, as ray.put does."""
    refs, checksums = {}, {}
    for adapter, state in ((STUDENT, student), (TEACHER, teacher)):
        cast = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
        refs[adapter] = put(pack(cast, {"version": version, "adapter": adapter}))
        checksums[adapter] = checksum(cast)
    return Bundle(version, refs, checksums, len(student))


def pack_bucket(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """A bucket as it travels, and its checksum."""
    return pack(tensors, {"record": BUCKET}), checksum(tensors)
