"""Own prompts, drawn while the run trains by a rollout worker that has nothing to roll out.

A plain object under the coordinator's lock. A roll-out comes before any picture: one is drawn at a
time, always by the pool's last worker, and only when the pool has more workers than a version can
use, or when the learners are busy for longer than a picture takes. What is not drawn is drawn after
training from the adapters that were kept, so that nothing here waits, retries or ends the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from dopsd.config import RunConfig
from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.messages import PromptsToDraw
from dopsd.coordinator.pooled_worker import Drawing, PooledWorker
from dopsd.errors import DeadlineError, WorkerError
from dopsd.models.lora.layers import STUDENT
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.failures import error_message
from dopsd.run_folder.prompt_history import Drawn, drawn_versions

_WAITING = 2
"""Versions whose weights are kept in the object store to be drawn: the one under way, and the
newest."""
_FAILURES = 3
"""Pictures that fail before no more are drawn while the run trains."""


@dataclass
class _Version:
    """A version that is drawn."""

    number: int
    student: ray.ObjectRef
    left: deque[int]
    """Prompts that are not drawn yet."""


class Drawings:
    """``take(drawn, picture)`` gets each picture, a reference; ``tell`` what failed, in a line.
    Without ``prompts`` nothing is drawn."""

    def __init__(
        self,
        config: RunConfig,
        prompts: PromptsToDraw | None,
        dispatcher: Dispatcher,
        take: Callable[[Drawn, ray.ObjectRef], None],
        tell: Callable[[str], None],
    ) -> None:
        self.config, self._prompts, self._dispatcher = config, prompts, dispatcher
        self._take, self._tell = take, tell
        self._wanted = set(drawn_versions(config)) if prompts else set()
        self._drawn: set[Drawn] = set()
        self._waiting: list[_Version] = []
        self._under_way: tuple[PooledWorker, Drawing] | None = None
        self._seconds: float | None = None
        """What the last picture took; None before the first."""
        self._failures = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Pictures that are drawn, and those that may be before the end."""
        prompts = len(self._prompts.contexts) if self._prompts else 0
        done = sum(version in self._wanted for version, _ in self._drawn)
        return done, len(self._wanted) * prompts

    def rewind(self, drawn: Iterable[Drawn] = ()) -> None:
        """Forget everything but what is ``drawn``; a picture under way comes to nothing."""
        self._drawn = set(drawn)
        self._waiting.clear()
        if self._under_way is not None:
            self._under_way[1].dropped = True

    def offer(self, bundle: Bundle) -> None:
        """A version is published, or restored."""
        if self._prompts is None or self._failures >= _FAILURES or STUDENT not in bundle.refs:
            return
        numbers = range(len(self._prompts.contexts))
        left = [n for n in numbers if (bundle.version, n) not in self._drawn]
        if bundle.version not in self._wanted or not left:
            return
        del self._waiting[_WAITING - 1 :]  # its weights would stay in the object store
        self._waiting.append(_Version(bundle.version, bundle.refs[STUDENT], deque(left)))

    def pending(self) -> list[ray.ObjectRef]:
        """References of which one becomes ready when there is something to collect."""
        return [self._under_way[1].done] if self._under_way else []

    def advance(self, published: int, busy_until: float) -> None:
        """Begin a picture if nobody waits for it. Whatever may be rolled out is with the workers.

        ``published``: the newest version; ``busy_until``: until when the learners train, by
        ``time.monotonic()``.
        """
        if self._under_way is not None or not self._waiting or self._prompts is None:
            return
        pool = self._dispatcher.pools[0]
        worker = pool.workers[-1]
        if worker.calls or not self._free(worker, published, busy_until):
            return
        version = self._waiting[0]
        number = version.left.popleft()
        if not version.left:
            self._waiting.pop(0)
        context = self._prompts.contexts[number]
        drawing = pool.draw(
            worker, version.number, number, version.student, context, self._prompts.size
        )
        self._under_way = worker, drawing

    def _free(self, worker: PooledWorker, published: int, busy_until: float) -> bool:
        """Whether the worker, which has no call, can be spared for a picture."""
        dispatcher = self._dispatcher
        if dispatcher.pools[0].opening or not dispatcher.handed_out:
            return False
        if dispatcher.workers_wanted(published) < len(dispatcher.pools[0].workers):
            return True
        ends = time.monotonic() + (self._seconds or dispatcher.rollout_seconds)
        return worker.loaded >= 0 and not dispatcher.expects(published) and ends <= busy_until

    def collect(self) -> bool:
        """Take in the picture under way if it has ended, however it did; returns whether it has:
        a roll-out that waited behind it goes on."""
        if self._under_way is None:
            return False
        worker, drawing = self._under_way
        pool = self._dispatcher.pools[0]
        if worker.drawing is not drawing:
            self._end(drawing, f"{worker.name} was replaced")
        elif ray.wait([drawing.done], timeout=0, fetch_local=False)[0]:
            try:
                stats = ray.get(drawing.done)
            except RayTaskError as error:
                pool.end_drawing(worker)
                self._end(drawing, error_message(error))
            except RayError as error:
                died = WorkerError(f"{worker.name} died: {error_message(error)}")
                pool.replace(worker, died)
                self._end(drawing, str(died))
            else:
                self._seconds = stats["seconds"]
                if worker.loaded >= 0:  # else it came up first
                    self._seconds = time.monotonic() - drawing.started - stats["loading"]
                pool.end_drawing(worker, stats["seconds"])
                self._end(drawing)
        elif (seconds := time.monotonic() - drawing.started) > self._limit(worker):
            late = DeadlineError(f"{worker.name} timed out after {seconds:.0f} s while drawing")
            pool.replace(worker, late)
            self._end(drawing, str(late))
        return self._under_way is None

    def _limit(self, worker: PooledWorker) -> float:
        """Less than a roll-out behind it may take with it."""
        timeouts = self.config.timeouts
        return timeouts.startup if worker.loaded < 0 else timeouts.step / 2

    def _end(self, drawing: Drawing, why: str | None = None) -> None:
        self._under_way = None
        if drawing.dropped:
            return
        drawn = drawing.version, drawing.number
        if why is None:
            self._drawn.add(drawn)
            self._take(drawn, drawing.result)
            return
        self._failures += 1
        rest = "it"
        if self._failures >= _FAILURES:
            self._waiting.clear()
            rest = "what is left"
        self._tell(
            f"preview.prompts: prompt {drawn[1] + 1} after {drawn[0]} steps is not drawn while "
            f"training ({why}); {rest} is drawn at the end"
        )
