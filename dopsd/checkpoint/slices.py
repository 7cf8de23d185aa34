"""Slices of large tensors as the files of a checkpoint: written by those who own them, one file
each, and read by byte ranges, by any number of readers that are cut up in another way.

A file is safetensors; ``NAME[START:STOP]`` holds elements [START, STOP) of the flattened fp32
tensor NAME. Neither writer nor reader holds more than a slice beside the tensors themselves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopsd.checkpoint.parts import FileRecord
from dopsd.errors import CheckpointError
from dopsd.files import pieces, storage
from dopsd.readers import json_value

_META_KEY = "dopsd"
_NAME = re.compile(r"(.+)\[(\d+):(\d+)\]")
_HEADER = 10**8
"""Bytes that safetensors allows a header."""
_ITEM = 4
"""Bytes of an fp32 element."""


@dataclass(frozen=True)
class Slice:
    """Elements [start, stop) of a flattened tensor; ``values()`` gives them, fp32."""

    name: str
    start: int
    stop: int
    values: Callable[[], Tensor]


def write_slices(path: str, slices: Iterable[Slice], meta: dict[str, Any]) -> FileRecord:
    """Write one file, a slice at a time; ``meta`` is JSON-able and equal in all files of a state.

    The file is whole or absent. Raises whatever the storage raises.
    """
    kept = [piece for piece in slices if piece.stop > piece.start]
    header: dict[str, Any] = {"__metadata__": {_META_KEY: json.dumps(meta)}}
    end = 0
    for piece in kept:
        begin, end = end, end + (piece.stop - piece.start) * _ITEM
        header[f"{piece.name}[{piece.start}:{piece.stop}]"] = {
            "dtype": "F32",
            "shape": [piece.stop - piece.start],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with pieces.streamed_file(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for piece in kept:
            values = piece.values().detach().to("cpu", torch.float32).contiguous()
            assert values.numel() == piece.stop - piece.start, piece.name
            data = values.numpy().view("uint8").data
            file.write(data)
            digest.update(data)
    return FileRecord(bytes=8 + len(text) + end, sha256=digest.hexdigest())


@dataclass(frozen=True)
class _FileRange:
    start: int
    stop: int
    path: str
    offset: int
    """Of its first byte in the file."""


class SliceReader:
    """All slices of a state, by the headers of its files.

    Raises CheckpointError for a file that is none of :func:`write_slices`, or of another state.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._ranges: dict[str, list[_FileRange]] = {}
        metas = [self._open(path) for path in paths]
        for path, meta in zip(paths, metas):
            if meta != metas[0]:
                raise CheckpointError(f"{path}: of another state than {paths[0]}")
        self.meta: dict[str, Any] = metas[0]
        for ranges in self._ranges.values():
            ranges.sort(key=lambda stored: stored.start)

    def _open(self, path: str) -> dict[str, Any]:
        try:
            size = int.from_bytes(storage.read_bytes(path, 0, 8), "little")
            if not 2 <= size <= _HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json_value(storage.read_bytes(path, 8, 8 + size))
            meta: dict[str, Any] = json_value(header.pop("__metadata__")[_META_KEY])
            for key, entry in header.items():
                match = _NAME.fullmatch(key)
                if match is None or entry["dtype"] != "F32":
                    raise ValueError(f"holds {key}, which is no slice in fp32")
                offset = 8 + size + entry["data_offsets"][0]
                stored = _FileRange(int(match[2]), int(match[3]), path, offset)
                self._ranges.setdefault(match[1], []).append(stored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a file of slices ({error})") from None
        return meta

    def names(self) -> set[str]:
        return set(self._ranges)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor ``name``, fp32 on the CPU.

        Only their bytes are read. Raises CheckpointError when a part of them is nowhere.
        """
        values = torch.empty(stop - start)
        position = start
        for stored in self._ranges.get(name, []):
            if stored.stop <= position or stored.start >= stop:
                continue
            if stored.start > position or position == stop:
                break
            upto = min(stored.stop, stop)
            begin = stored.offset + (position - stored.start) * _ITEM
            data = storage.read_bytes(stored.path, begin, begin + (upto - position) * _ITEM)
            if len(data) != (upto - position) * _ITEM:
                raise CheckpointError(f"{stored.path}: ends before {name}[{position}:{upto}]")
            values[position - start : upto - start] = torch.frombuffer(
                bytearray(data), dtype=torch.float32
            )
            position = upto
        if position < stop:
            raise CheckpointError(f"checkpoint: {name}[{position}:{stop}] is in none of its files")
        return values
