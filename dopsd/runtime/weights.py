"""Student and teacher weights as one versioned bundle, and the acknowledgement of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopsd.errors import AcknowledgementError
from dopsd.models.lora import STUDENT, TEACHER, checksum
from dopsd.types import pack, unpack


@dataclass(frozen=True)
class Bundle:
    """Weights after ``version`` optimizer steps, as safetensors bytes per adapter.

    Tensors are in the inference dtype already, so that ``checksums`` (SHA-256 per adapter) can
    be compared with what a worker has bound.
    """

    version: int
    payloads: dict[str, bytes]
    checksums: dict[str, str]
    modules: int
    """Number of tensors of each adapter."""

    @classmethod
    def create(
        cls,
        version: int,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        dtype: torch.dtype,
    ) -> Bundle:
        """From fp32 master weights of both adapters."""
        payloads, checksums = {}, {}
        for adapter, state in ((STUDENT, student), (TEACHER, teacher)):
            cast = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
            payloads[adapter] = pack(cast, {"version": version, "adapter": adapter})
            checksums[adapter] = checksum(cast)
        return cls(version, payloads, checksums, len(student))


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
    for adapter, found in ack.checksums.items():
        if found != bundle.checksums[adapter]:
            problems.append(
                f"{adapter} checksum {found[:12]}, published {bundle.checksums[adapter][:12]}"
            )
    if problems:
        raise AcknowledgementError(f"{worker} acknowledged {'; '.join(problems)}")
