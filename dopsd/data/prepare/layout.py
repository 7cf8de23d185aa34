"""Where each sample goes: pure, from ids, buckets, settings and seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dopsd.data.manifest import PrepareSettings
from dopsd.data.schema import SHARD


@dataclass(frozen=True)
class Shard:
    """One parquet file: for each row group its bucket and the positions of its samples."""

    file: str
    groups: tuple[tuple[str, tuple[int, ...]], ...]


def lay_out(samples: Iterable[tuple[int, str, str, str]], settings: PrepareSettings) -> list[Shard]:
    """Shards of ``samples`` (position, sample_id, bucket, concept).

    Samples of a bucket are shuffled by seed, so that the concepts mix among the row groups; then
    the row groups are, so that every file holds all kinds. Within a row group each concept stands
    together, so that a manifest can tell which rows are whose. Nothing depends on the order given.
    """
    by_bucket: dict[str, list[tuple[bytes, int]]] = {}
    concepts: dict[int, str] = {}
    for position, sample_id, bucket, concept in samples:
        by_bucket.setdefault(bucket, []).append((_key(settings.seed, sample_id), position))
        concepts[position] = concept
    groups: list[tuple[bytes, str, tuple[int, ...]]] = []
    for bucket, keyed in by_bucket.items():
        order = [position for _, position in sorted(keyed)]
        for start in range(0, len(order), settings.rows_per_group):
            rows = tuple(
                sorted(order[start : start + settings.rows_per_group], key=concepts.__getitem__)
            )
            groups.append((_key(settings.seed, f"{bucket}\0{start}"), bucket, rows))
    groups.sort()
    size = settings.groups_per_shard
    return [
        Shard(
            SHARD.format(start // size),
            tuple((bucket, rows) for _, bucket, rows in groups[start : start + size]),
        )
        for start in range(0, len(groups), size)
    ]


def as_laid_out(buckets: Sequence[str], settings: PrepareSettings) -> list[int]:
    """Positions of row groups, whose ``buckets`` are given as they follow one another in the
    shards, in the order in which the samples of each bucket were dealt out to them, bucket by
    bucket: the rows that a concept has in them, one after the other, then lie in an order that
    depends on seed and ids alone, whatever other concepts there are."""
    at: dict[str, list[int]] = {}
    for position, bucket in enumerate(buckets):
        at.setdefault(bucket, []).append(position)
    order: list[int] = []
    for bucket, positions in sorted(at.items()):
        starts = [number * settings.rows_per_group for number in range(len(positions))]
        shuffled = sorted(starts, key=lambda start: _key(settings.seed, f"{bucket}\0{start}"))
        order += [position for _, position in sorted(zip(shuffled, positions))]
    return order


def _key(seed: int, text: str) -> bytes:
    """Sorting by these is a seeded shuffle."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()
