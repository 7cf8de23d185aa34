"""What a concept's learner says to the shared pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from dopsd.config import TimeoutSection
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.errors import WorkerError
from dopsd.library.disaggregated.inference import Settings
from dopsd.library.disaggregated.pools import Learnt
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.failures import error_message, unwrap_error

_PATIENCE = 5.0
"""Seconds after which a learner that waits gives a sign of life."""
_ANSWER_SECONDS = 60.0
"""What the pools, which answer from memory, may take beyond that."""


class Lane:
    """A concept's way through the pools, an actor of ``SharedPools``. ``waits`` is called now and
    then while it waits. All calls raise the concept's error, or WorkerError where the pools are no
    more."""

    def __init__(
        self,
        pools: Any,
        concept: str,
        first: int,
        sizes: Sequence[int],
        settings: Settings,
        timeouts: TimeoutSection,
        waits: Callable[[], None],
    ) -> None:
        self._pools, self._timeouts, self._waits = pools, timeouts, waits
        self.number: int = self._ask("open", concept, first, list(sizes), settings)
        """It only grows: the older concept has the lower one."""

    def publish(self, bundle: Bundle, blocks: Sequence[Any], learnt: Learnt) -> None:
        """A version, and what the step that it generates is made of: encoded blocks."""
        boxes = [ObjectRefBox(ray.put(block), True) for block in blocks]
        self._ask("publish", self.number, bundle, boxes, learnt)

    def fetch(self, step: int) -> list[bytes]:
        """The scored micro-batches of a step; one whose object is lost is awaited once more."""
        boxes = self._boxes(step)
        payloads = []
        for at in range(len(boxes)):
            while True:
                box = boxes[at]
                try:
                    payloads.append(ray.get(box.ref, timeout=self._timeouts.step))
                    break
                except ObjectLostError:
                    self._ask("lost", self.number, step, box.index, box.losses)
                    boxes = self._boxes(step)
        return payloads

    def close(self) -> None:
        """The concept is done."""
        self._ask("close", self.number)

    def _boxes(self, step: int) -> list[ObjectRefBox]:
        while True:
            boxes: list[ObjectRefBox] | None = self._ask("fetch", self.number, step, _PATIENCE)
            if boxes is not None:
                return boxes
            self._waits()

    def _ask(self, method: str, *values: Any) -> Any:
        try:
            call = getattr(self._pools, method).remote(*values)
            return ray.get(call, timeout=_PATIENCE + _ANSWER_SECONDS)
        except GetTimeoutError:
            raise WorkerError(f"the shared pools did not answer {method} in time") from None
        except RayActorError as error:
            raise WorkerError(f"the shared pools died: {error_message(error)}") from None
        except RayTaskError as error:
            raise unwrap_error(error, "the shared pools") from None
