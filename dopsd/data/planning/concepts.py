"""The rows of some concepts, planned as if the data held nothing else.

A row group of the shards mixes concepts, so that another concept in the data moves everybody's
rows. Taken in the order in which the samples were dealt out, and cut anew, the rows of a concept
lie as they would lie alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from dopsd.data.manifest import CaptionSet, Manifest, RowRef
from dopsd.data.planning.order import check_concepts
from dopsd.data.prepare.layout import as_laid_out
from dopsd.data.read import ReadSpec, RowGroups


@dataclass(frozen=True)
class ConceptGroup:
    """Rows of one concept and one bucket, wherever they are; planned as a row group is."""

    concept: str
    bucket: str
    refs: tuple[RowRef, ...]

    @property
    def rows(self) -> int:
        return len(self.refs)

    @property
    def concepts(self) -> tuple[tuple[str, int], ...]:
        return ((self.concept, self.rows),)

    @property
    def identity(self) -> dict[str, Any]:
        """Where the rows are is no part of it."""
        return {"concept": self.concept, "bucket": self.bucket, "rows": self.rows}

    def ref(self, row: int) -> RowRef:
        return self.refs[row]


def concept_groups(
    manifest: Manifest, concepts: Collection[str] | None = None
) -> dict[str, tuple[ConceptGroup, ...]]:
    """The groups of each concept, of ``concepts`` or of all; each depends on the rows of its
    concept alone. Raises DataError for a concept that is not in the data."""
    if concepts is not None:
        check_concepts("data.concepts", concepts, manifest.concepts)
    rows: dict[tuple[str, str], list[RowRef]] = {}
    for position in as_laid_out([g.bucket for g in manifest.row_groups], manifest.settings):
        group = manifest.row_groups[position]
        first = 0
        for concept, count in group.concepts:
            if concepts is None or concept in concepts:
                own = rows.setdefault((concept, group.bucket), [])
                own += (group.ref(row) for row in range(first, first + count))
            first += count
    size = manifest.settings.rows_per_group
    cut: dict[str, tuple[ConceptGroup, ...]] = {}
    for (concept, bucket), refs in sorted(rows.items()):
        cut[concept] = cut.get(concept, ()) + tuple(
            ConceptGroup(concept, bucket, tuple(refs[start : start + size]))
            for start in range(0, len(refs), size)
        )
    return cut


def restricted(manifest: Manifest, shards: str, concepts: Collection[str]) -> Manifest:
    """What of ``manifest`` is told of samples and captions, of these concepts alone. Their rows are
    read, without pictures; its row groups stay. Raises DataError as :func:`concept_groups` does."""
    rows = list(rows_of(manifest, concepts))
    reader = RowGroups(shards, ReadSpec(images=False))
    sets = Counter(tuple(sorted(reader.row(ref)["captions"])) for ref in sorted(rows))
    return manifest.model_copy(
        update={
            "samples": len(rows),
            "concepts": {name: manifest.concepts[name] for name in sorted(concepts)},
            "without_picture": {
                name: own for name, own in manifest.without_picture.items() if name in concepts
            },
            "caption_sets": tuple(CaptionSet(keys=k, samples=n) for k, n in sorted(sets.items())),
        }
    )


def rows_of(manifest: Manifest, concepts: Collection[str]) -> Iterator[RowRef]:
    """Every row of these concepts."""
    for groups in concept_groups(manifest, concepts).values():
        for group in groups:
            yield from group.refs
