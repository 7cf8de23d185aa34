"""The learners as Ray Train starts them: always as many, or as many as the cluster has room for."""

from __future__ import annotations

import os
from typing import Any

from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from dopsd.config import RunConfig
from dopsd.learner.collectives import collective_seconds
from dopsd.learner.rendezvous import LoopbackTorchConfig
from dopsd.learner.train_loop import train_worker
from dopsd.ray_cluster.connect import NAMESPACE
from dopsd.ray_cluster.local import is_private
from dopsd.ray_cluster.placement import Roles

LOST_NODES = 5
"""Of fixed learners: groups that may be lost with a node, before Ray Train gives up. Few: nobody
else counts the groups that fail before they reach the coordinator."""


def learner_arguments(
    config: RunConfig, preset: dict[str, Any], coordinator: str, metadata: dict[str, str]
) -> dict[str, Any]:
    """What every learner gets (``train_loop.train_worker``): plain values."""
    return {
        "config": config.model_dump(mode="json"),
        "preset": preset,
        "coordinator": coordinator,
        "namespace": NAMESPACE,
        "metadata": metadata,
    }


def learner_trainer(
    config: RunConfig, roles: Roles, arguments: dict[str, Any], scratch: str
) -> TorchTrainer:
    """Ray Train's trainer. ``arguments``: see ``train_worker``; ``scratch``: a folder for Ray."""
    # ``checkpoint.requests`` looks for nodes that are drained; Ray's own watcher is a process more.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    learner, section = roles.learner, config.learner
    elastic = learner.min_workers is not None
    # Whoever counts restarts is the coordinator: of fixed learners, those that look for one on its
    # way back may fail twice, and nodes may be lost; elastic ones are made anew with each of them.
    failures = -1 if elastic else 2 * section.restarts
    if section.restarts and not elastic:
        failures += LOST_NODES
    torch_config = LoopbackTorchConfig if is_private() else TorchConfig
    scaling: Any = ScalingConfig  # type checkers see the class of Ray Train's first version
    common: dict[str, Any] = {
        "train_loop_config": arguments,
        "torch_config": torch_config(
            backend="nccl" if learner.gpus else "gloo",
            timeout_s=collective_seconds(config.timeouts),
        ),
        "scaling_config": scaling(
            num_workers=(learner.needed, learner.workers) if elastic else learner.workers,
            elastic_resize_monitor_interval_s=section.resize_interval_s,
            use_gpu=bool(learner.gpus),
            resources_per_worker={
                "CPU": learner.cpus,
                **({"GPU": learner.gpus} if learner.gpus else {}),
            },
            label_selector=dict(learner.labels) or None,
        ),
        "run_config": TrainRunConfig(
            name="ray_train",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=failures),
        ),
    }
    if not elastic:
        return TorchTrainer(train_worker, **common)
    from dopsd.learner.scaling_policy import ClusterCapacity, ElasticTrainer

    capacity = ClusterCapacity(
        roles, arguments["coordinator"], arguments["namespace"], config.timeouts.step
    )
    return ElasticTrainer(train_worker, capacity=capacity, **common)
