"""How large the pods of a run must be, out of its config and its plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dopsd.config import RunConfig
from dopsd.errors import ConfigError
from dopsd.plan import Plan
from dopsd.ray_cluster.packing import Node, place
from dopsd.ray_cluster.placement import Role, Roles, resolve_roles

GIB = 2**30
_CPUS_OF_A_GPU = 4
"""Workers take about half of them; the rest is for Ray Data, which reads and decodes images."""
_CPU_POD = 8
"""CPUs of a pod without GPUs."""
_MOST_PODS = 64
_LIBRARIES = 3.0
"""GiB of a worker's process beside its tensors: torch, diffusers, DeepSpeed, CUDA."""
_STORE = 0.3
"""Share of a node's memory that Ray gives to its object store."""
_SHM = 0.36
"""Share of a pod's memory that its /dev/shm may take: with less than Ray's share Ray would put the
store on disk, and NCCL has its buffers there too."""
_HEAD = 8.0
"""GiB of Ray's own services, the driver and the coordinator."""
_PASSES = 6
"""Copies of a LoRA's checkpoint on the head: in the store, on the coordinator's heap, read back."""
_SCRATCH = 30
"""GiB of logs and spilled objects of a pod."""
_UNKNOWN_DOWNLOAD = 60.0
"""GB of models whose size is not known."""


@dataclass(frozen=True)
class PodSize:
    """Of one pod; memory and disks in GiB."""

    cpus: int
    gpus: int
    memory: int
    scratch: int
    """Of /tmp/ray: logs and spilled objects."""
    cache: int
    """Of the models that it downloads; 0: it reads none, or from a volume."""

    @property
    def shm(self) -> int:
        """Of /dev/shm, which counts against the memory."""
        return math.ceil(self.memory * _SHM)

    @property
    def disk(self) -> int:
        """What the pod may write in all, with what lies outside of its volumes."""
        return self.scratch + self.cache + 10


@dataclass(frozen=True)
class Sizes:
    head: PodSize
    worker: PodSize
    pods: int
    """Workers."""
    fewest: int
    """Of them, with which an elastic run or a library starts."""


def sizes_of(
    config: RunConfig, plan: Plan, gpus_of_a_pod: int, volume: bool, library: bool = False
) -> Sizes:
    """``gpus_of_a_pod``: of the nodes that there are; ``volume``: models are read from one;
    ``library``: the plan is of one of its workers.

    Raises ConfigError for a worker that no such pod holds.
    """
    gpus = 0 if config.device == "cpu" else gpus_of_a_pod
    roles = library_roles(config) if library else roles_of(config)
    cpus = _cpus_of_a_pod(roles, gpus)
    pods = pods_for(roles, cpus, gpus)
    fewest = pods_for([_fewest(role) for role in roles], cpus, gpus)
    if library and (encoder := _resolved(config).encoder):
        # Before the workers, in their place; and nothing asks the autoscaler for them.
        encoding = pods_for([encoder], cpus, gpus)
        pods, fewest = max(pods, encoding), max(fewest, encoding)
    processes = math.ceil(sum(role.workers for role in roles) / pods)
    host = plan.host * (config.library.workers if library else 1)
    loaded = host / GIB / pods + processes * _LIBRARIES
    download = plan.base.download_gb
    cache = 0.0 if volume else (_UNKNOWN_DOWNLOAD if download is None else download) * 1.2
    worker = PodSize(
        cpus=cpus,
        gpus=gpus,
        memory=_rounded(max(loaded / (1 - _STORE) * 1.2, 32 * gpus), 16),
        scratch=_SCRATCH + 10 * gpus,
        cache=math.ceil(cache),
    )
    head = PodSize(4, 0, _rounded(_HEAD + _PASSES * _checkpoint(plan), 16), _SCRATCH, worker.cache)
    return Sizes(head, worker, pods, fewest)


def roles_of(config: RunConfig) -> list[Role]:
    """What has to find a place on a cluster with as many GPUs as the run wants."""
    roles = _resolved(config)
    if config.data.context_cache == "require":
        roles = replace(roles, encoder=None)
    return roles.all()


def _resolved(config: RunConfig) -> Roles:
    return resolve_roles(config, 0.0 if config.device == "cpu" else math.inf)


def library_roles(config: RunConfig) -> list[Role]:
    """What has to find a place for a library while it trains: its workers, of which one is enough.
    Its encoders are gone then."""
    learner = _resolved(config).learner
    return [replace(learner, name="library", workers=config.library.workers, min_workers=1)]


def pods_for(roles: Sequence[Role], cpus: int, gpus: int) -> int:
    """The fewest pods that hold all workers, in whatever order Ray places the roles, with a CPU
    left on one of them for reading. Raises ConfigError when no number does."""
    wanted = sum(role.workers * role.gpus for role in roles) / gpus if gpus else 1
    problem = ""
    for pods in range(max(1, math.ceil(wanted - 1e-6)), _MOST_PODS + 1):
        nodes = [Node(f"pod-{number}", cpus, gpus) for number in range(pods)]
        try:
            for order in itertools.permutations(roles):
                _, left = place(order, nodes)
                if max(node.cpus for node in left) < 1:
                    raise ValueError("no CPU is left for reading")
        except ValueError as error:
            problem = str(error)
            continue
        return pods
    raise ConfigError(
        f"--gpus-per-pod: {gpus}, and {_MOST_PODS} pods of {cpus} CPUs do not hold this run "
        f"({problem.partition(', left')[0]}); allowed: more GPUs in a pod, or smaller roles"
    )


def _fewest(role: Role) -> Role:
    return Role(role.name, role.needed, role.cpus, role.gpus)


def _cpus_of_a_pod(roles: Sequence[Role], gpus: int) -> int:
    if not gpus:
        return max(_CPU_POD, *(math.ceil(role.cpus) + 1 for role in roles))
    # As many workers as a GPU holds each want their CPUs.
    of_a_gpu = [role.cpus / role.gpus for role in roles if role.gpus >= 0.5]
    return max(_CPUS_OF_A_GPU * gpus, math.ceil(max(of_a_gpu, default=1) * gpus) + 4)


def _checkpoint(plan: Plan) -> float:
    """GiB of a checkpoint that passes through the head; whole models are written by the learners
    themselves."""
    if plan.config.adapters == "full":
        return 0.0
    published = plan.demand.publication() * (plan.config.max_policy_lag + 1)
    return (plan.demand.trained * 16 + published) / GIB


def _rounded(gib: float, multiple: int) -> int:
    return max(multiple, math.ceil(gib / multiple) * multiple)
