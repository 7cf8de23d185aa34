from __future__ import annotations

import threading

import pytest

from dopsd.errors import DataError
from dopsd.library.workers.worker import BlocksAhead


def test_the_next_step_is_read_while_one_is_trained_and_none_beyond_the_last() -> None:
    read, ahead = [], threading.Event()

    def blocks(step: int) -> list[tuple[str, bool]]:
        read.append(step)
        if step == 6:
            ahead.set()
        return [(f"{step}.0", True), (f"{step}.0", False)]

    fetch = BlocksAhead(blocks, stop=7)
    assert list(fetch(5)) == [("5.0", True), ("5.0", False)]
    assert ahead.wait(20), "before anybody asked for it"
    assert list(fetch(6)) == [("6.0", True), ("6.0", False)]
    assert read == [5, 6]


def test_a_row_that_cannot_be_read_is_told_at_its_own_step() -> None:
    def blocks(step: int) -> list[tuple[str, bool]]:
        if step == 1:
            raise DataError("shard: broken")
        return [("block", True)]

    fetch = BlocksAhead(blocks, stop=3)
    assert len(list(fetch(0))) == 1
    with pytest.raises(DataError, match="shard: broken"):
        list(fetch(1))
