"""What a step takes where concepts share pools, by the figures of `dopsd plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dopsd.config import RunConfig
from dopsd.library.disaggregated.in_flight import FIRST, MOST, concepts_per_learner
from dopsd.plan import Plan
from dopsd.plan.split import Group


@dataclass(frozen=True)
class Stage:
    """Workers that do a step of any concept: roll-out, teacher or learners; seconds."""

    name: str
    step: float
    """From its first micro-batch to its last, while nobody else is served."""
    work: float
    """Of all workers together: a step's share of them when none of them waits."""


@dataclass(frozen=True)
class PooledPace:
    """``in_flight`` concepts on each of ``learners``; what publication and binding take is left
    out, as in any plan."""

    stages: tuple[Stage, ...]
    """In the order in which a step passes them; the learners are the last."""
    learners: int
    in_flight: int

    @property
    def alone(self) -> float:
        """Seconds of a concept's step that waits for no other concept: D_R + D_T + D_L."""
        return sum(stage.step for stage in self.stages)

    def step(self, concepts: int) -> float:
        """Seconds in which ``concepts`` in flight, together, have done a step: those of the role
        that is the fullest, or of one step on its way where they are too few to fill any."""
        return max(self.alone / concepts, *(stage.work for stage in self.stages))

    def busy(self, concepts: int) -> dict[str, float]:
        """Share of their time in which the workers of each stage compute."""
        seconds = self.step(concepts)
        return {stage.name: stage.work / seconds for stage in self.stages}


def pooled_pace(plan: Plan, learners: int) -> PooledPace:
    """Of a plan whose contexts were encoded before, with ``source: disaggregated``."""
    config = plan.config
    *pools, learner = plan.shipped.groups
    stages = [_stage(group, config, plan.speed) for group in pools]
    # A learner of several GPUs divides each micro-batch among them.
    rate = plan.speed * max(1.0, learner.gpus / learner.workers)
    step = config.learner.global_batch * learner.flops / rate
    inference = sum(stage.step for stage in stages)
    last = Stage("learner", step, step / learners)
    return PooledPace((*stages, last), learners, _in_flight(config, inference, step))


def _stage(group: Group, config: RunConfig, speed: float) -> Stage:
    """Of roll-out or teacher; of both where they lie on the same GPUs."""
    learner, gpus = config.learner, max(1, round(group.gpus))
    micro_batch = group.flops * learner.micro_batch / speed
    count = learner.micro_batches
    return Stage(group.name, math.ceil(count / gpus) * micro_batch, count * micro_batch / gpus)


def _in_flight(config: RunConfig, inference: float, learner: float) -> int:
    """As a library with these times has in flight."""
    chosen = config.library.in_flight
    if chosen != "auto":
        return chosen
    return max(FIRST, min(MOST, concepts_per_learner(inference, 0.0, learner)))
