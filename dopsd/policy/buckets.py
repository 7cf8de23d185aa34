"""Whole models in pieces of bounded size: which parameters share a piece, and what it is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dopsd.records import unpack

BUCKET = "bucket"
"""What the payload of one calls itself."""


def cut(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut into buckets of at most ``limit`` bytes; a larger tensor is a
    bucket of its own. The same in every process that knows the same sizes."""
    buckets: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not buckets or filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


def bucket_key(adapter: str, index: int) -> str:
    """A bucket's name among the checksums of a bundle."""
    return f"{adapter}/{index:05d}"


def unpack_bucket(payload: Any) -> dict[str, Tensor]:
    """The tensors of a bucket's payload, in the inference dtype."""
    tensors, meta = unpack(payload)
    assert meta["record"] == BUCKET, f"expected a bucket, not {meta}"
    return tensors
