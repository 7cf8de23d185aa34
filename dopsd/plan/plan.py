"""What a run will need, computed from its config and the config files of its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dopsd.config import RunConfig
from dopsd.plan.bases import Base, base_of
from dopsd.plan.cards import CARDS, DEFAULT, EFFICIENCY, GIB, RESERVED, Card, smallest
from dopsd.plan.demand import Demand, Role
from dopsd.plan.split import Split, best, shipped

GB = 1e9


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step between the roles' processes."""

    contexts: float
    states: float
    batches: float
    published: float
    read: float
    """Published weights, as all inference workers read them."""

    @property
    def object_store(self) -> float:
        """What is put into it."""
        return self.contexts + self.states + self.batches + self.published


@dataclass(frozen=True)
class Plan:
    config: RunConfig
    base: Base
    card: Card
    gpus: int
    """To divide."""
    efficiency: float

    @cached_property
    def demand(self) -> Demand:
        return Demand(self.config, self.base)

    @property
    def speed(self) -> float:
        """FLOPs per second of one GPU, as roles reach them."""
        return self.card.tflops * 1e12 * self.efficiency

    @cached_property
    def shipped(self) -> Split:
        """As the config divides GPUs."""
        return shipped(self.config, self.demand, self.speed)

    @cached_property
    def best(self) -> list[Split]:
        """The fastest of each kind on this card."""
        return best(self.config, self.demand, self.card, self.gpus, self.speed)

    @property
    def roles(self) -> list[Role]:
        """Of the config."""
        return [role for group in self.shipped.groups for role in group.roles]

    def total(self, role: Role) -> float:
        """Bytes of one worker, on a GPU the CUDA context included."""
        return role.memory + (0.0 if self.config.device == "cpu" else RESERVED)

    @property
    def traffic(self) -> Traffic:
        demand, batch, split = self.demand, self.config.learner.global_batch, self.shipped
        cached = self.config.data.context_cache == "require"
        contexts = 0.0 if cached else demand.contexts() * batch
        if split.kind == "fused":
            return Traffic(contexts, 0.0, 0.0, 0.0, 0.0)
        states = demand.trajectory() * batch if split.kind == "disaggregated" else 0.0
        published = demand.publication()
        readers = self.config.rollout.workers + self.config.teacher.workers
        each = published / 2
        if split.kind == "pooled":
            readers, each = self.config.rollout.workers, published
        return Traffic(contexts, states, demand.batch() * batch, published, readers * each)

    @property
    def host(self) -> float:
        """Bytes of host memory that all workers take while they load, and the object store."""
        return self.host_of(lambda name: True)

    def host_of(self, has: Callable[[str], bool]) -> float:
        """The same of the roles that a machine ``has``, by name."""
        loading = sum(
            role.host * group.workers
            for group in self.shipped.groups
            for role in group.roles
            if has(role.name)
        )
        return loading + self.traffic.object_store * (self.config.max_policy_lag + 2)

    def misfits(self, memory: float, what: str) -> list[str]:
        """A line for each group of roles that a GPU of ``memory`` bytes does not hold."""
        return [
            f"{group.name}: {group.memory / GIB:.1f} GiB, {what} holds {memory / GIB:.1f} GiB"
            for group in self.shipped.groups
            if group.memory > memory
        ]

    def record(self) -> dict[str, Any]:
        """For programs: bytes, FLOPs, seconds."""
        return {
            "run": self.config.run.name,
            "base": self.config.model.base,
            "parameters": self.base.transformer.weights,
            "trained": self.demand.trained,
            "gated": list(self.base.gated),
            "download_gb": self.base.download_gb,
            "host_bytes": self.host,
            "card": self.card.name,
            "efficiency": self.efficiency,
            "roles": [
                {
                    "role": role.name,
                    "bytes": role.parts | {"reserved": self.total(role) - role.memory},
                    "total_bytes": self.total(role),
                    "flops_per_sample": role.flops,
                    "smallest_card_gib": smallest(self.total(role)),
                }
                for role in self.roles
            ],
            "bytes_per_step": {
                "contexts": self.traffic.contexts,
                "states": self.traffic.states,
                "batches": self.traffic.batches,
                "weights_published": self.traffic.published,
                "weights_read": self.traffic.read,
            },
            "shipped": split_record(self.shipped, self.card),
            "best": [split_record(split, self.card) for split in self.best],
        }


def split_record(split: Split, card: Card) -> dict[str, Any]:
    """Of one division of GPUs."""
    return {
        "kind": split.kind,
        "gpus": split.gpus,
        "batch": split.batch,
        "gradient_checkpointing": split.checkpointing,
        "seconds_per_step": split.seconds,
        "images_per_gpu_second": split.images_per_gpu_second,
        "bottleneck": split.bottleneck.name,
        "balance_spread": split.spread,
        "fits": split.fits(card),
        "groups": [
            {
                "roles": group.name,
                "gpus": group.gpus,
                "busy": split.busy(group),
                "bytes": group.memory,
            }
            for group in split.groups
        ],
    }


def make_plan(
    config: RunConfig,
    card: Card = CARDS[DEFAULT],
    gpus: int | None = None,
    efficiency: float = EFFICIENCY,
) -> Plan:
    """``gpus``: to divide; by default as many as the config asks for. Raises ModelError for a base
    whose config files are not to be had."""
    plan = Plan(config, base_of(config), card, gpus or 1, efficiency)
    return plan if gpus else Plan(config, plan.base, card, round(plan.shipped.gpus), efficiency)
