"""Queues of a cluster's own: Kueue, which lets a job exist when its turn has come, and Volcano,
which binds all pods of one or none."""

from __future__ import annotations

import re
from typing import Literal

from dopsd import shown
from dopsd.errors import ConfigError

Scheduler = Literal["kueue", "volcano"]
SCHEDULERS: tuple[Scheduler, ...] = ("kueue", "volcano")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


def scheduler_of(name: str | None, queue: str | None) -> Scheduler | None:
    """What the options ``--scheduler`` and ``--queue`` say; a queue alone is Kueue's. Raises
    ConfigError."""
    if queue is not None and not _NAME.fullmatch(queue):
        raise ConfigError(
            f"--queue: {shown.value(queue)}, allowed: a name of Kubernetes: small letters, digits, "
            "hyphens and dots, at most 63"
        )
    found: dict[str | None, Scheduler] = {each: each for each in SCHEDULERS}
    if name is not None and name not in found:
        raise ConfigError(f"--scheduler: {shown.value(name)}, allowed: {', '.join(SCHEDULERS)}")
    if name == "kueue" and queue is None:
        raise ConfigError("--queue: missing, with --scheduler kueue")
    return found.get(name, "kueue" if queue else None)


def suspends(scheduler: Scheduler | None) -> bool:
    """Whether a job that waits is suspended, which KubeRay allows only of what it shuts down
    itself."""
    return scheduler == "kueue"


def queue_labels(scheduler: Scheduler | None, queue: str | None) -> dict[str, str]:
    """Of a RayJob or RayCluster. KubeRay's operator (started with ``batchScheduler.name=volcano``)
    makes Volcano's PodGroup of them, with the pods of all groups, and names the scheduler in each.

    Its label of a priority class is left out: it would be the head's too, which has one of its own.
    """
    if scheduler == "volcano":
        named = {"volcano.sh/queue-name": queue} if queue else {}
        return {"ray.io/scheduler-name": "volcano", **named}
    return {"kueue.x-k8s.io/queue-name": queue} if queue else {}
