"""Who works on a cluster, and who comes next: two runs never hold half of what each of them needs.

A placement group cannot hold the places of a whole run: Ray Train makes one of its own for every
group of learners, and Ray Data places its actors itself. So runs claim what they need here, and
one that does not fit beside those that work waits, in the order in which they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dopsd.ray_cluster.packing import Node, fewest, largest_first, place, without_place
from dopsd.ray_cluster.placement import Role, sum_of

BEAT_SECONDS = 2.0
"""Between two beats of an owner's heart."""
LAPSE_SECONDS = 45.0
"""Without a beat after which a claim runs out: above the 40 s that a cluster may be set to survive
without a link (docs/faults.md)."""
_STALL_SECONDS = 5 * BEAT_SECONDS
"""As long as this may nobody be heard; of a longer silence the queue or its node is the cause."""
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
    later: tuple[Role, ...] = ()
    """What takes places that some of ``roles`` have left: it needs room beside others alone."""
    most: Mapping[str, float] | None = None
    """What its driver was told that an autoscaler may make of the cluster."""

    def to_message(self) -> dict[str, Any]:
        """As plain values: drivers of several versions may share a cluster."""
        return asdict(self)

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> Claim:
        """Of what another version says, that which this one knows."""
        known = _known(cls, message)
        for name in {"roles", "later"} & known.keys():
            known[name] = tuple(Role(**_known(Role, role)) for role in known[name])
        return cls(**known)

    @property
    def all_roles(self) -> tuple[Role, ...]:
        return (*self.roles, *self.later)

    def __str__(self) -> str:
        asked = " + ".join(
            f"{role.name} {_count(role)} x ({role.cpus:g} CPU, {role.gpus:g} GPU)"
            for role in self.all_roles
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

    ``nodes``: those that stay. ``lost``: the claims of another one were lost with its process, and
    are waited for. ``now`` measures silence, ``date`` is what people and other processes read.
    """

    nodes: Callable[[], Sequence[Node]]
    lost: bool = False
    now: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last = self.now()
        self._settled = self._last + (LAPSE_SECONDS if self.lost else 0.0)

    def beat(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """An owner lives, and claims what the message says; the answer has what stands of it, and
        in words whom it waits for, and what is missing even on empty nodes."""
        now = self.now()
        self._forget_the_dead(now)
        claim = Claim.of_message(message)
        known = self._entries.get(claim.owner)
        # Who holds says so itself: this may be a new process that never heard of it.
        holds = claim.holds or (known is not None and known.claim.holds)
        since = claim.since or (known.claim.since if known else self.date())
        claim = replace(claim, holds=holds, since=since)
        others = [e.claim for e in self._entries.values() if e.claim.owner != claim.owner]
        ahead: list[Claim] = []
        missing = None
        if not holds:
            nodes = self.nodes()
            missing = _missing(claim, nodes)
            ahead = [
                other
                for other in others
                if other.holds
                or (
                    (other.since, other.owner) < (claim.since, claim.owner)
                    # One for which there are no nodes would keep others from those that there are.
                    and (missing or not _missing(other, nodes))
                )
            ]
            if now >= self._settled and _may_begin(claim, ahead, nodes):
                claim, ahead = replace(claim, holds=True, since=self.date()), []
        self._entries[claim.owner] = _Entry(claim, now)
        return {
            "holds": claim.holds,
            "since": claim.since,
            "missing": missing,
            "ahead": [str(other) for other in sorted(ahead, key=lambda other: not other.holds)],
        }

    def leave(self, owner: str) -> bool:
        """An owner needs nothing any more; returns whether nobody is left."""
        self._entries.pop(owner, None)
        return not self._entries

    def _forget_the_dead(self, now: float) -> None:
        # While nobody could be heard, nobody was silent.
        stalled = max(0.0, now - self._last - _STALL_SECONDS)
        self._last = now
        self._settled += stalled
        for entry in self._entries.values():
            entry.heard += stalled
        self._entries = {
            owner: entry
            for owner, entry in self._entries.items()
            if now - entry.heard <= LAPSE_SECONDS
        }


def _missing(claim: Claim, nodes: Sequence[Node]) -> str | None:
    """The first worker for which there is no room on ``nodes`` although nobody else is there, nor
    on those that an autoscaler may bring; None when all have room."""
    missing = without_place(claim.roles, nodes)
    return None if missing is None or _may_come(claim.roles, claim.most, nodes) else missing


def _may_begin(claim: Claim, ahead: Sequence[Claim], nodes: Sequence[Node]) -> bool:
    if not ahead:
        return True
    if not all(other.holds for other in ahead):
        return False
    if _beside(claim, ahead, nodes):
        return True
    grown = [replace(role, min_workers=None) for each in (claim, *ahead) for role in each.all_roles]
    return _may_come([*grown, *[_READER] * (1 + len(ahead))], claim.most, nodes)


def _beside(claim: Claim, holders: Sequence[Claim], nodes: Sequence[Node]) -> bool:
    """Whether the nodes that are there hold all of them together. An elastic run keeps what it has
    grown to, and begins beside others only where it may grow to its most: else it would grow into
    places of theirs that are free while they prepare."""
    try:
        left = nodes
        for holder in holders:
            _, left = place(largest_first([*map(fewest, holder.all_roles), _READER]), left)
        for role in (role for holder in holders for role in holder.all_roles):
            left = _grown(role, left)
        place(largest_first([*claim.all_roles, _READER]), left)
    except ValueError:
        return False
    return True


def _may_come(
    roles: Sequence[Role], most: Mapping[str, float] | None, nodes: Sequence[Node]
) -> bool:
    """Whether there may be room for ``roles`` once all nodes have come. Nothing comes to ``nodes``
    that are all there is to be: of those it is known in which pieces their room lies."""
    there = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    if most is None or all(there[kind] >= most.get(kind, 0.0) - 1e-6 for kind in there):
        return False
    cpus, gpus = sum_of(roles)
    return cpus <= most.get("CPU", 0.0) + 1e-6 and gpus <= most.get("GPU", 0.0) + 1e-6


def _grown(role: Role, nodes: Sequence[Node]) -> Sequence[Node]:
    """What is left of ``nodes`` beside as many more workers of an elastic role as they hold."""
    for _ in range(role.workers - role.needed):
        try:
            _, nodes = place([replace(role, workers=1, min_workers=None)], nodes)
        except ValueError:
            break
    return nodes


def _count(role: Role) -> str:
    elastic = role.min_workers not in (None, role.workers)
    return f"{role.min_workers} to {role.workers}" if elastic else f"{role.workers}"


def _known(kind: type, message: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in message.items() if name in names}
