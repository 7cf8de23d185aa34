"""`transport: rdt`: states stay on the device from rollout to teacher (Ray Direct Transport).

A rollout worker stashes the states of a micro-batch until it sends them; Ray then moves them
from actor to actor, over NIXL or NCCL between GPUs and over gloo between CPUs. Whatever goes wrong
closes this way for the rest of the run, which continues through the object store and says so: both
ways give the same bits.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError

from dopsd.ray_cluster.failures import error_message


class DirectTransport:
    """The way between the actors of two pools. ``tell`` takes what a run's notices should say.

    NCCL and gloo know a fixed group of actors, which is made in a thread while they load their
    models; ``limit``: seconds that this may take.
    """

    def __init__(self, actors: list[Any], device: str, tell: Callable[[str], None], limit: float):
        self.backend = _backend(device)
        self._tell, self._limit, self._began = tell, limit, time.monotonic()
        self._lock = threading.Lock()
        self._state = "opening"
        threading.Thread(target=self._open, args=(actors,), daemon=True).start()

    @property
    def grouped(self) -> bool:
        """Whether an actor that is replaced would be missing from a group."""
        return self.backend != "nixl"

    @property
    def is_open(self) -> bool:
        return self._state == "open"

    def opening(self) -> bool:
        """Whether it is not decided yet; nothing should be rolled out meanwhile."""
        if self._state == "opening" and time.monotonic() - self._began > self._limit:
            self.close(f"no {self.backend} group of the workers after {self._limit:g} s")
        return self._state == "opening"

    def close(self, reason: str) -> None:
        """Use the object store from now on; announced once."""
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closed"
        self._tell(f"transport: rdt fell back to the object store: {reason}")

    def _open(self, actors: list[Any]) -> None:
        from ray.experimental.collective import create_collective_group

        try:
            if self.grouped:
                create_collective_group(actors, backend=self.backend)
        except Exception as error:  # whatever it is, the run can do without
            self.close(error_message(error))
            return
        with self._lock:
            if self._state == "closed":
                return
            self._state = "open"
        self._tell(
            f"transport: rdt over {self.backend} from rollout to teacher; learners are Ray "
            "Train's own actors and fetch from the object store"
        )


def lost_on_the_way(error: RayTaskError) -> bool:
    """Whether a task failed because a tensor did not arrive, before any of its own code ran."""
    return "/ray/experimental/rdt/" in str(error)


def _backend(device: str) -> str:
    if device != "cuda":
        return "gloo"
    return "nixl" if importlib.util.find_spec("nixl") else "nccl"
