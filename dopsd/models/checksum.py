"""A checksum of weights, computed where they lie: nothing is copied to the host but two numbers.
And a digest of them for records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element, what its bits are read as."""
_CHUNK = 2**22
"""Elements that are summed at once: as 64-bit integers they take 32 MB."""
_Entry = tuple[str, torch.dtype, tuple[int, ...]]


@torch.no_grad()
def checksum(state: Mapping[str, Tensor]) -> str:
    """64 hex digits over names, dtypes, shapes and bits, whatever the order of ``state``.

    The bits are summed as integers modulo 2^64, once as they are and once times odd numbers that
    grow with the position: one value that differs, or two that change places, give other sums. CPU
    and GPU agree, since sums of integers do not depend on the order. It finds weights that were
    mixed up, cut off or damaged, and no forger: what lies in files has a SHA-256.
    """
    sums: list[Tensor] = []
    position = 0
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        for chunk in tensor.view(-1).view(_INTEGERS[tensor.element_size()]).split(_CHUNK):
            bits = chunk.long()
            places = torch.arange(position, position + len(bits), device=bits.device)
            sums.append(torch.stack([bits.sum(), (bits * (2 * places + 1)).sum()]))
            position += len(bits)
    totals = [0, 0]
    if sums:
        totals = torch.stack([each.to(sums[0].device) for each in sums]).sum(dim=0).tolist()
    entries = tuple((name, t.dtype, tuple(t.shape)) for name, t in sorted(state.items()))
    return "".join(f"{total % 2**64:016x}" for total in totals) + _layout(entries)


def sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order of ``state``: what stands in
    records, which outlive this process. It copies all of it to the host."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _layout(entries: tuple[_Entry, ...]) -> str:
    """32 hex digits of names, dtypes and shapes: the same at every step."""
    text = ";".join(f"{name}:{dtype}:{list(shape)}" for name, dtype, shape in entries)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
