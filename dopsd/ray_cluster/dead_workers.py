"""Processes of a job that died, on whichever node, and the ends of their logs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.ray_cluster.ray_private import crashed_workers, logs_folder

_KEPT = {".err": 2**16, ".out": 2**14, ".log": 2**13}
"""Bytes of a log's end, by its kind: standard error, standard output, and Ray's own C++ part."""
_ANSWER_SECONDS = 15.0
_ROLES = {"RayTrainWorker": "learner", "CoordinatorActor": "coordinator", "MapWorker": "encoder"}
"""By the class of an actor; an inference worker's is called after its role."""


@dataclass(frozen=True)
class DeadWorker:
    """A process that ended although nobody asked it to."""

    worker_id: str
    node_id: str
    host: str
    pid: int
    job_id: str
    actor_class: str
    """"" of one that ran tasks."""
    why: str
    """Ray's own words."""

    @property
    def role(self) -> str:
        name = self.actor_class.partition("(")[0].rpartition(".")[2]
        return _ROLES.get(name) or name.removesuffix("Worker").lower() or "task"

    @property
    def name(self) -> str:
        """Of its log among those of other processes, hosts and runs."""
        return f"{self.role}-{self.pid}-{self.worker_id[:6]}"


def dead_workers(since: float = 0.0) -> list[DeadWorker]:
    """Those of this job, in the order of their ends, from ``since`` (seconds since 1970) on."""
    return [DeadWorker(**worker) for worker in crashed_workers(since)]


def log_tail(worker: DeadWorker) -> bytes | None:
    """The end of what it wrote, read where it lived; None when that node is gone or too slow."""
    there = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
    task: Any = ray.remote(_read_there).options(
        num_cpus=0, max_retries=0, scheduling_strategy=there
    )
    try:
        tail: bytes = ray.get(task.remote(worker.worker_id, worker.pid), timeout=_ANSWER_SECONDS)
    except RayError:
        return None
    return tail


def _read_there(worker_id: str, pid: int) -> bytes:
    return tails(Path(logs_folder()).glob(f"*worker-*{worker_id}*{pid}.*"))


def tails(files: Iterable[Path]) -> bytes:
    """The ends of log files, each under its name, standard error first."""
    order = list(_KEPT)
    known = sorted((f for f in files if f.suffix in order), key=lambda f: order.index(f.suffix))
    parts = []
    for file in known:
        with open(file, "rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _KEPT[file.suffix]))
            parts.append(f"==> {file.name} <==\n".encode() + opened.read().rstrip() + b"\n")
    return b"\n".join(parts)
