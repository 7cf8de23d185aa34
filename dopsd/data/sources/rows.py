"""One sample of a source as listed, before its pixels are read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dopsd.data.schema import MASK

CAPTION_KEY = "caption"
"""Key of a caption that came without one."""


@dataclass(frozen=True)
class ByteRange:
    """Where the bytes of a picture are: a file, or its part from ``start`` up to ``stop``."""

    path: str
    start: int | None = None
    stop: int | None = None


@dataclass
class SourceRow:
    """``where`` names it to the user: a file, file:line, or file:row group:row.

    ``captions`` is filled from lists and tables; for folders ``caption_file`` names the text to be
    read.
    """

    where: str
    sample_id: str
    image: ByteRange | None = None
    concept: str | None = None
    references: list[ByteRange] = field(default_factory=list)
    mask: ByteRange | None = None
    captions: dict[str, str] = field(default_factory=dict)
    caption_file: str | None = None
    problem: str | None = None
    samples: int = 1
    """How many samples a ``problem`` takes away: more than one for a part of a parquet file."""


@dataclass(frozen=True)
class Group:
    """A row group of a parquet file, or a record batch of an Arrow file: what one task reads."""

    path: str
    where: str
    """file:row group."""
    number: int
    rows: int
    columns: dict[str, str]
    """Field -> column of this file."""
    captions: tuple[str, ...] = ()
    """Columns that each hold a caption under their own name."""

    @property
    def stem(self) -> str:
        """What the default ids of its samples start with."""
        return f"{self.where.rsplit('.', 1)[0]}/{self.number}"


@dataclass
class Source:
    """The samples of a source in a fixed order, and what was left aside (``notes``).

    Samples of ``groups`` are not listed among ``rows`` yet: tasks read them.
    """

    rows: list[SourceRow]
    notes: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)
    """Concept -> times per epoch that its samples come, where the source says so."""

    def leave_masks(self) -> None:
        """Have no sample heed a mask, of those that tasks read neither."""
        for row in self.rows:
            row.mask = None
        for group in self.groups:
            group.columns.pop(MASK, None)


def pack_row(row: SourceRow) -> str:
    """A source row as JSON text, the form in which it passes through Ray Data."""
    return json.dumps(asdict(row), ensure_ascii=False)


def unpack_row(text: str) -> SourceRow:
    """Inverse of :func:`pack_row`."""
    values: dict[str, Any] = json.loads(text)
    values["image"] = values["image"] and ByteRange(**values["image"])
    values["mask"] = values["mask"] and ByteRange(**values["mask"])
    values["references"] = [ByteRange(**reference) for reference in values["references"]]
    return SourceRow(**values)
