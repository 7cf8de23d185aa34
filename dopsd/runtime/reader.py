"""Reads the encoded blocks of one attempt after the other into the coordinator's flow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray

from dopsd.runtime.flow import Flow

BlockStream = Iterator[tuple[int, int, ray.ObjectRef]]
"""(step, index, reference of the encoded block) of every micro-batch, in plan order."""
_LOADING = "loading its models"


class Reader:
    """``open_stream(start_step, stop_step)`` starts a pipeline. ``changed`` is the coordinator's
    lock, ``over()`` whether it ends; ``moved()`` is told of every block, under the lock."""

    def __init__(
        self,
        flow: Flow,
        open_stream: Callable[[int, int], BlockStream],
        changed: threading.Condition,
        over: Callable[[], bool],
        moved: Callable[[], None],
    ) -> None:
        self._flow, self._open_stream, self._changed = flow, open_stream, changed
        self._over, self._moved = over, moved
        self._number, self._start = 0, 0
        self.doing = _LOADING
        """What the encoders do, for progress and for a late message."""

    def rewind(self, step: int) -> None:
        """A new stream from ``step`` takes the place of the one that is read. Under the lock."""
        self._number, self._start, self.doing = self._number + 1, step, _LOADING

    @property
    def starting(self) -> bool:
        """Whether the first block of the stream has not arrived yet."""
        return self.doing == _LOADING

    def run(self) -> None:
        """The thread."""
        done = 0
        while True:
            with self._changed:
                while done == self._number and not self._over():
                    self._changed.wait(timeout=1.0)
                if self._over():
                    return
                done, start = self._number, self._start
            self._read(done, start)

    def _read(self, number: int, start: int) -> None:
        """Pull encoded blocks a step ahead; the stream bounds what it holds beyond that."""
        stream: Any = self._open_stream(start, self._flow.config.learner.steps)

        def wanted() -> bool:
            return not self._over() and number == self._number

        try:
            for step, index, block in stream:
                with self._changed:
                    if not wanted():
                        return
                    self.doing = "encoding"
                    self._flow.blocks.append(((step, index), block))
                    self._moved()
                    while self._flow.full and wanted():
                        self._changed.wait(timeout=1.0)
            with self._changed:
                if wanted():
                    self.doing = "done"
        finally:
            stream.close()  # its encoders make room for those of the next one
