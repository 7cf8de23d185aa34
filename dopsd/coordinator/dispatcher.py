"""Micro-batches on their way from the stream through the pools to the learners.

A plain object under the coordinator's lock: it neither waits nor starts threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from dopsd.config import RunConfig
from dopsd.coordinator.admission import Admission, Key
from dopsd.coordinator.direct_transport import DirectTransport
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.coordinator.under_way import UnderWay
from dopsd.coordinator.worker_pool import WorkerPool
from dopsd.errors import WorkerError
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle
from dopsd.policy.versions import policy_version
from dopsd.ray_cluster.placement import Roles
from dopsd.run_folder.timeline import Span

_ATTEMPTS = 4
"""A micro-batch may be lost this many times for every restart that a worker has."""


@dataclass
class InFlightMicroBatch:
    """A micro-batch, from its admission until it is trained."""

    key: Key
    block: ray.ObjectRef
    version: int
    stage: int | None = None
    """Of the pool that it waits for or is with; None while it is not under way."""
    losses: int = 0
    """How often it was lost and generated again."""
    inputs: list[ray.ObjectRef] = field(default_factory=list)
    result: ray.ObjectRef | None = None


class Dispatcher:
    """``step_size(step)`` is the plan's number of micro-batches; ``done(item, result)`` hears of
    each that is ready."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        step_size: Callable[[int], int],
        done: Callable[[InFlightMicroBatch, ray.ObjectRef], None],
        spans: Callable[[list[Span]], None],
    ) -> None:
        self.config, self.roles, self._step_size = config, roles, step_size
        self._done, self._spans = done, spans
        self.full_size = config.learner.micro_batches
        self.pools: list[WorkerPool] = []
        self.notices: list[str] = []
        """How trajectories travel, where that is not by the object store; for the run's summary."""
        self.missing: set[Key] = set()
        """Micro-batches whose encoded block is gone: whoever reads the stream brings it again."""
        self.rewind(0)

    def launch(self) -> None:
        """Start the actors; returns at once."""
        roles, config = self.roles, self.config
        if roles.rollout and roles.teacher:
            direct = config.transport == "rdt"
            self.pools = [
                WorkerPool(config, roles.rollout, (STUDENT,), "generate", direct),
                WorkerPool(config, roles.teacher, (TEACHER,), "score", direct),
            ]
        elif roles.rollout:
            both = (STUDENT, TEACHER)
            self.pools = [WorkerPool(config, roles.rollout, both, "generate_and_score")]
        elif roles.teacher:
            self.pools = [WorkerPool(config, roles.teacher, (TEACHER,), "teach")]
        if config.transport == "rdt":
            self._open_direct_transport()
        self.rewind(0)

    def _open_direct_transport(self) -> None:
        if len(self.pools) < 2:
            self.notices.append(
                "transport: rdt has nothing to carry: no trajectory travels between two pools here"
            )
            return
        actors = [worker.handle for pool in self.pools for worker in pool.workers]
        device, limit = self.pools[0].role.device, self.config.timeouts.startup
        direct_transport = DirectTransport(actors, device, self.notices.append, limit)
        for pool in self.pools:
            pool.direct_transport = direct_transport

    def rewind(self, step: int) -> None:
        """Forget everything and begin at ``step``; what is under way is dropped when it ends."""
        self.admission = Admission(
            step, self.config.learner.steps, self._step_size, self.config.max_policy_lag
        )
        self.blocks: deque[tuple[Key, ray.ObjectRef]] = deque()
        self._items: dict[Key, InFlightMicroBatch] = {}
        self._waiting: list[list[Key]] = [[] for _ in self.pools]
        self._under_way = UnderWay()
        self.missing.clear()
        for pool in self.pools:
            pool.reset()

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""
        return sum(worker.restarts for pool in self.pools for worker in pool.workers)

    def workers(self, role: str) -> list[Any]:
        """The actors of a role, as they are now."""
        pools = (pool for pool in self.pools if pool.role.name == role)
        return [worker.handle for pool in pools for worker in pool.workers]

    def sizes(self) -> dict[str, int]:
        """Workers by role: of encoder and pools."""
        roles = (self.roles.encoder, *(pool.role for pool in self.pools))
        return {role.name: role.workers for role in roles if role}

    def pending(self) -> list[ray.ObjectRef]:
        """References of which one becomes ready when there is something to collect."""
        return [ref for pool in self.pools for ref in pool.pending()]

    @property
    def limit(self) -> float:
        """Seconds that the pools may take for a step as they stand."""
        starting, timeouts = any(pool.starting() for pool in self.pools), self.config.timeouts
        return timeouts.startup if starting else timeouts.step

    @property
    def full(self) -> bool:
        """Whether a step's blocks wait already."""
        return len(self.blocks) > self.full_size

    def boxes(self, step: int, share: Sequence[tuple[int, bool]]) -> list[ObjectRefBox]:
        """For a learner to fetch: of its ``share`` of a step, (index, is real) pairs in the order
        in which it trains them, those before the first that is not ready."""
        boxes = []
        for index, real in share:
            item = self._items.get((step, index))
            if item is None or item.result is None:
                break
            boxes.append(ObjectRefBox(item.result, real, index, item.losses))
        return boxes

    def trained(self, step: int) -> None:
        """Every micro-batch of ``step`` went into the optimizer."""
        self.admission.train(step)
        for index in range(self._step_size(step)):
            del self._items[(step, index)]

    def metrics(self) -> dict[str, float]:
        """What the pools did so far, and how many micro-batches are where."""
        counts = self.admission.counts()
        metrics: dict[str, float] = {
            "queue_blocks": len(self.blocks),
            "queue_in_flight": counts.in_flight,
            "queue_ready": counts.ready,
        }
        for pool in self.pools:
            name = pool.role.name
            metrics[f"{name}_busy_seconds"] = sum(w.busy_seconds for w in pool.workers)
            metrics[f"{name}_peak_memory_mb"] = max(w.peak_memory_mb for w in pool.workers)
        return metrics

    def advance(self, published: int, bundles: dict[int, Bundle]) -> bool:
        """Admit and dispatch whatever may go; True when something did."""
        moved = self._admit(published)
        return self._dispatch(bundles) or moved

    def _admit(self, published: int) -> bool:
        moved = False
        while self.blocks:
            key = self.admission.next_admissible(published)
            if key is None:
                break
            delivered, block = self.blocks.popleft()
            assert delivered == key, f"the stream delivered {delivered}, the plan says {key}"
            self.admission.admit(key)
            version = policy_version(key[0], self.config.max_policy_lag)
            item = self._items[key] = InFlightMicroBatch(key, block, version, inputs=[block])
            self._place(item, 0)
            if self.pools:
                self._waiting[0].append(key)
            else:
                self._finish(item, block)
            moved = True
        return moved

    def _dispatch(self, bundles: dict[int, Bundle]) -> bool:
        """Queue waiting micro-batches on free workers, oldest version first.

        A later version waits while an earlier one is still on its way to the stage, so that a
        pool never goes back and forth between two versions. The version that comes next is loaded
        before its first micro-batch is there: a teacher binds it while the student rolls out.
        """
        moved = False
        for stage, (pool, waiting) in enumerate(zip(self.pools, self._waiting)):
            waiting.sort()
            while (bundle := bundles.get(self._next_version(stage))) is not None:
                pool.load(bundle, self._generated_by(bundle.version))
                item = self._items[waiting[0]] if waiting else None
                if item is None or item.version != bundle.version:
                    break
                worker = pool.free_worker(bundle)
                if worker is None:
                    break
                pool.submit(worker, item.key, bundle, *item.inputs)
                waiting.pop(0)
                moved = True
        return moved

    def _next_version(self, stage: int) -> int:
        """The oldest version of which something is still to be given to ``stage``; -1 when nothing
        is. Its ``_waiting`` is sorted."""
        waiting = self._waiting[stage]
        found = [self._items[waiting[0]].version] if waiting else []
        if (oldest := self._under_way.oldest_before(stage)) is not None:
            found.append(oldest)
        if not found and (step := self.admission.next_step) is not None:
            found.append(policy_version(step, self.config.max_policy_lag))
        return min(found, default=-1)

    def _generated_by(self, version: int) -> int:
        """Micro-batches of the plan that a version generates: so many workers can use it."""
        last = min(version + self.config.max_policy_lag, self.config.learner.steps - 1)
        return sum(map(self._step_size, range(last if version else 0, last + 1)))

    @property
    def handed_out(self) -> bool:
        """Whether nothing that could be generated waits for a worker."""
        return not self._waiting[0]

    def expects(self, published: int) -> bool:
        """Whether a micro-batch may come at any moment that ``published`` versions let generate."""
        return bool(self.missing) or self.admission.next_admissible(published) is not None

    def workers_wanted(self, published: int) -> int:
        """As many as the newest version or the next one can use: none once all is under way."""
        if self.admission.next_step is None:
            return 0
        return max(self._generated_by(max(0, version)) for version in (published, published + 1))

    @property
    def rollout_seconds(self) -> float:
        """What the first pool takes for a micro-batch, by those that are done."""
        counts = self.admission.counts()
        busy = sum(worker.busy_seconds for worker in self.pools[0].workers)
        return busy / max(1, counts.ready + counts.trained)

    def collect(self) -> bool:
        """Take in what the pools have finished; True when something moved."""
        before = sum(pool.events for pool in self.pools)
        for stage, pool in enumerate(self.pools):
            finished, again = pool.collect()
            self._spans(pool.drain_spans())
            for key in again:
                item = self._items[key]
                self._requeue(item, item.block.hex() in pool.lost_objects)
            pool.lost_objects.clear()
            for done in finished:
                item = self._items[done.key]
                if stage + 1 < len(self.pools):
                    direct = [] if done.states is None else [done.states]
                    self._place(item, stage + 1)
                    item.inputs = [item.block, done.result, *direct]
                    self._waiting[stage + 1].append(item.key)
                else:
                    self._finish(item, done.result)
        return sum(pool.events for pool in self.pools) != before

    def lost(self, key: Key, losses: int) -> None:
        """The object of a ready micro-batch is gone; ``losses`` is how often it had been before.

        Told by several learners, it counts once.
        """
        item = self._items.get(key)
        if item is None or item.result is None or item.losses != losses:
            return
        item.result = None
        self.admission.unfinish(key)
        self._requeue(item, block_lost=not self.pools)

    def renew(self, key: Key, block: ray.ObjectRef) -> None:
        """The encoded block of a missing micro-batch, once more."""
        self.missing.remove(key)
        item = self._items[key]
        item.block, item.inputs = block, [block]
        if self.pools:
            self._waiting[0].append(key)
        else:
            self._finish(item, block)

    def _requeue(self, item: InFlightMicroBatch, block_lost: bool) -> None:
        """Generate a micro-batch again from its block, encoded again when that is lost; a bounded
        number of times."""
        item.losses += 1
        limit = _ATTEMPTS * (self.config.inference.max_restarts + 1)
        if item.losses >= limit:
            step, index = item.key
            raise WorkerError(f"step {step} micro-batch {index} was lost {limit} times")
        self._place(item, 0)
        item.inputs = [item.block]
        if block_lost:
            self.missing.add(item.key)
        else:
            self._waiting[0].append(item.key)

    def _place(self, item: InFlightMicroBatch, stage: int | None) -> None:
        self._under_way.move(item.version, item.stage, stage)
        item.stage = stage

    def _finish(self, item: InFlightMicroBatch, result: ray.ObjectRef) -> None:
        self.admission.finish(item.key)
        self._place(item, None)
        item.result, item.inputs = result, []
        if self.pools:
            self._done(item, result)
