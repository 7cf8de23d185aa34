"""Student and teacher weights as one versioned bundle, and the acknowledgement of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopsd.errors import AcknowledgementError
from dopsd.models.lora import STUDENT, TEACHER, checksum
from dopsd.records import pack, unpack


@dataclass(frozen=True)
class Bundle:
    """Weights after ``version`` optimizer steps: a reference to safetensors bytes per adapter, or,
    of whole models (``streamed``), a tuple of references, one per bucket.

    Tensors are in the inference dtype already, so that ``checksums`` (SHA-256 per adapter, or per
    bucket under ``bucket_key``) can be compared with what a worker has bound. A worker fetches the
    adapters of its role only.
    """

    version: int
    refs: dict[str, Any]
    checksums: dict[str, str]
    modules: int
    """Number of tensors of each adapter."""
    streamed: bool = False
    teacher_version: int | None = None
    """Where the teacher is published less often than the student: the teacher's own version."""

    @classmethod
    def create(
        cls,
        version: int,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        dtype: torch.dtype,
        put: Callable[[bytes], Any],
    ) -> Bundle:
        """From fp32 master weights of both adapters; ``put`` stores bytes, as ray.put does."""
        refs, checksums = {}, {}
        for adapter, state in ((STUDENT, student), (TEACHER, teacher)):
            cast = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
            refs[adapter] = put(pack(cast, {"version": version, "adapter": adapter}))
            checksums[adapter] = checksum(cast)
        return cls(version, refs, checksums, len(student))

    @classmethod
    def restored(
        cls, version: int, payloads: dict[str, bytes], put: Callable[[bytes], Any]
    ) -> Bundle:
        """From the payloads of an earlier bundle, as a checkpoint keeps them."""
        refs, checksums, modules = {}, {}, 0
        for adapter, payload in payloads.items():
            written, state = read_payload(payload, adapter)
            assert written == version, f"payload of version {written}, expected {version}"
            refs[adapter], checksums[adapter], modules = put(payload), checksum(state), len(state)
        return cls(version, refs, checksums, modules)


def read_payload(payload: bytes, adapter: str) -> tuple[int, dict[str, Tensor]]:
    """(version, tensors) of one adapter's payload."""
    tensors, meta = unpack(payload)
    assert meta["adapter"] == adapter, f"payload of {meta['adapter']}, expected {adapter}"
    return int(meta["version"]), tensors


@dataclass(frozen=True)
class Acknowledgement:
    """What a worker has bound, read back from its model's parameters."""

    version: int
    checksums: dict[str, str]
    modules: int


def check_acknowledgement(bundle: Bundle, ack: Acknowledgement, worker: str) -> None:
    """Raises AcknowledgementError when ``worker`` bound anything else than ``bundle``."""
    problems = []
    if ack.version != bundle.version:
        problems.append(f"version {ack.version}, published {bundle.version}")
    if ack.modules != bundle.modules:
        problems.append(f"{ack.modules} tensors, published {bundle.modules}")
    for adapter, bound in ack.checksums.items():
        published = bundle.checksums.get(adapter, "nothing")
        if bound != published:
            problems.append(f"{adapter} checksum {bound[:12]}, published {published[:12]}")
    if problems:
        raise AcknowledgementError(f"{worker} acknowledged {'; '.join(problems)}")
