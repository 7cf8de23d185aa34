"""Weights as one flat tensor on their device, and as the safetensors bytes that travel.

One copy leaves the device, into page-locked memory behind a header that is written there already,
and one goes from there into the object store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopsd.records import META_KEY

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""As safetensors names them."""
_LENGTH = 8
"""Bytes of the header's length in front of it, and what the data behind it is aligned to."""


@dataclass(frozen=True)
class FlatLayout:
    """Tensors of one ``dtype``, one behind the other."""

    shapes: Mapping[str, tuple[int, ...]]
    """In the order in which they lie."""
    dtype: torch.dtype

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def numel(self) -> int:
        return sum(self.sizes)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors in ``flat`` [numel], without a copy."""
        parts = flat.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def header(self, meta: dict[str, Any]) -> bytes:
        """What stands before the data in a safetensors file with ``meta``, as records.pack's."""
        entries: dict[str, Any] = {"__metadata__": {META_KEY: json.dumps(meta, ensure_ascii=False)}}
        start = 0
        for (name, shape), size in zip(self.shapes.items(), self.sizes):
            stop = start + size * self.dtype.itemsize
            entries[name] = {
                "dtype": _DTYPES[self.dtype],
                "shape": list(shape),
                "data_offsets": [start, stop],
            }
            start = stop
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH)
        return len(text).to_bytes(_LENGTH, "little") + text


class HostBuffer:
    """Memory of the host through which weights leave a device: page-locked where that is a GPU,
    and used again for each payload."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def begin(self, layout: FlatLayout, flat: Tensor, meta: dict[str, Any]) -> np.ndarray:
        """The payload of ``flat`` as bytes, which are there once the device's stream is done; valid
        until the next call."""
        header = layout.header(meta)
        size = len(header) + layout.nbytes
        if size > len(self._memory):
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=flat.is_cuda)
        memory = self._memory[:size]
        memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        memory[len(header) :].view(layout.dtype).copy_(flat, non_blocking=True)
        return memory.numpy()
