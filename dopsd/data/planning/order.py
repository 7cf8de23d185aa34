"""The order of one epoch: how often each sample comes, and where each micro-batch begins.

Samples of one weight in one bucket are a cell. A cell walks through endless passes over its
samples, each pass in an order of its own, and an epoch takes the next ``draws`` of them: so over
the epochs no sample of a cell comes more than once more often than another. With weight 1 an epoch
is a pass.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from dopsd import shown
from dopsd.data.manifest import RowRef
from dopsd.errors import DataError

_GROUPS, _ROWS, _BUCKETS, _CELLS = range(4)
"""Purposes of the shuffles: each has random numbers of its own."""
_NAME, _SHOWN = 100, 20
"""Characters of a name that may be a misspelt one, and names that a refusal lists."""


class PlannedGroup(Protocol):
    """Rows of one bucket that stay together: a row group, or what one concept has in some."""

    @property
    def bucket(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def concepts(self) -> tuple[tuple[str, int], ...]:
        """(concept, number of rows) as they follow one another."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that stand for it in the plan's key."""

    def ref(self, row: int) -> RowRef:
        """Where a row of it is."""


@dataclass(frozen=True)
class Cell:
    """Samples of one bucket and one weight."""

    rows: np.ndarray
    """[n] running numbers of the data set's rows."""
    draws: int
    """Samples taken per epoch: n times the weight, rounded, at least 1."""


@dataclass(frozen=True)
class Rows:
    """All rows of a data set, by bucket and weight.

    ``weights``: how many times per epoch each sample of a concept comes; 1 where none is given.
    """

    row_groups: tuple[PlannedGroup, ...]
    weights: tuple[tuple[str, float], ...] = ()

    @cached_property
    def group(self) -> np.ndarray:
        """[rows] row group of each row."""
        sizes = [group.rows for group in self.row_groups]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def row(self) -> np.ndarray:
        """[rows] its row within the group."""
        sizes = np.array([group.rows for group in self.row_groups])
        return np.arange(len(self.group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """The cells of each bucket, buckets by name and cells by weight."""
        weight = self._weight
        bucket = np.array([group.bucket for group in self.row_groups])[self.group]
        cells: dict[str, list[Cell]] = {}
        for name in sorted({group.bucket for group in self.row_groups}):
            inside = bucket == name
            for value in np.unique(weight[inside]):
                rows = np.flatnonzero(inside & (weight == value))
                if value:
                    draws = max(1, round(len(rows) * float(value)))
                    cells.setdefault(name, []).append(Cell(rows, draws))
        return cells

    @property
    def _weight(self) -> np.ndarray:
        given = dict(self.weights)
        if not given:
            return np.ones(len(self.group))
        parts = [
            np.full(count, given.get(concept, 1.0))
            for group in self.row_groups
            for concept, count in group.concepts
        ]
        return np.concatenate(parts)


def check_concepts(key: str, asked: Iterable[str], known: Collection[str]) -> None:
    """Raises DataError, in the name of a config ``key``, for the first concept that is ``asked``
    for and not ``known``."""
    for concept in asked:
        if concept not in known:
            close = difflib.get_close_matches(concept[:_NAME], [n[:_NAME] for n in known], n=1)
            hint = f" (did you mean {shown.value(close[0])}?)" if close else ""
            names = sorted(known)
            raise DataError(
                f"{key}: {shown.value(concept)} is no concept of the data{hint}, allowed: "
                + ", ".join(map(shown.value, names[:_SHOWN]))
                + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            )


@dataclass(frozen=True)
class EpochOrder:
    """Rows in training order per bucket, and where each micro-batch of the epoch begins."""

    names: tuple[str, ...]
    group: np.ndarray
    """[draws] row group of each draw, sorted by bucket and then in shuffled order."""
    row: np.ndarray
    """[draws] its row within the group."""
    turn: np.ndarray
    """[draws] how often the sample came before: the pass over its cell."""
    first: np.ndarray
    """[micro-batches] first draw of each micro-batch."""
    stop: np.ndarray
    bucket_of: np.ndarray
    """[micro-batches] index into ``names``."""

    def length(self, number: int) -> int:
        """Samples of a micro-batch of the epoch."""
        return int(self.stop[number] - self.first[number])

    def bucket(self, number: int) -> str:
        """Bucket of a micro-batch of the epoch."""
        return self.names[int(self.bucket_of[number])]

    def rows(self, number: int) -> Iterator[tuple[int, int]]:
        """(row group, row within it) of each sample of a micro-batch."""
        span = slice(int(self.first[number]), int(self.stop[number]))
        return zip(self.group[span].tolist(), self.row[span].tolist())

    def turns(self, number: int) -> tuple[int, ...]:
        """The pass of each sample of a micro-batch."""
        return tuple(self.turn[int(self.first[number]) : int(self.stop[number])].tolist())


def epoch_order(rows: Rows, seed: int, epoch: int, micro_batch: int) -> EpochOrder:
    """Shuffle row groups, rows within each, weights within a bucket, and buckets; then cut."""
    shuffled = _Shuffle(rows, seed)
    parts = [
        _bucket_order(shuffled, cells, epoch, number)
        for number, cells in enumerate(rows.cells.values())
    ]
    picked = np.concatenate([part for part, _ in parts])
    turn = np.concatenate([turn for _, turn in parts])

    counts = np.array([len(part) for part, _ in parts])
    starts = np.cumsum(counts) - counts
    pieces = -(-counts // micro_batch)
    label = np.repeat(np.arange(len(parts)), pieces)
    nth = np.arange(len(label)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[label] + nth * micro_batch
    stop = np.minimum(first + micro_batch, (starts + counts)[label])
    # Shuffle the labels, then deal each bucket's micro-batches out in their own order.
    dealt = label[_shuffled(len(label), seed, epoch, _BUCKETS)]
    position = _dealing(dealt)
    names = tuple(rows.cells)
    return EpochOrder(
        names, rows.group[picked], rows.row[picked], turn, first[position], stop[position], dealt
    )


class _Shuffle:
    """Orders of passes; the keys of a pass serve all cells."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._keys: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def one_pass(self, cell: Cell, turn: int) -> np.ndarray:
        """The cell's rows in the order of a pass: row groups stay together, so that a reader
        meets each of them once."""
        if turn not in self._keys:
            group_keys = random_keys(len(self.rows.row_groups), self.seed, turn, _GROUPS)
            row_keys = random_keys(len(self.rows.group), self.seed, turn, _ROWS)
            self._keys[turn] = group_keys, row_keys
        group_key, row_key = self._keys[turn]
        group = self.rows.group[cell.rows]
        order: np.ndarray = cell.rows[np.lexsort((row_key[cell.rows], group, group_key[group]))]
        return order

    def draws(self, cell: Cell, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, passes) that the cell gives to an epoch."""
        size = len(cell.rows)
        begin, end = epoch * cell.draws, (epoch + 1) * cell.draws
        turns = range(begin // size, -(-end // size))
        walk = np.concatenate([self.one_pass(cell, turn) for turn in turns])
        cut = slice(begin - turns[0] * size, end - turns[0] * size)
        return walk[cut], np.repeat(turns, size)[cut]


def _bucket_order(
    shuffle: _Shuffle, cells: list[Cell], epoch: int, bucket: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, passes) of a bucket: its cells dealt out evenly, each in its own order."""
    drawn = [shuffle.draws(cell, epoch) for cell in cells]
    rows, turns = (np.concatenate(parts) for parts in zip(*drawn))
    if len(cells) == 1:
        return rows, turns
    label = np.repeat(np.arange(len(cells)), [cell.draws for cell in cells])
    position = _dealing(label[_shuffled(len(label), shuffle.seed, epoch, _CELLS, bucket)])
    return rows[position], turns[position]


def _shuffled(count: int, *key: int) -> np.ndarray:
    return np.argsort(random_keys(count, *key), kind="stable")


def _dealing(dealt: np.ndarray) -> np.ndarray:
    """Position of the item that each turn gets, when label ``dealt[i]`` is served at turn i and the
    items lie sorted by label."""
    position = np.empty(len(dealt), dtype=np.int64)
    position[np.argsort(dealt, kind="stable")] = np.arange(len(dealt))
    return position


def random_keys(count: int, *key: int) -> np.ndarray:
    """[count] uint64 from a counter-based generator keyed by ``key`` (non-negative integers).

    Sorting by them is a shuffle. Raw Philox words are the one stream that numpy keeps the same
    over versions and platforms; ``Generator.permutation`` is not.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
