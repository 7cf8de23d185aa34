"""How N GPUs are divided among the roles, and how long a step then takes."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Literal

from dopsd.config import RoleSection, RunConfig
from dopsd.plan.cards import RESERVED, Card
from dopsd.plan.demand import Demand, Role

Kind = Literal["fused", "disaggregated", "pooled"]
BALANCED = 0.15
"""Busy shares that differ by no more are balanced."""


@dataclass(frozen=True)
class Group:
    """Workers of one or more roles that share ``gpus`` GPUs."""

    roles: tuple[Role, ...]
    workers: int
    gpus: float
    shared: bool = False
    """Whether the roles lie on one GPU together."""
    reserved: float = RESERVED
    """Bytes of a process beside its tensors."""

    @property
    def name(self) -> str:
        return "+".join(role.name for role in self.roles)

    @property
    def flops(self) -> float:
        """Of one sample."""
        return sum(role.flops for role in self.roles)

    @property
    def memory(self) -> float:
        """Bytes of the fullest GPU, CUDA contexts included."""
        each = [role.memory + self.reserved for role in self.roles]
        return sum(each) if self.shared else max(each)


@dataclass(frozen=True)
class Split:
    """A division of GPUs. Seconds and shares are those of steady state, publication left out."""

    kind: Kind
    groups: tuple[Group, ...]
    batch: int
    """Samples of a step."""
    checkpointing: bool
    seconds: float
    speed: float
    """FLOPs per second of one GPU."""

    @property
    def gpus(self) -> float:
        return sum(group.gpus for group in self.groups)

    @property
    def images_per_gpu_second(self) -> float:
        return self.batch / self.seconds / self.gpus

    def busy(self, group: Group) -> float:
        """Share of a step that the group computes."""
        return group.flops * self.batch / (group.gpus * self.speed * self.seconds)

    @property
    def bottleneck(self) -> Group:
        return max(self.groups, key=self.busy)

    @property
    def spread(self) -> float:
        """By how much the least busy group lies below the busiest, as a share of it."""
        shares = [self.busy(group) for group in self.groups]
        return 1.0 - min(shares) / max(shares)

    def fits(self, card: Card) -> bool:
        return all(group.memory <= card.usable for group in self.groups)


def shipped(config: RunConfig, demand: Demand, speed: float) -> Split:
    """As the config divides them."""
    learner, reserved = config.learner, 0.0 if config.device == "cpu" else RESERVED
    learners = Group(
        (demand.learner(learner.workers, config.source == "fused"),),
        learner.workers,
        learner.workers * _gpus(learner.gpus),
        reserved=reserved,
    )
    sections: list[tuple[Role, RoleSection]] = []
    if config.data.context_cache != "require":
        sections.append((demand.encoder(), config.encoder))
    kind: Kind = "fused"
    if config.source == "disaggregated":
        kind = "pooled" if config.inference.shared else "disaggregated"
        if config.inference.shared:
            sections.append((demand.pool(), config.rollout))
        else:
            if config.method.objective == "dopsd":
                sections.append((demand.rollout(), config.rollout))
            sections.append((demand.teacher(), config.teacher))
    whole = [(role, s) for role, s in sections if _gpus(s.gpus) >= 1]
    parts = [(role, s) for role, s in sections if _gpus(s.gpus) < 1]
    groups = [
        Group((role,), s.workers, s.workers * _gpus(s.gpus), reserved=reserved) for role, s in whole
    ]
    if parts:
        # Ray fills a GPU with parts before it takes the next.
        gpus = math.ceil(sum(s.workers * _gpus(s.gpus) for _, s in parts) - 1e-6)
        workers = max(s.workers for _, s in parts)
        groups.append(Group(tuple(role for role, _ in parts), workers, gpus, shared=True))
    return _timed(kind, [*groups, learners], config, learner.global_batch, speed, None)


def best(config: RunConfig, demand: Demand, card: Card, gpus: int, speed: float) -> list[Split]:
    """The fastest split of ``gpus`` GPUs of each kind that fits the ``card``, per image; kinds that
    the config excludes or that do not fit are left out.

    Contexts are taken as cached for ``fused``, and as encoded beside the inference workers else.
    """
    found = []
    for kind in ("fused", "disaggregated", "pooled"):
        options = [
            split
            for checkpointing in (False, True)
            for split in _splits(kind, config, demand, gpus, speed, checkpointing)  # type: ignore[arg-type]
            if split.fits(card)
        ]
        if options:
            found.append(max(options, key=lambda s: (s.images_per_gpu_second, -s.spread)))
    return found


def _splits(
    kind: Kind, config: RunConfig, demand: Demand, gpus: int, speed: float, checkpointing: bool
) -> list[Split]:
    learner, one = config.learner, config.adapters == "lora"
    if kind == "fused":
        if not one or config.method.objective != "dopsd":
            return []
        batch = math.ceil(max(learner.global_batch, gpus * learner.micro_batch) / gpus) * gpus
        group = Group((demand.learner(gpus, True, checkpointing),), gpus, gpus)
        return [_timed(kind, [group], config, batch, speed, checkpointing)]
    if config.method.objective != "dopsd" or (kind == "pooled" and not one):
        return []
    batch, found = learner.global_batch, []
    for learners in range(1, min(gpus, learner.micro_batches + 1)):
        tail = Group((demand.learner(learners, False, checkpointing),), learners, learners)
        rest = gpus - learners
        encoder, pool = demand.encoder(), demand.pool()
        if kind == "pooled":
            both = [Group((encoder, pool), rest, rest, shared=True)]
            found.append(_timed(kind, [*both, tail], config, batch, speed, checkpointing))
            continue
        for rollouts in range(1, rest):
            groups = [
                Group((encoder, demand.rollout()), rollouts, rollouts, shared=True),
                Group((demand.teacher(),), rest - rollouts, rest - rollouts),
            ]
            found.append(_timed(kind, [*groups, tail], config, batch, speed, checkpointing))
    return found


def _timed(
    kind: Kind,
    groups: list[Group],
    config: RunConfig,
    batch: int,
    speed: float,
    checkpointing: bool | None,
) -> Split:
    learner = config.learner
    count = max(1, batch // learner.micro_batch)
    *others, learners = groups
    # Encoding runs ahead of training, so that it takes its share and makes nobody wait.
    generate = _inference(others, count, max(1, config.max_policy_lag), learner.micro_batch, speed)
    per_gpu = speed * max(1.0, learners.gpus / learners.workers)
    rounds = math.ceil(count / learners.workers)
    learn = rounds * learner.micro_batch * learners.flops / per_gpu
    overlapped = kind != "fused" and config.max_policy_lag > 0
    seconds = max(generate, learn) if overlapped else generate + learn
    busiest = max(g.flops * batch / (g.gpus * speed) for g in groups if g.gpus)
    again = learner.gradient_checkpointing if checkpointing is None else checkpointing
    return Split(kind, tuple(groups), batch, again, max(seconds, busiest), speed)


def _inference(groups: list[Group], count: int, lag: int, rows: int, speed: float) -> float:
    """Seconds in which all workers make ``count`` micro-batches, whole ones each, when those of
    ``lag`` steps are at hand at a time."""
    slowest = 0.0
    for group in groups:
        jobs = [role.flops * rows / speed for role in group.roles if role.name != "encoder"]
        if not jobs:
            continue
        if len(jobs) == 1 and group.roles[-1].name == "pool":
            jobs = _pool_jobs(jobs[0])
        ends = [0.0] * max(1, round(group.gpus))
        for job in sorted(jobs * min(count * lag, 256), reverse=True):
            heapq.heapreplace(ends, ends[0] + job)
        slowest = max(slowest, max(ends) * count / min(count * lag, 256))
    return slowest


def _pool_jobs(seconds: float) -> list[float]:
    """Roll-out and scoring of a micro-batch, which two workers may do."""
    return [seconds / 2, seconds / 2]


def _gpus(gpus: float | None) -> float:
    return 1.0 if gpus is None else gpus
