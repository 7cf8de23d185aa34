"""Whole models in pieces of bounded size: which parameters share a piece, and its checksum."""

from __future__ import annotations

from torch import Tensor

from dopsd.models.lora import checksum
from dopsd.records import pack, unpack


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


def pack_bucket(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """A bucket as it travels, and its checksum. ``tensors`` are in the inference dtype."""
    return pack(tensors, {"record": "bucket"}), checksum(tensors)


def unpack_bucket(payload: bytes) -> dict[str, Tensor]:
    """Inverse of :func:`pack_bucket`."""
    tensors, meta = unpack(payload)
    assert meta["record"] == "bucket", f"expected a bucket, not {meta}"
    return tensors
