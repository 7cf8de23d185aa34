"""Whether weights are finite: others are neither published nor saved nor exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """One reduction on the tensors' devices, without a copy of any: a maximum keeps nan and
    infinity. Floating tensors, which may be empty."""
    largest = [torch.linalg.vector_norm(t, torch.inf).float() for t in tensors if t.numel()]
    if not largest:
        return True
    device = largest[0].device
    return bool(torch.stack([value.to(device) for value in largest]).isfinite().all())


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first that holds infinity or nan; empty when all are finite."""
    if all_finite(tensors.values()):
        return ""
    return next((name for name, tensor in tensors.items() if not all_finite([tensor])), "")
