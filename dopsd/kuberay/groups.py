"""Which worker groups a cluster has: one for each set of labels that roles ask of their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dopsd.errors import ConfigError
from dopsd.kuberay.machines import MARKET, SPOT, is_rays, opposite_market, refuse_unknown
from dopsd.ray_cluster.labels import has_labels, told
from dopsd.ray_cluster.placement import Role

GROUP = "dopsd-group"
"""Ray label of a group's nodes where there are several, which keeps each role on its own: one
without labels would take the places of those that have some."""


@dataclass(frozen=True)
class Group:
    """Pods that are alike, and what they are for."""

    labels: dict[str, str] = field(hash=False)
    """Of its Ray nodes."""
    roles: tuple[Role, ...]
    plain: bool
    """It has no labels but those that all groups begin with."""

    @property
    def name(self) -> str:
        if self.plain:
            return "gpu" if self.has_gpus else "cpu"
        return "-".join(role.name for role in self.roles)

    @property
    def has_gpus(self) -> bool:
        return any(role.gpus for role in self.roles)

    @property
    def spot(self) -> bool:
        """Its machines may be taken away."""
        return self.labels.get(MARKET) == SPOT

    def holds(self, role: Role) -> bool:
        """Whether its nodes have the labels of ``role``. What a group does not say of Ray's own
        keys is only known when its nodes are there."""
        unknown = (
            choice.startswith("!") and is_rays(key) and key not in self.labels
            for key, choice in role.labels.items()
        )
        return has_labels(self.labels, role.labels) and not any(unknown)

    def __str__(self) -> str:
        return f"{self.name} ({told(self.labels) or 'no labels'})"


def groups_of(roles: Sequence[Role], spot: bool) -> tuple[Group, ...]:
    """A group for each set of labels that ``roles`` name; one that leaves a choice (`in(a, b)`,
    `!a`) joins the first group that it fits, and else of `in(a, b)` takes the first.

    ``spot``: machines may be taken away unless a role says otherwise. Raises ConfigError for labels
    that no group can have, naming the groups.
    """
    always = {MARKET: SPOT} if spot else {}
    groups: list[Group] = []

    def join(role: Role, labels: dict[str, str]) -> None:
        refuse_unknown(_section(role), labels)
        for number, group in enumerate(groups):
            if group.labels == labels:
                groups[number] = replace(group, roles=(*group.roles, role))
                return
        groups.append(Group(labels, (role,), labels == always))

    undecided = []
    for role in map(_normal, roles):
        if any(_values(choice) != [choice] for choice in role.labels.values()):
            undecided.append(role)
        else:
            join(role, always | dict(role.labels))
    for role in undecided:
        firsts = {
            key: values[0]
            for key, choice in role.labels.items()
            if not choice.startswith("!") and (values := _values(choice))
        }
        fitting = next((group for group in groups if group.holds(role)), None)
        group = fitting or Group(always | firsts, (role,), False)
        if not group.holds(role):
            there = "; ".join(map(str, groups)) or "none"
            raise ConfigError(
                f"{_section(role)}.labels: {told(role.labels)}, allowed for a job: what a worker "
                f"group has, and the groups are: {there}"
            )
        join(role, group.labels)
    return tuple(groups)


def pinned(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same where each role asks for its own group; one group needs no such label."""
    if len(groups) < 2:
        return tuple(groups)
    return tuple(
        replace(
            group,
            labels={**group.labels, GROUP: group.name},
            roles=tuple(
                replace(role, labels={**role.labels, GROUP: group.name}) for role in group.roles
            ),
        )
        for group in groups
    )


def _section(role: Role) -> str:
    """Of the config: a library's workers are its learners."""
    return "learner" if role.name == "library" else role.name


def _normal(role: Role) -> Role:
    market = role.labels.get(MARKET, "")
    other = opposite_market(market)
    return replace(role, labels={**role.labels, MARKET: other}) if other else role


def _values(choice: str) -> list[str]:
    """Those that a choice names."""
    among = choice.removeprefix("!")
    if among.startswith("in("):
        return [value.strip() for value in among[len("in(") : -1].split(",")]
    return [among]
