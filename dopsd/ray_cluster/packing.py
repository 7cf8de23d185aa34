"""Would Ray find a place for every worker? Plain bin packing over the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dopsd.ray_cluster.labels import has_labels
from dopsd.ray_cluster.placement import Role


@dataclass(frozen=True)
class Node:
    """Logical resources of one Ray node (a pod or a machine)."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


class NoPlace(ValueError):
    """A worker of ``role`` for which there is no room."""

    def __init__(self, role: Role, number: int, free: Mapping[str, Sequence[float]]) -> None:
        left = ", ".join(f"{n} {c:g} CPU {g:g} GPU" for n, (c, g) in free.items())
        super().__init__(
            f"{role.name} {number + 1} of {role.workers}: needs {role.cpus:g} CPU and "
            f"{role.gpus:g} GPU, left: {left}"
        )
        self.role = role


def fewest(role: Role) -> Role:
    """What it starts with."""
    return replace(role, workers=role.needed)


def largest_first(roles: Iterable[Role]) -> list[Role]:
    return sorted(roles, key=lambda role: (role.gpus, role.cpus), reverse=True)


def without_place(roles: Iterable[Role], nodes: Sequence[Node]) -> str | None:
    """In words, the first worker without which there is no start and for which ``nodes`` have no
    room, the largest placed first; None when all have a place."""
    try:
        place(largest_first(map(fewest, roles)), nodes)
    except ValueError as error:
        return str(error).partition(", left: ")[0]
    return None


def place(roles: Iterable[Role], nodes: Sequence[Node]) -> tuple[dict[str, list[str]], list[Node]]:
    """Put every worker on the first node with room, in the given order of roles and nodes.

    Returns the nodes of each role's workers and what is left of every node. A worker never spans
    nodes, and takes those alone that have its labels. Raises NoPlace naming the first worker that
    finds no place.
    """
    free = {node.name: [node.cpus, node.gpus] for node in nodes}
    labels = {node.name: node.labels for node in nodes}
    placed: dict[str, list[str]] = {}
    for role in roles:
        for number in range(role.workers):
            for name, (cpus, gpus) in free.items():
                fits = role.cpus <= cpus + 1e-9 and role.gpus <= gpus + 1e-9
                if fits and has_labels(labels[name], role.labels):
                    free[name] = [cpus - role.cpus, gpus - role.gpus]
                    placed.setdefault(role.name, []).append(name)
                    break
            else:
                raise NoPlace(role, number, free)
    left_of = [replace(node, cpus=free[node.name][0], gpus=free[node.name][1]) for node in nodes]
    return placed, left_of
