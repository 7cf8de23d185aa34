"""How large the pods of a run must be, out of its config and its plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from dopsd.config import RunConfig
from dopsd.errors import ConfigError
from dopsd.kuberay.groups import Group
from dopsd.plan import Plan
from dopsd.ray_cluster.packing import Node, NoPlace, fewest, place
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
"""Copies of a LoRA's checkpoint for which the head has room: a run that resumes has it on the heaps
of driver and coordinator and in the store, which is 0.3 of the memory. Saving takes none of it."""
_PLANNED = {"pool": "rollout"}
"""Roles that `dopsd plan` calls otherwise."""
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
class GroupSize:
    group: Group
    pod: PodSize
    pods: int
    fewest: int
    """Of them, with which an elastic run or a library starts."""


@dataclass(frozen=True)
class Sizes:
    head: PodSize
    groups: tuple[GroupSize, ...]

    @property
    def most(self) -> tuple[int, int]:
        """CPUs and GPUs of all workers that there may be."""
        cpus = sum(size.pods * size.pod.cpus for size in self.groups)
        return cpus, sum(size.pods * size.pod.gpus for size in self.groups)


def sizes_of(
    config: RunConfig,
    plan: Plan,
    groups: Sequence[Group],
    gpus_of_a_pod: int,
    volume: bool,
    library: bool = False,
) -> Sizes:
    """``gpus_of_a_pod``: of the nodes that there are; ``volume``: models are read from one;
    ``library``: the plan is of one of its workers.

    Raises ConfigError for a worker that no such pod holds.
    """
    shapes = []
    for group in groups:
        gpus = gpus_of_a_pod if group.has_gpus else 0
        if len(groups) > 1:  # an encoder on its own takes no whole node
            gpus = min(gpus, math.ceil(sum(role.workers * role.gpus for role in group.roles)))
        shapes.append((_cpus_of_a_pod(group.roles, gpus), gpus))
    pods = _pods_of(groups, shapes, lambda role: role)
    start = _pods_of(groups, shapes, fewest)
    if library and (encoder := _resolved(config).encoder):
        # Before the workers, in their place; and nothing asks the autoscaler for them.
        (cpus, gpus), labels = shapes[0], groups[0].labels
        encoding = pods_for([encoder], cpus, gpus, labels)
        pods, start = [max(pods[0], encoding)], [max(start[0], encoding)]
    download = plan.base.download_gb
    cache = 0.0 if volume else (_UNKNOWN_DOWNLOAD if download is None else download) * 1.2
    sizes = []
    for group, shape, each, least in zip(groups, shapes, pods, start):
        host = _host(plan, group, len(groups) == 1) * (config.library.workers if library else 1)
        pod = _worker(group, host, shape, each, math.ceil(cache))
        sizes.append(GroupSize(group, pod, each, least))
    memory = _rounded(_HEAD + _PASSES * _checkpoint(plan), 16)
    return Sizes(PodSize(4, 0, memory, _SCRATCH, math.ceil(cache)), tuple(sizes))


def _worker(group: Group, host: float, shape: tuple[int, int], pods: int, cache: int) -> PodSize:
    """``host``: GiB that the group's processes take while they load."""
    cpus, gpus = shape
    processes = math.ceil(sum(role.workers for role in group.roles) / pods)
    loaded = host / pods + processes * _LIBRARIES
    memory = _rounded(max(loaded / (1 - _STORE) * 1.2, 32 * gpus), 16)
    return PodSize(cpus, gpus, memory, _SCRATCH + 10 * gpus, cache)


def _host(plan: Plan, group: Group, alone: bool) -> float:
    """GiB of what a group's workers load, with the object store."""
    if alone:
        return plan.host / GIB
    own = {role.name for role in group.roles}
    return plan.host_of(lambda name: _PLANNED.get(name, name) in own) / GIB


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


def pods_for(
    roles: Sequence[Role], cpus: int, gpus: int, labels: Mapping[str, str] = MappingProxyType({})
) -> int:
    """The fewest pods with ``labels`` that hold all workers, in whatever order Ray places the
    roles, with a CPU left on one of them for reading. Raises ConfigError when no number does."""
    wanted = sum(role.workers * role.gpus for role in roles) / gpus if gpus else 1
    problem = ""
    for pods in range(max(1, math.ceil(wanted - 1e-6)), _MOST_PODS + 1):
        nodes = [Node(f"pod-{number}", cpus, gpus, labels) for number in range(pods)]
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


def _pods_of(
    groups: Sequence[Group], shapes: Sequence[tuple[int, int]], of: Callable[[Role], Role]
) -> list[int]:
    """Pods of each group. Where roles do not keep to their own, a group has room for those that may
    be placed on it first. Raises ConfigError."""
    roles = [list(map(of, group.roles)) for group in groups]
    pods = [pods_for(own, *shape, group.labels) for own, shape, group in zip(roles, shapes, groups)]
    while (short := _short(groups, roles, shapes, pods)) is not None:
        pods[short] += 1
        if pods[short] > _MOST_PODS:
            raise ConfigError(
                f"{groups[short].name}: {_MOST_PODS} pods do not hold its roles beside those "
                "without labels; allowed: labels of every role"
            )
    return pods


def _short(
    groups: Sequence[Group],
    roles: Sequence[Sequence[Role]],
    shapes: Sequence[tuple[int, int]],
    pods: Sequence[int],
) -> int | None:
    """Number of a group without room for its roles, in some order in which Ray may place all of
    them; None when all have room."""
    if len(groups) < 2:
        return None
    nodes = [
        [Node(f"{group.name}-{n}", *shape, group.labels) for n in range(each)]
        for group, shape, each in zip(groups, shapes, pods)
    ]
    every = list(itertools.chain(*roles))
    for node_order in itertools.permutations(nodes):
        for role_order in itertools.permutations(every):
            try:
                place(role_order, list(itertools.chain(*node_order)))
            except NoPlace as error:
                return next(n for n, own in enumerate(roles) if error.role in own)
    return None


def _cpus_of_a_pod(roles: Sequence[Role], gpus: int) -> int:
    if not gpus:
        return max(_CPU_POD, *(math.ceil(role.cpus) + 1 for role in roles))
    # As many workers as a GPU holds each want their CPUs.
    of_a_gpu = [role.cpus / role.gpus for role in roles if role.gpus >= 0.5]
    return max(_CPUS_OF_A_GPU * gpus, math.ceil(max(of_a_gpu, default=1) * gpus) + 4)


def _checkpoint(plan: Plan) -> float:
    """GiB of a checkpoint that the head reads when a run resumes; of whole models the learners read
    their own parts."""
    if plan.config.adapters == "full":
        return 0.0
    published = plan.demand.publication() * (plan.config.max_policy_lag + 1)
    return (plan.demand.trained * 16 + published) / GIB


def _rounded(gib: float, multiple: int) -> int:
    return max(multiple, math.ceil(gib / multiple) * multiple)
