"""Fetching bytes; one task on a role's resources, with a deadline: previews, the preflight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from dopsd.errors import DeadlineError
from dopsd.ray_cluster.failures import unwrap_error
from dopsd.ray_cluster.placement import Role

CANCELLATIONS = 30
"""Times that a task which timed out is told to end, a second apart."""


def fetch_bytes(ref: ray.ObjectRef, limit: float | None = None) -> bytes:
    """``ray.get`` as something that can be sent to an actor; ``limit``: seconds it may take."""
    return bytes(ray.get(ref, timeout=limit))


def run_task(
    who: str, doing: str, role: Role, limit: float, work: Callable[..., Any], *arguments: Any
) -> Any:
    """What ``work(*arguments)`` returns, run on one worker's share of ``role``.

    Raises DeadlineError after ``limit`` seconds (the task is ended), WorkerError in the name of
    ``who``, or the task's own DopsdError.
    """
    task: Any = ray.remote(**role.options, max_retries=1)(work)
    reference = task.remote(*arguments)
    try:
        return ray.get(reference, timeout=limit)
    except GetTimeoutError:
        # Cancelling is best effort: it is asked for until the task has ended, so that what it held
        # is free again.
        for _ in range(CANCELLATIONS):
            ray.cancel(reference, force=True)
            if ray.wait([reference], timeout=1.0)[0]:
                break
        raise DeadlineError(f"{who} timed out after {limit:g} s while {doing}") from None
    except RayError as error:
        raise unwrap_error(error, who) from None
