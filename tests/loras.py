"""Reading exported LoRAs."""

from __future__ import annotations

from safetensors.torch import load
from torch import Tensor

from dopsd import storage

_PREFIX = "transformer."


def read_lora(path: str) -> dict[str, Tensor]:
    """The tensors of an exported LoRA, of which each has to be one of an adapter, without their
    prefix (alpha / r stays folded in)."""
    tensors = load(storage.read_bytes(path))
    assert tensors and all(n.startswith(_PREFIX) and ".lora_" in n for n in tensors), path
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
