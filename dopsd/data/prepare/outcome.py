"""Which samples of a source are used, once all were looked at."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.data.manifest import PrepareSettings, Quarantined
from dopsd.data.prepare.facts import Inspected
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.errors import DataError


def drop_duplicates(rows: list[SourceRow], usable: dict[int, Inspected]) -> None:
    """Of usable samples with one id the first is kept, the others get a ``problem``."""
    first: dict[str, str] = {}
    for index in list(usable):
        row = rows[index]
        if row.sample_id in first:
            row.problem = f"duplicate id {row.sample_id!r}: first in {first[row.sample_id]}"
            del usable[index]
        else:
            first[row.sample_id] = row.where


def quarantine(listed: Source, settings: PrepareSettings) -> tuple[Quarantined, ...]:
    """The samples that are not used. Raises DataError when they are more than the settings allow,
    with the notes of the source, which may say why."""
    rows = listed.rows
    bad = quarantined(rows)
    lost, seen = sum(entry.samples for entry in bad), sum(row.samples for row in rows)
    if len(bad) == len(rows) or lost > settings.max_bad_fraction * seen:
        first = "; ".join(f"{entry.where}: {entry.reason}" for entry in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        notes = "".join(f"; note: {note}" for note in listed.notes[:8])
        raise DataError(
            f"{lost} of {seen} samples are bad, data.max_bad_fraction allows "
            f"{settings.max_bad_fraction}: {first}{more}{notes}"
        )
    return bad


def quarantined(rows: Sequence[SourceRow]) -> tuple[Quarantined, ...]:
    """Those of the samples that have a ``problem``."""
    return tuple(
        Quarantined(
            where=row.where,
            sample_id=row.sample_id,
            reason=row.problem,
            samples=row.samples,
            concept=row.concept or "",
        )
        for row in rows
        if row.problem is not None
    )
