"""The shared pools as a library's command sees them: opened, asked now and then, ended."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from dopsd.config import RunConfig
from dopsd.errors import ResourceError, WorkerError
from dopsd.library.disaggregated.in_flight import FIRST, most_in_flight
from dopsd.library.disaggregated.inference import ConceptWorker
from dopsd.library.disaggregated.pools import PoolsStatus, launch_pools
from dopsd.library.speed import LEARNER
from dopsd.ray_cluster.failures import error_message, unwrap_error
from dopsd.ray_cluster.placement import Roles

_ASK_SECONDS = 1.0
_ANSWER_SECONDS, _END_SECONDS = 60.0, 10.0


class Inference:
    """Roll-out and teacher workers for all concepts in flight, for as long as the ``with`` block
    lasts. ``worker``: of the actors. All calls raise WorkerError for what no other attempt at a
    concept would mend."""

    def __init__(self, config: RunConfig, roles: Roles, worker: type = ConceptWorker) -> None:
        self.config, self._roles, self._worker = config, roles, worker
        self.actor: Any = None
        """For learners, while the block lasts."""
        self._status: PoolsStatus | None = None
        self._asked: Any = None
        self._told = 0.0
        self._places = FIRST

    def __enter__(self) -> Inference:
        """Wait until every role has a worker. Raises ResourceError when one has none in time."""
        limit = self.config.timeouts.startup
        threads = self.config.library.workers * most_in_flight(self.config) + 8
        self.actor = launch_pools(self.config, self._roles, threads, self._worker)
        until = time.monotonic() + limit
        try:
            while missing := self._get(self.actor.status.remote(), limit).missing:
                if time.monotonic() > until:
                    raise ResourceError(
                        f"no {' or '.join(missing)} worker has loaded the base after "
                        f"{limit:g} s (timeouts.startup)"
                    )
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RayError):  # then its actors end with it
            ray.get(self.actor.stop.remote(), timeout=_END_SECONDS)
        ray.kill(self.actor)

    def places(self) -> int:
        """Concepts that each learner should have in flight. It only grows: one that has begun is
        never taken away."""
        self._look()
        chosen = self.config.library.in_flight
        if chosen != "auto":
            return chosen
        if self._status is not None and self._status.per_learner is not None:
            self._places = max(self._places, self._status.per_learner)
        return self._places

    def busy(self, learners_there: float) -> dict[str, float]:
        """Share of the time in which each role computed; ``learners_there``: that of learners."""
        status = self._status
        if status is None or not learners_there:
            return {}
        learner = min(1.0, status.held_seconds / learners_there)
        return {LEARNER: learner, **status.busy}

    def drop(self, concept: str) -> None:
        """The learner of a concept is no more."""
        self._look(now=True)
        self._get(self.actor.drop.remote(concept))

    def _look(self, now: bool = False) -> None:
        """Ask every second, and take what was answered; ``now``: wait for an answer."""
        if self._asked is None and (now or time.monotonic() - self._told > _ASK_SECONDS):
            self._asked = self.actor.status.remote()
        if self._asked is None:
            return
        if not now and not ray.wait([self._asked], timeout=0)[0]:
            return
        self._status, self._asked = self._get(self._asked), None
        self._told = time.monotonic()

    def _get(self, ref: Any, limit: float = _ANSWER_SECONDS) -> Any:
        try:
            value = ray.get(ref, timeout=limit)
        except GetTimeoutError:
            raise WorkerError(f"the shared pools did not answer within {limit:g} s") from None
        except RayTaskError as error:
            raise unwrap_error(error, "the shared pools") from None
        except RayError as error:
            raise WorkerError(f"the shared pools died: {error_message(error)}") from None
        if isinstance(value, PoolsStatus) and value.error is not None:
            raise value.error
        return value
