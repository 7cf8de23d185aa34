"""Who works on a cluster, and who comes next: two runs never hold half of what each of them needs.

A placement group cannot hold the places of a whole run: Ray Train makes one of its own for every
group of learners, and Ray Data places its actors itself. So runs claim what they need here, and
one that does not fit beside those that work waits, in the order in which they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dopsd.ray_cluster.packing import Node, place
from dopsd.ray_cluster.placement import Role, sum_of

BEAT_SECONDS = 2.0
"""Between two beats of an owner's heart."""
LAPSE_SECONDS = 30.0
"""Without a beat after which a claim runs out."""
_READER = Role("reading", 1, 1.0, 0.0)
"""Ray Data reads with a whole CPU, which a run beside others may not count on otherwise."""


@dataclass(frozen=True)
class Claim:
    """What the run ``what`` needs, in the name of one process. Whoever ``holds`` works already."""

    owner: str
    what: str
    roles: tuple[Role, ...]
    holds: bool = False
    since: float = 0.0
    """It holds or waits; by the queue's clock, 0 before it has answered."""

    def to_message(self) -> dict[str, Any]:
        """As plain values: drivers of several versions may share a cluster."""
        return asdict(self)

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> Claim:
        return cls(**{**message, "roles": tuple(Role(**role) for role in message["roles"])})

    def __str__(self) -> str:
        asked = " + ".join(
            f"{role.name} {role.workers} x ({role.cpus:g} CPU, {role.gpus:g} GPU)"
            for role in self.roles
        )
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        does = "holds" if self.holds else "waits for"
        return f"{self.what} {does} {asked} since {since}"


@dataclass
class _Entry:
    claim: Claim
    heard: float


@dataclass
class ClusterQueue:
    """One for each cluster, asked by one caller at a time.

    ``nodes``: those that stay; ``most``: what an autoscaler may make of them, None without one.
    ``lost``: the claims of another one were lost with its process, and are waited for.
    """

    nodes: Callable[[], Sequence[Node]]
    most: Callable[[], Mapping[str, float] | None] = lambda: None
    lost: bool = False
    now: Callable[[], float] = time.time
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settled = self.now() + (LAPSE_SECONDS if self.lost else 0.0)

    def beat(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """An owner lives, and claims what the message says; the answer has what stands of it, and
        in words whom it waits for."""
        now = self.now()
        self._entries = {
            owner: entry
            for owner, entry in self._entries.items()
            if now - entry.heard <= LAPSE_SECONDS
        }
        claim = Claim.of_message(message)
        known = self._entries.get(claim.owner)
        # Who holds says so itself: this may be a new process that never heard of it.
        holds = claim.holds or (known is not None and known.claim.holds)
        since = claim.since or (known.claim.since if known else now)
        claim = replace(claim, holds=holds, since=since)
        others = [e.claim for e in self._entries.values() if e.claim.owner != claim.owner]
        ahead = [
            other
            for other in others
            if not holds
            and (other.holds or (other.since, other.owner) < (claim.since, claim.owner))
        ]
        if not holds and now >= self._settled and self._may_begin(claim, ahead):
            claim, ahead = replace(claim, holds=True, since=now), []
        self._entries[claim.owner] = _Entry(claim, now)
        return {
            "holds": claim.holds,
            "since": claim.since,
            "ahead": [str(other) for other in sorted(ahead, key=lambda other: not other.holds)],
        }

    def leave(self, owner: str) -> bool:
        """An owner needs nothing any more; returns whether nobody is left."""
        self._entries.pop(owner, None)
        return not self._entries

    def _may_begin(self, claim: Claim, ahead: Sequence[Claim]) -> bool:
        if not ahead:
            return True
        if not all(other.holds for other in ahead):
            return False
        return self._beside(claim, ahead) or self._with_more_nodes(claim, ahead)

    def _beside(self, claim: Claim, holders: Sequence[Claim]) -> bool:
        """Whether the nodes that are there hold all of them together. An elastic run keeps what it
        has grown to."""
        try:
            left: Sequence[Node] = self.nodes()
            for holder in holders:
                _, left = place(_largest_first([*map(_fewest, holder.roles), _READER]), left)
            for role in (role for holder in holders for role in holder.roles):
                left = _grown(role, left)
            place(_largest_first([*map(_fewest, claim.roles), _READER]), left)
        except ValueError:
            return False
        return True

    def _with_more_nodes(self, claim: Claim, holders: Sequence[Claim]) -> bool:
        """Whether an autoscaler may bring what is missing."""
        most = self.most()
        if most is None:
            return False
        claims = [*holders, claim]
        cpus, gpus = sum_of([role for each in claims for role in each.roles])
        return cpus + len(claims) <= most.get("CPU", 0.0) and gpus <= most.get("GPU", 0.0)


def _fewest(role: Role) -> Role:
    return replace(role, workers=role.needed)


def _largest_first(roles: Iterable[Role]) -> list[Role]:
    return sorted(roles, key=lambda role: (role.gpus, role.cpus), reverse=True)


def _grown(role: Role, nodes: Sequence[Node]) -> Sequence[Node]:
    """What is left of ``nodes`` beside as many more workers of an elastic role as they hold."""
    for _ in range(role.workers - role.needed):
        try:
            _, nodes = place([replace(role, workers=1, min_workers=None)], nodes)
        except ValueError:
            break
    return nodes
