"""Exported LoRAs, read and compared."""

from __future__ import annotations

import os

from safetensors.torch import load
from torch import Tensor

from dopsd.files import storage

_PREFIX = "transformer."


def read_lora(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of an exported LoRA, of which each has to be one of an adapter, without their
    prefix (alpha / r stays folded in)."""
    tensors = load(storage.read_bytes(os.fspath(path)))
    assert tensors and all(n.startswith(_PREFIX) and ".lora_" in n for n in tensors), path
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def difference(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> float:
    """Largest difference between two exported LoRAs; they have to hold the same tensors."""
    first, second = read_lora(one), read_lora(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def ups(path: str | os.PathLike[str]) -> dict[str, float]:
    """Largest entry of each up-projection. They begin at zero: above it they were trained."""
    return {n: float(t.abs().max()) for n, t in read_lora(path).items() if ".lora_B." in n}
