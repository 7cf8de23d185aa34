"""Reads the encoded blocks of one attempt after the other into the dispatcher."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import ray

from dopsd.coordinator.admission import Key
from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.data.stream.pipeline import EncodedStream
from dopsd.errors import DeadlineError

_LOADING, _ENCODING = "loading its models", "encoding"
_LEAVE_SECONDS = 1.0
"""What a thread that pulls blocks is given to see that nobody wants them any more."""


class StreamReader:
    """``open_stream(start_step, stop_step)`` starts a pipeline. ``changed`` is the coordinator's
    lock, ``over()`` whether it ends; ``moved()`` hears of every block, under the lock.

    A stream is opened anew from an earlier step, and blocks that are there already are passed over,
    when a block is gone for good or when its encoders time out. The latter happens
    ``inference.max_restarts`` times at most.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        open_stream: Callable[[int, int], EncodedStream],
        changed: threading.Condition,
        over: Callable[[], bool],
        moved: Callable[[], None],
    ) -> None:
        self._dispatcher, self._open_stream, self._changed = dispatcher, open_stream, changed
        self._over, self._moved = over, moved
        self._number, self._start = 0, 0
        self._last: Key = (0, -1)
        """The newest block that went into the dispatcher."""
        self._newest: Key = (0, -1)
        """The newest one that the present stream has brought."""
        self._asked: float | None = None
        """Since when a block is waited for; None while there is no room for it."""
        self._ended = False
        self._failure: BaseException | None = None
        self.restarts = 0
        """Streams that were given up because their encoders timed out."""
        self.notices: list[str] = []
        self.doing = _LOADING
        """What the encoders do, for progress and for the message of a deadline."""

    def rewind(self, step: int) -> None:
        """A new stream from ``step`` takes the place of the one that is read. Under the lock."""
        self._last = (step, -1)
        self._reopen(step)

    def _reopen(self, step: int) -> None:
        self._number, self._start, self.doing = self._number + 1, step, _LOADING
        self._newest, self._asked = (step, -1), None
        self._ended, self._failure = False, None
        self._moved()

    @property
    def starting(self) -> bool:
        """Whether the first block of the stream has not arrived yet."""
        return self.doing == _LOADING

    @property
    def limit(self) -> float:
        """Seconds that the next block may take; loading has a deadline in the stream itself."""
        timeouts = self._dispatcher.config.timeouts
        return timeouts.step + (timeouts.startup if self.starting else 0.0)

    def run(self) -> None:
        """The thread."""
        done = 0
        while True:
            with self._changed:
                while done == self._number and not self._over():
                    self._look_back()
                    self._changed.wait(timeout=1.0)
                if self._over():
                    return
                done, start = self._number, self._start
            self._read(done, start)

    def _read(self, number: int, start: int) -> None:
        """Watch over one stream until it ends, or until another one takes its place."""
        stream = self._open_stream(start, self._dispatcher.config.learner.steps)
        pulling = threading.Thread(target=self._pull, args=(number, stream), daemon=True)
        pulling.start()
        try:
            with self._changed:
                while self._wanted(number) and not self._ended:
                    self._look_back()
                    timeout = self._timed_out()
                    if timeout is not None and self._wanted(number):
                        self._replace(timeout)
                    self._changed.wait(timeout=0.5)
                if self._wanted(number) and self._failure is not None:
                    if not isinstance(self._failure, DeadlineError):
                        raise self._failure
                    self._replace(self._failure)
        finally:
            pulling.join(timeout=_LEAVE_SECONDS)
            with contextlib.suppress(ValueError):  # a generator that the other thread is in
                stream.close()  # its encoders make room for those of the next one

    def _wanted(self, number: int) -> bool:
        return not self._over() and number == self._number

    def _look_back(self) -> None:
        """Begin again where a block is gone that this stream will not bring any more."""
        if any(key <= self._newest for key in self._dispatcher.missing):
            self._reopen(self._needed())

    def _needed(self) -> int:
        return min(step for step, _ in (self._last, *self._dispatcher.missing))

    def _timed_out(self) -> DeadlineError | None:
        waited = 0.0 if self._asked is None else time.monotonic() - self._asked
        if waited <= self.limit:
            return None
        step, index = self._dispatcher.admission.next_key(self._newest)
        doing = self.doing if self.starting else f"encoding step {step} micro-batch {index}"
        who = "encoder" if self._dispatcher.roles.encoder else "reader of the context cache"
        key = "timeouts.startup + timeouts.step" if self.starting else "timeouts.step"
        return DeadlineError(
            f"{who} timed out after {waited:.0f} s while {doing} ({key}={self.limit:g})"
        )

    def _replace(self, timeout: DeadlineError) -> None:
        """Another pipeline takes the place of one that timed out. Raises ``timeout`` when the
        restart budget is exhausted."""
        if self.restarts >= self._dispatcher.config.inference.max_restarts:
            raise DeadlineError(
                f"{timeout}; restart budget exhausted (inference.max_restarts={self.restarts})"
            )
        self.restarts += 1
        self._reopen(self._needed())
        self.notices.append(f"{timeout}; replaced it, from step {self._start}")

    def _pull(self, number: int, stream: EncodedStream) -> None:
        """The thread of one stream: pulls blocks a step ahead; the stream bounds what it holds
        beyond that. It may be stuck in a stream that hangs, and is left behind then."""
        failure: BaseException | None = None
        try:
            self._pull_all(number, stream)
        except BaseException as error:
            failure = error
        with self._changed:
            if self._wanted(number):
                self._failure, self._ended = failure, True
                if failure is None:
                    self.doing = "done"
                self._changed.notify_all()
                return
        stream.close()  # it may have come up after it had been given up

    def _pull_all(self, number: int, stream: EncodedStream) -> None:
        while True:
            with self._changed:
                if not self._wanted(number):
                    return
                self._asked = time.monotonic()
            entry = next(stream, None)
            with self._changed:
                if not self._wanted(number):
                    return
                self._asked = None
                if entry is None:
                    return
                step, index, block = entry
                self._take((step, index), block)
                while self._dispatcher.full and self._newest >= self._last and self._wanted(number):
                    self._changed.wait(timeout=1.0)

    def _take(self, key: Key, block: ray.ObjectRef) -> None:
        self._newest, self.doing = key, _ENCODING
        if key in self._dispatcher.missing:
            self._dispatcher.renew(key, block)
        elif key > self._last:
            self._last = key
            self._dispatcher.blocks.append((key, block))
        self._moved()
