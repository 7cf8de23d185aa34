"""Connecting to Ray: a cluster that is there, or a fresh one on this machine."""

from __future__ import annotations

import logging
import math
import os
import warnings

import ray

from dopsd import cpus, processes
from dopsd.ray_cluster.local import is_private, start_local
from dopsd.ray_cluster.placement import Node
from dopsd.ray_cluster.process import EXPANDABLE
from dopsd.ray_cluster.ray_private import own_signals, session, started_processes
from dopsd.ray_cluster.to_come import most_resources

NAMESPACE = "dopsd"
ADDRESS = "RAY_ADDRESS"
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # tries that fail; what the last one says is ours to tell
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray Train's learners allocate before anything of ours runs (see ``process.use_device``).
    "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", EXPANDABLE),
}
"""Of every process of a run. Libraries narrate: the run's own display says what matters."""


_started: set[str] = set()
"""The session of a Ray that ``connect`` started."""


@own_signals()
def connect() -> dict[str, float]:
    """Join the cluster that RAY_ADDRESS names (``ray job submit`` sets it), else start one here
    that no other machine reaches. Returns what the cluster has."""
    # Ray Train and Data narrate each of their steps; the run's own display says what matters.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if ray.is_initialized():
        return cluster_resources()
    if address := os.environ.get(ADDRESS):
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            runtime_env={"env_vars": ENVIRONMENT},
        )
    else:
        start_local(
            ENVIRONMENT,
            num_cpus=local_cpus(),
            namespace=NAMESPACE,
            logging_level=logging.WARNING,
        )
        _started.add(session())
    return cluster_resources()


def local_cpus() -> int:
    """Logical CPUs of a cluster that ``connect`` starts: those that this process may use, however
    many the machine has."""
    return max(2, cpus.usable().usable)


def starts_here() -> bool:
    """Whether ``connect`` would start a cluster, so that all of a run happens on this machine."""
    return not ray.is_initialized() and not os.environ.get(ADDRESS)


def end_local() -> None:
    """End the Ray that ``connect`` started on this machine, with every process of it; one that was
    joined, or that somebody else started in this process, is left as it is."""
    if ray.is_initialized() and session() in _started:
        roots = started_processes()
        below = processes.descendants(roots)
        ray.shutdown()
        processes.kill(below)


def cluster_resources() -> dict[str, float]:
    """What all nodes have together, whoever uses it: CPU, GPU and whatever else Ray counts."""
    return dict(ray.cluster_resources())


def gpus_to_come(asked: bool) -> float:
    """GPUs to reckon with: those that the cluster has, or else those that an autoscaler may bring.
    Where nobody says what it may bring, a cluster that others can join may still get those that are
    ``asked`` for, however many."""
    if (now := cluster_resources().get("GPU", 0.0)) or is_private():
        return now
    if (most := most_resources()) is not None:
        return most["GPU"]
    return math.inf if asked else 0.0


def nodes() -> list[Node]:
    """Those that are alive."""
    return [
        Node(dict(node["Resources"]), dict(node["Labels"])) for node in ray.nodes() if node["Alive"]
    ]
