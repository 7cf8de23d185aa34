"""The input of a long pipeline, made by windows: whatever Ray Data starts with it makes beforehand,
at most of a millisecond for each span of a whole run, at the start and at every rewind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import ray.data
from ray.data import DataContext

from dopsd.ray_cluster.ray_private import InputDataBuffer, dataset_of_input, input_bundles

_WINDOW = 64
"""Items that are made at once, and that wait for the first operator."""


class WindowedInput(InputDataBuffer):
    """Puts ``items``, each a block of its own, into the object store as the pipeline takes them."""

    def __init__(self, context: DataContext, items: Iterator[dict[str, Any]]) -> None:
        self._items, self._exhausted = items, False
        super().__init__(context, input_data=[])

    def has_next(self) -> bool:
        """Whether one is there and the first operator has room for it."""
        if self.metrics.num_external_outqueue_blocks >= _WINDOW:
            return False
        if not self._rest and not self._exhausted:
            self._make()
        return self._rest > 0

    def has_completed(self) -> bool:
        """Whether all are taken."""
        return self._exhausted and not self._rest

    @property
    def _rest(self) -> int:
        return len(self._input_data) - self._input_data_index

    def _make(self) -> None:
        items = list(islice(self._items, _WINDOW))
        if not items:
            self._exhausted = True
            return
        made = input_bundles(ray.data.from_items(items, override_num_blocks=len(items)))
        for bundle in made:
            self._metrics.on_input_received(bundle)
        # None is taken out again: of it, a block that is lost is made once more.
        self._input_data += made


def from_items_by_windows(items: Iterator[dict[str, Any]]) -> ray.data.Dataset:
    """As ``ray.data.from_items``, a block for each item, but none is made before it is needed, and
    one pipeline takes them all."""
    return dataset_of_input(lambda context: WindowedInput(context, items))
