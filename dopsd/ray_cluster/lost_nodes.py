"""Whether a worker died of itself, or was lost with its node; which nodes will be lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import ray

from dopsd.ray_cluster.ray_private import draining_nodes, node_of_actor


def node_of(actor: Any) -> str | None:
    """Id of the node on which the actor of a handle lives or lived, where Ray knows it."""
    actor_id = getattr(actor, "_actor_id", None)
    return None if actor_id is None else node_of_actor(actor_id.binary())


def on_lost_nodes(nodes: Iterable[str | None]) -> int:
    """How many of ``nodes`` are gone, or are being taken away. None is a node that is not known,
    and counts as one that is there."""
    known = [node for node in nodes if node is not None]
    if not known:
        return 0
    draining = draining_nodes()
    staying = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining.keys()
    return sum(node not in staying for node in known)


class LeavingNodes:
    """Ids of the nodes that Ray has announced to take away, by a look every so many seconds."""

    def __init__(self, every: float = 1.0) -> None:
        self._every, self._looked = every, float("-inf")
        self._ids: frozenset[str] = frozenset()

    def look(self) -> frozenset[str]:
        """Those that are known by now."""
        if time.monotonic() - self._looked >= self._every:
            self._looked = time.monotonic()
            with contextlib.suppress(Exception):  # a GCS on its way back: at the next look
                self._ids = frozenset(draining_nodes())
        return self._ids
