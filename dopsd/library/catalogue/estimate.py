"""What a library will take, by the figures of `dopsd plan`: hours, storage, workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.driver.monitoring.progress import clock
from dopsd.library.catalogue.catalogue import Catalogue
from dopsd.library.disaggregated.hours import PooledPace, pooled_pace
from dopsd.plan import Plan, make_plan
from dopsd.plan.cards import Card

GB = 1e9
_SHOWN = 20
"""Concepts that are listed without being asked for all."""
_STATE = 16
"""Bytes of a trained number in flight: fp32 student, teacher and two moments."""


@dataclass(frozen=True)
class Estimate:
    """Of a library on ``workers`` workers."""

    catalogue: Catalogue
    workers: int
    plan: Plan

    @property
    def steps(self) -> int:
        return sum(concept.steps for concept in self.catalogue.trained)

    @cached_property
    def pooled(self) -> PooledPace | None:
        """Where concepts share pools; None for workers that do all by themselves."""
        if self.plan.config.source == "fused":
            return None
        return pooled_pace(self.plan, self.workers)

    @property
    def in_flight(self) -> int:
        """Concepts that train at a time, of all workers together."""
        each = self.pooled.in_flight if self.pooled else 1
        return min(self.workers * each, len(self.catalogue.trained))

    @property
    def step_seconds(self) -> float | None:
        """Of a concept among as many others as there are in flight; None on CPUs, whose pace nobody
        plans."""
        if self.plan.config.device == "cpu":
            return None
        if self.pooled is not None:
            return self.pooled.step(self.in_flight) * self.in_flight
        return self.plan.shipped.seconds

    @property
    def train_hours(self) -> float | None:
        """Until the last concept is done, which may be alone at the end."""
        if self.step_seconds is None:
            return None
        longest = max(concept.steps for concept in self.catalogue.trained)
        alone = self.pooled.alone if self.pooled else self.step_seconds
        return max(longest * alone, self.steps * self.step_seconds / self.in_flight) / 3600

    @property
    def encode_hours(self) -> float | None:
        """Of every picture under every caption, on ``encoder.workers`` GPUs."""
        if self.step_seconds is None:
            return None
        captions = sum(concept.captions for concept in self.catalogue.concepts.values())
        demand, encoders = self.plan.demand, self.plan.config.encoder.workers
        return captions * demand.encoder().flops / (self.plan.speed * encoders) / 3600

    @property
    def adapter_bytes(self) -> float:
        """That stay of each concept: bf16. A contact sheet is small beside them."""
        adapters = {"lora", "teacher"}.intersection(self.plan.config.library.keep)
        return 2.0 * self.plan.demand.trained * len(adapters)

    @property
    def context_bytes(self) -> float:
        """Of the context cache beside the shards."""
        captions = sum(concept.captions for concept in self.catalogue.concepts.values())
        return captions * self.plan.demand.contexts()

    @property
    def state_bytes(self) -> float:
        """Of all concepts in flight."""
        return float(_STATE * self.plan.demand.trained * self.in_flight)

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "concepts": [
                {
                    "concept": concept.name,
                    "pictures": concept.pictures,
                    "captions": concept.captions,
                    "steps": 0 if concept.skip else concept.steps,
                    "skipped": concept.skip,
                }
                for concept in self.catalogue.concepts.values()
            ],
            "unnamed_pictures": self.catalogue.unnamed,
            "steps": self.steps,
            "workers": self.workers,
            "in_flight": self.in_flight,
            "busy": self.pooled.busy(self.in_flight) if self.pooled else {},
            "card": self.plan.card.name,
            "step_seconds": self.step_seconds,
            "train_hours": self.train_hours,
            "encode_hours": self.encode_hours,
            "adapter_bytes": self.adapter_bytes,
            "adapters_bytes": self.adapter_bytes * len(self.catalogue.trained),
            "contexts_bytes": self.context_bytes,
            "state_bytes": self.state_bytes,
        }

    def lines(self, every: bool = False) -> list[str]:
        """For people; ``every``: each concept is listed."""
        trained = self.catalogue.trained
        pictures, captions = sum(c.pictures for c in trained), sum(c.captions for c in trained)
        lines = [
            f"library: {len(trained)} concepts to train, {pictures} pictures, {captions} captions; "
            f"{len(self.catalogue.skipped)} skipped"
        ]
        for kind, own in self.catalogue.skips_by_kind():
            lines.append(f"  {len(own)} x {kind}, e.g. {shown.value(own[0].name)}: {own[0].skip}")
        if self.catalogue.unnamed:
            lines.append(f"  {self.catalogue.unnamed} pictures without a concept are left aside")
        steps = [concept.steps for concept in trained]
        lines += [
            f"steps: {self.steps} in all, {min(steps)} to {max(steps)} of a concept, median "
            f"{median(steps):g}",
            f"adapters: {self.adapter_bytes / GB:.3g} GB each, "
            f"{self.adapter_bytes * len(trained) / GB:.3g} GB in all; state in flight "
            f"{self.state_bytes / GB:.3g} GB, context cache {self.context_bytes / GB:.3g} GB",
            self._time(),
        ]
        listed = list(self.catalogue.concepts.values())
        some = listed if every else listed[:_SHOWN]
        lines += ["", "concept, pictures, captions, steps"]
        lines += [
            f"  {shown.line(c.name, shown.VALUE)}, {c.pictures}, {c.captions}, "
            + (f"skipped: {c.skip}" if c.skip else str(c.steps))
            for c in some
        ]
        if left := len(listed) - len(some):
            lines.append(f"  and {left} more (--all lists them)")
        return lines

    def _time(self) -> str:
        if self.step_seconds is None or self.train_hours is None or self.encode_hours is None:
            return f"workers: {self.workers}, on CPUs, of which nobody knows the pace"
        each = self.step_seconds * median(c.steps for c in self.catalogue.trained)
        return (
            f"workers: {self._who()}: {self.step_seconds:.3g} s a step, "
            f"{clock(each)} a concept, {self.train_hours:.3g} h in all; before that "
            f"{self.encode_hours:.2g} h of encoding on {self.plan.config.encoder.workers}"
        )

    def _who(self) -> str:
        """Who trains, on which card."""
        if self.pooled is None:
            return f"{self.workers} x {self.plan.card.name}"
        busy = self.pooled.busy(self.in_flight)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
        return (
            f"{self.workers} learners with {self.pooled.in_flight} concepts each, and the pools "
            f"that all share, on {self.plan.card.name}, busy {shares}"
        )


def estimate(config: RunConfig, catalogue: Catalogue, card: Card, efficiency: float) -> Estimate:
    """Raises ModelError for a base whose config files are not to be had."""
    alone = config.model_copy(deep=True)
    alone.data.context_cache = "require"  # no encoder stays beside the workers
    return Estimate(
        catalogue, config.library.workers, make_plan(alone, card, efficiency=efficiency)
    )
