"""What drivers and learners call of the coordinator."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
)

from dopsd.errors import WorkerError
from dopsd.ray_cluster.failures import error_message, unwrap_error

ANSWER_SECONDS = 60.0
"""What the coordinator may take for an answer: it answers from memory."""


class CoordinatorLost(WorkerError):
    """The coordinator died, or answers no more."""


def ask(coordinator: Any, method: str, *values: Any, limit: float = ANSWER_SECONDS) -> Any:
    """Call the coordinator. Raises CoordinatorLost, or the coordinator's own DopsdError."""
    try:
        return ray.get(getattr(coordinator, method).remote(*values), timeout=limit)
    except GetTimeoutError:
        raise CoordinatorLost(
            f"coordinator timed out after {limit:g} s while answering {method}"
        ) from None
    except (RayActorError, ActorUnavailableError) as error:
        raise CoordinatorLost(f"coordinator died: {error_message(error)}") from None
    except RayError as error:
        raise unwrap_error(error, "coordinator") from None


def find_coordinator(name: str, namespace: str, patience: float) -> Any:
    """The coordinator's actor; it may be on its way back for ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return ray.get_actor(name, namespace=namespace)
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
