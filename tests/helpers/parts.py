"""Tensor files of a checkpoint, written by the process that asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dopsd.checkpoint.parts import FileRecord, check_parts, write_parts


class InProcessWriter:
    """``refs`` are the bytes themselves. Counts its calls: names written, names read back."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.checked: list[str] = []

    def write(self, folder: str, refs: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
        for name, record in zip(refs, write_parts(folder, list(refs), *refs.values()), strict=True):
            self.written.append(name)
            yield name, record

    def check(self, folder: str, records: Mapping[str, FileRecord]) -> None:
        self.checked += check_parts(folder, records)
