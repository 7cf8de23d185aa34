"""Student and teacher weights as one versioned bundle, and the acknowledgement of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dopsd.errors import AcknowledgementError
from dopsd.models.checksum import checksum
from dopsd.records import unpack


@dataclass(frozen=True)
class Bundle:
    """Weights after ``version`` optimizer steps: a reference to safetensors bytes per adapter, or,
    of whole models (``streamed``), a tuple of references, one per bucket.

    Tensors are in the inference dtype already, so that ``checksums`` (per adapter, or per bucket
    under ``bucket_key``) can be compared with what a worker has bound. A worker fetches the
    adapters of its role only, and of those what it has not bound already; an adapter that nobody
    serves is not there.
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
    def restored(
        cls, version: int, payloads: dict[str, bytes], put: Callable[[bytes], Any]
    ) -> Bundle:
        """From the payloads of an earlier bundle, as a checkpoint keeps them."""
        refs, checksums, modules = {}, {}, 0
        for adapter, payload in payloads.items():
            state = read_payload(payload, adapter)
            refs[adapter], checksums[adapter], modules = put(payload), checksum(state), len(state)
        return cls(version, refs, checksums, modules)


def read_payload(payload: Any, adapter: str) -> dict[str, Tensor]:
    """The tensors of one adapter's payload."""
    tensors, meta = unpack(payload)
    assert meta["adapter"] == adapter, f"payload of {meta['adapter']}, expected {adapter}"
    return tensors


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
