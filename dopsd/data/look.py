"""A source as it lies, before any config: what preparing would make of it and say, without Ray."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dopsd.data.manifest import PrepareSettings, Quarantined, quarantine_lines
from dopsd.data.pictures.images import decode_image
from dopsd.data.prepare.facts import Inspected
from dopsd.data.prepare.findings import findings
from dopsd.data.prepare.outcome import drop_duplicates, quarantined
from dopsd.data.prepare.shards import Inspector, fetch_image
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.files import storage
from dopsd.ownership.scratch import temporary_folder

PICTURES = 60
"""Pictures of a contact sheet, taken evenly from all."""
_THUMBNAIL = 256
_THREADS = 32
_BAR = 24
"""Characters of the longest bar."""
Progress = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)."""


@dataclass(frozen=True)
class Shown:
    """A picture of the contact sheet."""

    where: str
    caption: str
    image: Image.Image


@dataclass(frozen=True)
class Look:
    """What a source holds."""

    source: str
    seen: int
    rows: list[SourceRow]
    """Usable samples, and beside each what is known of it."""
    inspected: list[Inspected]
    quarantined: tuple[Quarantined, ...]
    notes: list[str]
    """What was left aside or guessed, and what is likely other than its owner believes."""
    pictures: list[Shown]

    @property
    def buckets(self) -> dict[str, int]:
        """Samples of each bucket "WxH", most first."""
        return dict(Counter(found.bucket for found in self.inspected).most_common())

    @property
    def concepts(self) -> dict[str, int]:
        return dict(Counter(row.concept or "" for row in self.rows).most_common())

    @property
    def caption_keys(self) -> dict[str, int]:
        return dict(Counter(key for row in self.rows for key in row.captions).most_common())

    def lines(self) -> list[str]:
        """As text: counts, buckets as bars, each kind of problem, notes."""
        lines = [f"{self.source}: {len(self.rows)} of {self.seen} samples can be used"]
        if not self.rows:
            return [*lines, *self._problems()]
        lines += [
            f"concepts: {_counts(self.concepts)}",
            f"captions: {_counts(self.caption_keys)}; {_words(self.rows)}",
            *_sizes(self.inspected),
            "buckets:",
        ]
        most = max(self.buckets.values())
        for bucket, count in self.buckets.items():
            bar = "█" * max(1, round(_BAR * count / most))
            lines.append(f"  {bucket:>9} {bar} {count}")
        return lines + self._problems()

    def record(self) -> dict[str, Any]:
        """For programs: counts, and what cannot be used with its reason."""
        return {
            "source": self.source,
            "samples": self.seen,
            "usable": len(self.rows),
            "concepts": self.concepts,
            "captions": self.caption_keys,
            "buckets": self.buckets,
            "quarantined": [entry.model_dump() for entry in self.quarantined],
            "notes": self.notes,
        }

    def _problems(self) -> list[str]:
        lines = quarantine_lines(self.quarantined)
        if lines:
            lines.insert(0, "cannot be used:")
        return lines + [f"note: {note}" for note in self.notes]


def look(source: str, settings: PrepareSettings, tell: Progress) -> Look:
    """Look at every sample of ``source``. Raises DataError when it cannot be read at all."""
    listed = read_source(source, settings)
    with temporary_folder("look") as aside:
        usable = _inspect(listed, Inspector.of(settings), str(aside), tell)
        drop_duplicates(listed.rows, usable)
        rows = [listed.rows[at] for at in usable]
        inspected = list(usable.values())
        told = findings(list(zip(rows, inspected, strict=True)), settings)
        return Look(
            source=source,
            seen=sum(row.samples for row in listed.rows),
            rows=rows,
            inspected=inspected,
            quarantined=quarantined(listed.rows),
            notes=[*listed.notes, *told],
            pictures=_contact_sheet(rows),
        )


def _inspect(
    listed: Source, inspector: Inspector, aside: str, tell: Progress
) -> dict[int, Inspected]:
    """Position in ``listed.rows`` -> what is known of the usable ones; samples of tables are
    appended, and the others get their ``problem``."""
    rows = listed.rows
    usable: dict[int, Inspected] = {}
    todo = [at for at, row in enumerate(rows) if row.problem is None]
    total = len(todo) + sum(group.rows for group in listed.groups)
    done = 0
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda at: inspector.inspect(rows[at]), todo)
        for at, inspected in zip(todo, found, strict=True):
            rows[at].problem = inspected.reason or None
            if not inspected.reason:
                usable[at] = inspected
            done += 1
            tell("looking at pictures", done, total)
    for number, group in enumerate(listed.groups):
        for row, inspected in inspector.unpack(group, storage.join(aside, f"{number}")):
            if row.problem is None:
                usable[len(rows)] = inspected
            rows.append(row)
            done += row.samples
            tell("looking at pictures", done, total)
    return usable


def _contact_sheet(rows: list[SourceRow]) -> list[Shown]:
    pictured = [(row, row.image) for row in rows if row.image is not None]
    step = max(1.0, len(pictured) / PICTURES)
    chosen = [pictured[int(at * step)] for at in range(min(PICTURES, len(pictured)))]
    sheet = []
    for row, part in chosen:
        image = decode_image(fetch_image(part))
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        sheet.append(Shown(row.where, next(iter(row.captions.values())), image))
    return sheet


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or '(none)'} ({count})" for name, count in counts.items())


def _words(rows: list[SourceRow]) -> str:
    lengths = sorted(len(text.split()) for row in rows for text in row.captions.values())
    return f"{lengths[0]} to {lengths[-1]} words"


def _sizes(inspected: list[Inspected]) -> list[str]:
    """Lines of the pictures' sizes, and of samples that have none."""
    sizes = sorted(
        ((found.facts.width, found.facts.height) for found in inspected if found.facts),
        key=lambda size: size[0] * size[1],
    )
    lines = []
    if sizes:
        least, middle, most = (
            f"{width}x{height}" for width, height in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
        )
        lines.append(f"pictures: from {least} to {most} pixels, {middle} in the middle")
    if texts := len(inspected) - len(sizes):
        lines.append(f"without a picture: {texts} of {len(inspected)} samples (data.drawn_size)")
    return lines
