"""The input of a pipeline is made as it is taken; no Ray."""

from __future__ import annotations

from typing import Any

import pytest
import ray.data
from ray.data import DataContext
from ray.data._internal.execution.interfaces import RefBundle

from dopsd.data.stream import windowed_input
from dopsd.data.stream.windowed_input import WindowedInput

WINDOW = 4


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What has been put into the object store."""
    made: list[int] = []

    def from_items(items: list[dict[str, int]], override_num_blocks: int) -> list[RefBundle]:
        assert override_num_blocks == len(items), "a block for each"
        made.extend(item["number"] for item in items)
        return [RefBundle([], schema=None, owns_blocks=False) for _ in items]

    monkeypatch.setattr(windowed_input, "_WINDOW", WINDOW)
    monkeypatch.setattr(windowed_input, "input_bundles", lambda data: data)
    monkeypatch.setattr(ray.data, "from_items", from_items)
    return made


def take(source: Any, waiting: int) -> int:
    """What the pipeline takes while ``waiting`` blocks wait for its first operator."""
    taken = 0
    source.metrics.num_external_outqueue_blocks = waiting
    while source.has_next():
        source.get_next()
        taken += 1
        source.metrics.num_external_outqueue_blocks += 1
    return taken


def test_a_run_of_any_length_begins_with_one_window(made: list[int]) -> None:
    source = WindowedInput(DataContext(), ({"number": number} for number in range(10**12)))
    assert made == [], "nothing before a pipeline takes it"
    assert take(source, 0) == WINDOW and made == [0, 1, 2, 3]
    assert take(source, WINDOW) == 0 and len(made) == WINDOW, "its first operator has enough"
    assert take(source, WINDOW - 1) == 1 and made == list(range(2 * WINDOW))
    assert not source.has_completed()


@pytest.mark.parametrize("count", [1, WINDOW, WINDOW + 1])
def test_it_is_over_when_all_are_taken_and_not_before(made: list[int], count: int) -> None:
    source = WindowedInput(DataContext(), ({"number": number} for number in range(count)))
    taken = 0
    while not source.has_completed():
        taken += take(source, WINDOW - 1)
        source.metrics.num_external_outqueue_blocks = WINDOW
        assert taken == count or not source.has_completed(), "a full queue is no end"
    assert taken == count and made == list(range(count))
