"""The one place that names the roles' resources and checks them against the cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dopsd.config import Device, RoleSection, RunConfig
from dopsd.errors import ResourceError
from dopsd.ray_cluster.labels import has_labels, told
from dopsd.ray_cluster.local import is_private


@dataclass(frozen=True)
class Node:
    """What Ray says of one that is alive."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, role: Role) -> int:
        """Workers of ``role`` for which it is large enough, and for which it has the labels."""
        if not has_labels(self.labels, role.labels):
            return 0
        asked = [("CPU", role.cpus), ("GPU", role.gpus)]
        room = [math.floor(self.resources.get(kind, 0.0) / n + 1e-6) for kind, n in asked if n]
        return min([*room, role.workers])


@dataclass(frozen=True)
class Role:
    """``workers`` actors with ``cpus`` and ``gpus`` each (fractions are logical shares)."""

    name: str
    workers: int
    cpus: float
    gpus: float
    min_workers: int | None = None
    """Of an elastic role; ``workers`` are the most then."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of the nodes that may hold one."""

    @property
    def label_options(self) -> dict[str, Any]:
        """Of Ray's actors and tasks."""
        return {"label_selector": dict(self.labels)} if self.labels else {}

    @property
    def options(self) -> dict[str, Any]:
        """Of Ray's actors and tasks: what a worker takes, and where."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **self.label_options}

    @property
    def needed(self) -> int:
        """Workers without which there is no start."""
        return self.min_workers or self.workers

    @property
    def device(self) -> str:
        """torch device string inside a worker: Ray shows each one its own GPUs."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class Roles:
    """Every role of a run: no encoder when contexts were encoded before, no inference pools when
    the learners roll out themselves, no rollout pool when the objective is not on-policy."""

    encoder: Role | None
    rollout: Role | None
    teacher: Role | None
    learner: Role

    def all(self) -> list[Role]:
        return [r for r in (self.encoder, self.rollout, self.teacher, self.learner) if r]


def uses_gpus(device: Device, cluster_gpus: float) -> bool:
    """What a run's ``device`` means on a cluster with ``cluster_gpus`` GPUs: ``auto`` takes GPUs
    when there are any. Raises ResourceError when ``cuda`` meets a cluster without."""
    if device == "cuda" and not cluster_gpus:
        raise ResourceError("device: cuda, but the cluster has no GPU; allowed: auto or cpu")
    return device != "cpu" and cluster_gpus > 0


def resolve_roles(config: RunConfig, cluster_gpus: float) -> Roles:
    """Resources of each role on a cluster with ``cluster_gpus`` GPUs. Raises as ``uses_gpus``."""
    cuda = uses_gpus(config.device, cluster_gpus)

    def role(name: str, section: RoleSection) -> Role:
        gpus = (section.gpus if section.gpus is not None else 1.0) if cuda else 0.0
        return Role(name, section.workers, section.cpus, gpus, labels=section.labels)

    disaggregated = config.source == "disaggregated"
    on_policy = config.method.objective == "dopsd"
    return Roles(
        encoder=role("encoder", config.encoder),
        rollout=role("rollout", config.rollout) if disaggregated and on_policy else None,
        teacher=role("teacher", config.teacher)
        if disaggregated and not config.inference.shared
        else None,
        learner=replace(role("learner", config.learner), min_workers=config.learner.min_workers),
    )


def sum_of(roles: Sequence[Role]) -> tuple[float, float]:
    """CPUs and GPUs without which there is no start."""
    cpus = sum(role.needed * role.cpus for role in roles)
    gpus = sum(role.needed * role.gpus for role in roles)
    return cpus, gpus


def shortfall(roles: Sequence[Role], resources: dict[str, float]) -> str | None:
    """The sum of what is asked against what the cluster has, or None when it fits."""
    lines = [
        f"{role.name} {role.needed} x ({role.cpus:g} CPU, {role.gpus:g} GPU)" for role in roles
    ]
    cpus, gpus = sum_of(roles)
    has_cpus, has_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus <= has_cpus + 1e-6 and gpus <= has_gpus + 1e-6:
        return None
    return (
        f"asked {cpus:g} CPU and {gpus:g} GPU ({' + '.join(lines)}); "
        f"the cluster has {has_cpus:g} CPU and {has_gpus:g} GPU"
    )


def refuse_too_large(roles: Sequence[Role], cpus: float) -> None:
    """Raises ResourceError for a role whose workers need more than the ``cpus`` of this machine,
    where all of the run happens."""
    for role in roles:
        if role.cpus > cpus:
            raise ResourceError(
                f"{role.name}.cpus: {role.cpus:g}, allowed: at most {cpus:g}, which this machine "
                "has (RAY_ADDRESS names a cluster of several)"
            )


def learners_that_fit(roles: Roles, resources: dict[str, float]) -> int:
    """How many learners a cluster of that size holds beside the other roles; ``workers`` at most.

    Ray Data reads with whole CPUs: one is left to it, unless there would be too few learners then.
    """
    others, learner = [r for r in roles.all() if r is not roles.learner], roles.learner
    gpus = resources.get("GPU", 0.0) - sum(role.workers * role.gpus for role in others)
    cpus = resources.get("CPU", 0.0) - sum(role.workers * role.cpus for role in others)

    def fit(cpus: float) -> int:
        room = [
            math.floor(free / asked + 1e-6)
            for free, asked in ((cpus, learner.cpus), (gpus, learner.gpus))
            if asked
        ]
        return max(0, min([*room, learner.workers]))

    fewest = min(learner.needed, fit(cpus))
    return max(fewest, fit(cpus - 1.0))


def unplaced(roles: Sequence[Role], nodes: Sequence[Node]) -> str | None:
    """A role for whose workers no node is large enough or has the labels, or with labels too few
    nodes; None when there is none."""
    for role in roles:
        room = sum(node.holds(role) for node in nodes)
        if role.labels and not any(has_labels(node.labels, role.labels) for node in nodes):
            return f"no node has the labels of a {role.name} worker ({told(role.labels)})"
        if not room:
            where = f" with {told(role.labels)}" if role.labels else ""
            return (
                f"no node{where} has the {role.cpus:g} CPU and {role.gpus:g} GPU of a {role.name} "
                "worker"
            )
        if role.labels and room < role.needed:
            return (
                f"nodes with {told(role.labels)} have room for {room} of {role.needed} {role.name} "
                "workers"
            )
    return None


def refuse_unlabelled(roles: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Raises ResourceError for a role whose labels no node has, where no other can join."""
    for role in roles:
        if is_private() and not any(has_labels(node.labels, role.labels) for node in nodes):
            raise ResourceError(
                f"{role.name}.labels: {told(role.labels)}, but this machine, where all of the run "
                "happens, has none such; allowed: none, or RAY_ADDRESS of a cluster with such nodes"
            )


def wait_for_resources(
    roles: Sequence[Role],
    resources: Callable[[], dict[str, float]],
    deadline: float,
    nodes: Callable[[], list[Node]] | None = None,
) -> None:
    """Wait until the cluster (which may be scaling up) is large enough; one that nobody can join
    never grows. ``nodes``: its nodes, where they are known.

    Raises ResourceError with the sum after ``deadline`` seconds.
    """
    if is_private():
        deadline = 0.0
    until = time.monotonic() + deadline

    def problem_now() -> str | None:
        return shortfall(roles, resources()) or (unplaced(roles, nodes()) if nodes else None)

    while (problem := problem_now()) is not None:
        if time.monotonic() >= until:
            waited = f" after {deadline:g} s" if deadline else ""
            raise ResourceError(f"not enough resources{waited}: {problem}")
        time.sleep(min(2.0, max(0.05, until - time.monotonic())))
