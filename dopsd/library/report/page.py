"""The page of a library: ``index.html`` and, of many concepts, ``pages/`` of 250 cards each.

Made of the rows of the index alone (status.py), so that it can be made again at any time. A library
of one page has its cards in ``index.html``; of more it lists all concepts, each with the way to its
card. Names and reasons are texts of users: the templates escape them.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dopsd.driver.monitoring.progress import clock
from dopsd.files import storage
from dopsd.library.folder import LORA, PAGE, PAGES, SHEET, LibraryFolder
from dopsd.library.report.status import DONE, IN_FLIGHT, PARKED, SKIPPED, WAITING, library_status
from dopsd.report.templates import fill

CARDS = 250
"""Of a page: with their thumbnails less than 3 MB."""
_ORDER = (PARKED, SKIPPED, DONE, IN_FLIGHT, WAITING)
"""Failures first."""
_SCORES = (("near", "nearer"), ("sharp", "sharpness"), ("loss", "last loss"))
"""Numbers that a concept is sorted and filtered by, and what they are called."""


@dataclass(frozen=True)
class Entry:
    """A concept as the page shows it."""

    name: str
    status: str
    reason: str
    facts: list[str]
    scores: dict[str, str]
    """By the keys of ``_SCORES``, those that it has."""
    thumbnail: Markup
    """WebP in base64; empty without one."""
    no_picture: str
    """Why there is none, where there might be one."""
    files: list[tuple[str, str]]
    """(what it is, its path in the library) of what it left."""
    anchor: str
    page: str
    """Where its card is, from the library's folder."""


def write_library_page(path: str) -> str:
    """Make the page of a library anew and return its path. Who calls it has claimed the folder.

    Raises ConfigError for a folder that holds no library, or in which something else has the page's
    place.
    """
    folder = LibraryFolder(path)
    write_page(folder, library_status(path).rows)
    return folder.file(PAGE)


def write_page(folder: LibraryFolder, rows: Sequence[dict[str, Any]]) -> None:
    """The same of the ``rows`` of its index."""
    folder.write_page(dict(_files(folder.config().run.name, folder.path, rows)))


def _files(name: str, folder: str, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """(path in the library, content) of each file of the page, the index last."""
    ordered = sorted(rows, key=_rank)
    entries = [_entry(row, number // CARDS + 1) for number, row in enumerate(ordered)]
    counts = Counter(entry.status for entry in entries)
    common = {
        "run_name": name,
        "folder": folder,
        "total": len(entries),
        "counts": [(status, counts[status]) for status in _ORDER if counts[status]],
        "scores": _SCORES,
    }
    pages = [entries[start : start + CARDS] for start in range(0, len(entries), CARDS)]
    if len(pages) <= 1:
        index = {**common, "numbers": (), "page": None, "up": "", "pictures": True}
        yield PAGE, fill("library", **index, entries=entries).encode()
        return
    common["numbers"] = range(1, len(pages) + 1)
    for number, own in enumerate(pages, start=1):
        values = {**common, "page": number, "up": "../", "pictures": True, "entries": own}
        yield _page(number), fill("library", **values).encode()
    index = {**common, "page": None, "up": "", "pictures": False, "entries": entries}
    yield PAGE, fill("library", **index).encode()


def _page(number: int) -> str:
    return f"{PAGES}{number:04d}.html"


def _rank(row: dict[str, Any]) -> tuple[int, float, str]:
    """Failures first; of what is done the worst, and first of all that of which nobody knows."""
    near = _nearer(row)
    return _ORDER.index(row["status"]), -math.inf if near is None else near, row["concept"]


def _nearer(row: dict[str, Any]) -> float | None:
    """Share of the base's distance to the target that is gone; below 0 where it grew."""
    base, student = row.get("base_distance"), row.get("student_distance")
    return 1 - student / base if base and student is not None else None


def _entry(row: dict[str, Any], page: int) -> Entry:
    near, sharp, loss = _nearer(row), row.get("sharpness_ratio"), row.get("last_loss")
    scores = {"near": near, "sharp": sharp, "loss": loss}
    folder, done = row["folder"], row["status"] == DONE
    picture = row.get("thumbnail") or b""
    anchor = f"c-{folder.rpartition('-')[2]}"
    files = [("sheet", storage.join(folder, SHEET))] if picture else []
    files += [("adapter", storage.join(folder, LORA))] if done else []
    missing = f"no sheet: {row['no_sheet']}" if row.get("no_sheet") else "no sheet"
    return Entry(
        name=row["concept"],
        status=row["status"],
        reason=row["reason"],
        facts=list(_facts(row)),
        scores={key: f"{value:.4g}" for key, value in scores.items() if value is not None},
        thumbnail=Markup(base64.b64encode(picture).decode()),
        no_picture=missing if done and not picture else "",
        files=files,
        anchor=anchor,
        page=f"{_page(page)}#{anchor}",
    )


def _facts(row: dict[str, Any]) -> Iterator[str]:
    """What is known of a concept, in a few words each."""
    near, sharp = _nearer(row), row.get("sharpness_ratio")
    if near is not None:
        way = f"{near:.0%} nearer" if near >= 0 else f"{-near:.0%} farther"
        yield f"distance {row['base_distance']:.3g} → {row['student_distance']:.3g} ({way})"
    if row.get("drawn") is not None:
        yield f"drawn {row['base_drawn']:.0%} → {row['drawn']:.0%}"
    if sharp is not None:
        yield f"sharpness × {sharp:.2f}"
    if row.get("last_loss") is not None and row.get("first_loss") is not None:
        yield f"loss {row['first_loss']:.3g} → {row['last_loss']:.3g}"
    yield f"{row['pictures']} pictures"
    if row["status"] == DONE:
        early = " (no gain)" if row["stopped"] else ""
        yield f"{row['steps']} of {row['planned_steps']} steps{early}"
        yield clock(row["seconds"])
    if row["attempts"] > 1:
        yield f"{row['attempts']} attempts"
