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

from dopsd import storage
from dopsd.checkpoint.folder import FileRecord
from dopsd.errors import CheckpointError

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
    kept = [each for each in slices if each.stop > each.start]
    header: dict[str, Any] = {"__metadata__": {_META_KEY: json.dumps(meta)}}
    end = 0
    for each in kept:
        begin, end = end, end + (each.stop - each.start) * _ITEM
        header[f"{each.name}[{each.start}:{each.stop}]"] = {
            "dtype": "F32",
            "shape": [each.stop - each.start],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with storage.streamed_file(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for each in kept:
            values = each.values().detach().to("cpu", torch.float32).contiguous()
            assert values.numel() == each.stop - each.start, each.name
            data = values.numpy().view("uint8").data
            file.write(data)
            digest.update(data)
    return FileRecord(bytes=8 + len(text) + end, sha256=digest.hexdigest())


@dataclass(frozen=True)
class _Place:
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
        self._places: dict[str, list[_Place]] = {}
        found = [self._open(path) for path in paths]
        for path, meta in zip(paths, found):
            if meta != found[0]:
                raise CheckpointError(f"{path}: of another state than {paths[0]}")
        self.meta: dict[str, Any] = found[0]
        for places in self._places.values():
            places.sort(key=lambda place: place.start)

    def _open(self, path: str) -> dict[str, Any]:
        try:
            size = int.from_bytes(storage.read_bytes(path, 0, 8), "little")
            if not 2 <= size <= _HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(storage.read_bytes(path, 8, 8 + size))
            meta: dict[str, Any] = json.loads(header.pop("__metadata__")[_META_KEY])
            for key, entry in header.items():
                match = _NAME.fullmatch(key)
                if match is None or entry["dtype"] != "F32":
                    raise ValueError(f"holds {key}, which is no slice in fp32")
                place = _Place(
                    int(match[2]), int(match[3]), path, 8 + size + entry["data_offsets"][0]
                )
                self._places.setdefault(match[1], []).append(place)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a file of slices ({error})") from None
        return meta

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor ``name``, fp32 on the CPU.

        Only their bytes are read. Raises CheckpointError when a part of them is nowhere.
        """
        found = torch.empty(stop - start)
        at = start
        for place in self._places.get(name, []):
            if place.stop <= at or place.start >= stop:
                continue
            if place.start > at or at == stop:
                break
            upto = min(place.stop, stop)
            begin = place.offset + (at - place.start) * _ITEM
            data = storage.read_bytes(place.path, begin, begin + (upto - at) * _ITEM)
            if len(data) != (upto - at) * _ITEM:
                raise CheckpointError(f"{place.path}: ends before {name}[{at}:{upto}]")
            found[at - start : upto - start] = torch.frombuffer(
                bytearray(data), dtype=torch.float32
            )
            at = upto
        if at < stop:
            raise CheckpointError(f"checkpoint: {name}[{at}:{stop}] is in none of its files")
        return found
