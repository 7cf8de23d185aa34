"""A trained transformer as diffusers' own folder, written one shard at a time.

``config.json``, ``diffusion_pytorch_model*.safetensors`` and, of several shards, their index: what
``save_pretrained`` writes, so that ``from_pretrained`` of the folder loads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from dopsd.export import same_bytes

_STEM, _SUFFIX = "diffusion_pytorch_model", ".safetensors"


def write_transformer(
    write: Callable[[str, bytes], Any],
    folder: str,
    config: dict[str, Any],
    shards: Iterable[dict[str, Tensor]],
    count: int,
    metadata: dict[str, str],
) -> None:
    """``write(path, bytes)`` each file of ``folder``; the index, without which several shards are
    no model, comes last.

    ``config``: the base's transformer config. ``shards``: ``count`` groups of tensors by diffusers'
    names, one alive at a time.
    """
    from safetensors.torch import save

    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write(f"{folder}/config.json", text.encode())
    places: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(shards, start=1):
        name = f"{_STEM}{_SUFFIX}"
        if count > 1:
            name = f"{_STEM}-{number:05d}-of-{count:05d}{_SUFFIX}"
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        payload = save(tensors, metadata={"format": "pt", **metadata})
        del tensors  # before the next shard is made
        write(f"{folder}/{name}", same_bytes(payload))
        del payload
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index, indent=2) + "\n"
        write(f"{folder}/{_STEM}{_SUFFIX}.index.json", text.encode())
