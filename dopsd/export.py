"""The LoRA file: one safetensors that diffusers and ComfyUI both load at full strength.

Keys are ``transformer.<diffusers module name>.lora_A.weight`` / ``.lora_B.weight``; alpha / r is
folded into B, and there are no ``.alpha`` keys: PEFT's own prefix loads nothing into Z-Image,
and alpha tensors raise in one reader and are ignored in the other. DoRA adds
``.lora_magnitude_vector``, which diffusers reads and ComfyUI, whose DoRA is another formula, leaves
out.
"""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

_PREFIX = "transformer."


def lora_file(
    state: dict[str, Tensor],
    rank: int,
    alpha: float,
    metadata: dict[str, str],
    dtype: torch.dtype = torch.float32,
    *,
    rank_stabilized: bool = False,
) -> bytes:
    """Serialise adapter weights {``<module>.lora_A.weight``: [r, in], ...} in ``dtype``.

    ``rank_stabilized``: alpha / sqrt(rank) is folded in, in place of alpha / rank.
    """
    from safetensors.torch import save

    strength = alpha / (math.sqrt(rank) if rank_stabilized else rank)
    tensors = {}
    for name, tensor in state.items():
        scale = strength if ".lora_B." in name else 1.0
        tensors[_PREFIX + name] = (tensor.detach().float().cpu() * scale).to(dtype).contiguous()
    return same_bytes(save(tensors, metadata={"format": "pt", **metadata}))


def same_bytes(payload: bytes) -> bytes:
    """The file with its header in order of keys: safetensors writes metadata in random order, and
    two equal runs should give files that `cmp` finds equal."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


def modules_file(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise what is trained beside a LoRA, in fp32, under diffusers' names of the transformer.

    ``pipe.transformer.load_state_dict(load_file(path), strict=False)`` takes it, before or after
    the LoRA is loaded: no LoRA layer lies on any of these modules.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    return same_bytes(save(tensors, metadata={"format": "pt", **metadata}))
