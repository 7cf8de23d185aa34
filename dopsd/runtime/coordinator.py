"""The coordinator: hands references between stream, inference pools and learners.

It keeps no truth of its own: everything it holds follows from (plan, step, published weights).
Only references pass through it; pixels and tensors stay in the object store.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.config import RunConfig
from dopsd.errors import DopsdError, LateError, WorkerError
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.runtime.admission import Admission, Key, policy_version, rank_share
from dopsd.runtime.dump import dump_scored
from dopsd.runtime.failures import own_message
from dopsd.runtime.placement import Roles
from dopsd.runtime.pool import Pool
from dopsd.runtime.run_log import RunLog
from dopsd.runtime.timeline import Span
from dopsd.runtime.weights import Bundle

BlockStream = Iterator[tuple[int, int, ray.ObjectRef]]
"""(step, index, reference of the encoded block) of every micro-batch, in plan order."""

_GRACE = 5.0
"""Seconds that the pools' own deadlines are given before a learner's wait counts as late."""
_ATTEMPTS = 4
"""A micro-batch may be lost this many times for every restart that a worker has."""
_STOP_SECONDS = 30.0
"""What writing the last dumps may take at the end of a run."""


@dataclass
class Box:
    """References that Ray must not resolve on the way: each learner fetches its own share."""

    ref: ray.ObjectRef
    real: bool
    """False for zero-weight padding."""


@dataclass
class Item:
    """A micro-batch on its way through the stages."""

    key: Key
    block: ray.ObjectRef
    version: int
    stage: int = 0
    attempts: int = 0
    inputs: list[ray.ObjectRef] = field(default_factory=list)


class Coordinator:
    """Drives one run. A plain class: ``launch.py`` makes it a Ray actor with several threads.

    ``open_stream(start_step, stop_step)`` starts the Ray Data pipeline; ``step_size(step)`` is
    the plan's number of micro-batches. One thread drives the pools; ``fetch`` and ``status``
    are called from others.
    """

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        open_stream: Callable[[int, int], BlockStream],
        step_size: Callable[[int], int],
        log: RunLog,
    ) -> None:
        self.config, self.roles, self.log = config, roles, log
        self._open_stream, self._step_size = open_stream, step_size
        self._full_size = config.learner.global_batch // config.learner.micro_batch
        self._admission = Admission(0, config.learner.steps, step_size, config.max_policy_lag)
        self._changed = threading.Condition()
        self._published = -1
        self._bundles: dict[int, Bundle] = {}
        self._blocks: deque[tuple[Key, ray.ObjectRef]] = deque()
        self._results: dict[Key, ray.ObjectRef] = {}
        self._items: dict[Key, Item] = {}
        self._waiting: list[list[Key]] = []
        self._pools: list[Pool] = []
        self._error: DopsdError | None = None
        self._stopping = False
        self._learner = "starting"
        self._started = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._progress = self._started
        self._stream = "loading its models"
        self._dumps: list[ray.ObjectRef] = []

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Launch the pools and the stream; returns at once."""
        roles, config = self.roles, self.config
        if roles.rollout and roles.teacher:
            self._pools = [
                Pool(config, roles.rollout, (STUDENT,), "generate"),
                Pool(config, roles.teacher, (TEACHER,), "score"),
            ]
        elif roles.rollout:
            both = (STUDENT, TEACHER)
            self._pools = [Pool(config, roles.rollout, both, "generate_and_score")]
        elif roles.teacher:
            self._pools = [Pool(config, roles.teacher, (TEACHER,), "teach")]
        self._waiting = [[] for _ in self._pools]
        for target in (self._read_stream, self._drive):
            thread = threading.Thread(target=self._guarded, args=(target,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> list[str]:
        """End threads, dumps, actors and log, each whatever the others do; returns problems."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)
        problems = []
        for end in (self._end_dumps, *(pool.stop for pool in self._pools), self.log.close):
            try:
                end()
            except Exception as error:
                problems.append(own_message(error))
        return problems + self.log.notices

    def _end_dumps(self) -> None:
        _, late = ray.wait(self._dumps, num_returns=len(self._dumps), timeout=_STOP_SECONDS)
        if late:
            raise LateError(f"{len(late)} trajectory dumps are not written")
        ray.get(self._dumps)

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except DopsdError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the learners must not wait for it
            self._fail(WorkerError(f"coordinator: {own_message(error)}"))

    def _fail(self, error: DopsdError) -> None:
        with self._changed:
            if not self._stopping:
                self._error = self._error or error
            self._changed.notify_all()

    # -- learners --------------------------------------------------------------------------

    def publish(self, bundle: Bundle) -> None:
        """Take version v, the weights after v steps: step v - 1 is trained, lag moves on."""
        with self._changed:
            if bundle.version <= self._published:
                return
            assert bundle.version == self._published + 1, "versions are published in order"
            self._published = bundle.version
            self._bundles[bundle.version] = bundle
            if bundle.version:
                step = bundle.version - 1
                self._admission.train(step)
                for index in range(self._step_size(step)):
                    self._results.pop((step, index), None)
            oldest = policy_version(self._admission.trained_steps, self.config.max_policy_lag)
            for version in [v for v in self._bundles if v < oldest]:
                del self._bundles[version]
            self._moved()

    def fetch(self, step: int, rank: int, world: int) -> list[Box]:
        """This rank's micro-batches of ``step``, when all of them are ready.

        Always ceil(global micro-batches / world) boxes. A second call gives the same. Raises
        the run's error, or LateError after the deadline naming the role that is late.
        """
        share = rank_share(self._step_size(step), self._full_size, rank, world)
        needed = {(step, index) for index, _ in share}
        with self._changed:
            asked = time.monotonic()
            if rank == 0:
                self._learner = f"waiting for step {step}"
            while not needed <= self._results.keys():
                if self._error:
                    raise self._error
                still = time.monotonic() - max(asked, self._progress)
                # The pools know more of who is late; this speaks only when they do not.
                if still > self._limit() + _GRACE:
                    self._error = LateError(
                        f"step {step}: nothing moved for {still:.0f} s: {self._whereabouts()}"
                    )
                self._changed.wait(timeout=1.0)
            if rank == 0:
                self._learner = f"training step {step}"
            return [Box(self._results[(step, index)], real) for index, real in share]

    def _limit(self) -> float:
        starting = not self._streamed or any(pool.starting() for pool in self._pools)
        return self.config.deadline.start if starting else self.config.deadline.step

    def _moved(self) -> None:
        self._progress = time.monotonic()
        self._changed.notify_all()

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Rank 0's metrics of a finished step; roles' times are added and written."""
        with self._changed:
            for pool in self._pools:
                busy = sum(m.busy_seconds for m in pool.members)
                peak = max(m.peak_memory_mb for m in pool.members)
                metrics[f"{pool.role.name}_busy_seconds"] = busy
                metrics[f"{pool.role.name}_peak_memory_mb"] = peak
            counts = self._admission.counts()
            metrics |= {
                "queue_blocks": len(self._blocks),
                "queue_in_flight": counts.in_flight,
                "queue_ready": counts.ready,
            }
        workers = {pool.role.name: pool.role.workers for pool in self._pools}
        workers["encoder"] = self.roles.encoder.workers
        self.log.step(step, metrics, workers)

    def tell(self, spans: list[Span]) -> None:
        """Take a learner's spans (and its encoders') into the run's timeline."""
        self.log.timeline.add(spans)

    def write(self, name: str, payload: bytes) -> None:
        """Write a file of the learners (the LoRA, debug records) into the run folder."""
        self.log.write(name, payload)

    # -- driver ----------------------------------------------------------------------------

    def error(self) -> DopsdError | None:
        return self._error

    def status(self) -> dict[str, Any]:
        """What a person wants to see: steps, loss, lag, what each role does, counts."""
        with self._changed:
            return {
                "step": self._admission.trained_steps,
                "steps": self.config.learner.steps,
                "published": self._published,
                "counts": self._admission.counts().__dict__,
                "latest": dict(self.log.latest),
                "losses": self.log.losses(),
                "roles": self._doing(),
                "elapsed": time.monotonic() - self._started,
                "still": time.monotonic() - self._progress,
                "restarts": sum(m.restarts for p in self._pools for m in p.members),
                "error": str(self._error) if self._error else None,
                "notices": list(self.log.notices),
            }

    def _doing(self) -> dict[str, str]:
        ahead = f", {len(self._blocks)} micro-batches ahead" if self._blocks else ""
        doing = {"encoder": self._stream + ahead}
        for pool in self._pools:
            doing[pool.role.name] = pool.doing()
        doing["learner"] = self._learner
        return doing

    def _whereabouts(self) -> str:
        return "; ".join(f"{role}: {doing}" for role, doing in self._doing().items())

    # -- threads ---------------------------------------------------------------------------

    def _read_stream(self) -> None:
        """Pull encoded blocks a step ahead; the stream bounds what it holds beyond that."""
        for step, index, block in self._open_stream(0, self.config.learner.steps):
            with self._changed:
                self._stream = "encoding"
                self._blocks.append(((step, index), block))
                self._moved()
                while len(self._blocks) > self._full_size and not self._over:
                    self._changed.wait(timeout=1.0)
                if self._over:
                    return
        self._stream = "done"

    @property
    def _over(self) -> bool:
        return self._stopping or self._error is not None

    @property
    def _streamed(self) -> bool:
        """Whether the first block has arrived."""
        return self._stream != "loading its models"

    def _drive(self) -> None:
        while True:
            with self._changed:
                if self._over:
                    return
                moved = self._admit()
                moved |= self._dispatch()
                pending = [ref for pool in self._pools for ref in pool.pending()]
                if not moved and not pending:
                    self._changed.wait(timeout=0.2)
                    continue
            if pending:
                ray.wait(pending, timeout=0.05, fetch_local=False)
            with self._changed:
                self._collect()

    def _admit(self) -> bool:
        moved = False
        while self._blocks:
            key = self._admission.next_admissible(self._published)
            if key is None:
                break
            found, block = self._blocks.popleft()
            assert found == key, f"the stream delivered {found}, the plan says {key}"
            self._admission.admit(key)
            version = policy_version(key[0], self.config.max_policy_lag)
            item = Item(key, block, version, inputs=[block])
            if self._pools:
                self._items[key] = item
                self._waiting[0].append(key)
            else:
                self._finish(item, block)
            self._changed.notify_all()
            moved = True
        return moved

    def _dispatch(self) -> bool:
        """Queue waiting micro-batches on free members, oldest version first.

        A later version waits while an earlier one is still on its way to the stage, so that a
        pool never goes back and forth between two versions.
        """
        moved = False
        for stage, (pool, waiting) in enumerate(zip(self._pools, self._waiting)):
            waiting.sort()
            while waiting:
                item = self._items[waiting[0]]
                coming = [i.version for i in self._items.values() if i.stage < stage]
                if coming and min(coming) < item.version:
                    break
                bundle = self._bundles[item.version]
                member = pool.free_member(bundle)
                if member is None:
                    break
                pool.submit(member, item.key, bundle, *item.inputs)
                waiting.pop(0)
                moved = True
        return moved

    def _collect(self) -> None:
        before = sum(pool.events for pool in self._pools)
        for stage, pool in enumerate(self._pools):
            finished, retry = pool.collect()
            self.log.timeline.add(pool.take_spans())
            for key in retry:
                self._retry(self._items[key])
            for done in finished:
                item = self._items[done.key]
                if stage + 1 < len(self._pools):
                    item.stage, item.inputs = stage + 1, [item.block, done.result]
                    self._waiting[stage + 1].append(item.key)
                else:
                    self._finish(item, done.result)
        if sum(pool.events for pool in self._pools) != before:
            self._moved()

    def _retry(self, item: Item) -> None:
        """Generate a micro-batch again from its block, a bounded number of times."""
        item.attempts += 1
        limit = _ATTEMPTS * (self.config.deadline.restarts + 1)
        if item.attempts >= limit:
            step, index = item.key
            raise WorkerError(f"step {step} micro-batch {index} was lost {limit} times")
        item.stage, item.inputs = 0, [item.block]
        self._waiting[0].append(item.key)

    def _write_dump(self, block: ray.ObjectRef, scored: ray.ObjectRef) -> ray.ObjectRef:
        """In a task on this node, beside the run folder; the coordinator fetches nothing."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task: Any = ray.remote(dump_scored)
        return task.options(num_cpus=0, scheduling_strategy=here).remote(
            self.config, block, scored, self.log.folder
        )

    def _finish(self, item: Item, result: ray.ObjectRef) -> None:
        self._admission.finish(item.key)
        self._results[item.key] = result
        step, index = item.key
        if self._pools and step * self._full_size + index < self.config.debug.dump_trajectories:
            self._dumps.append(self._write_dump(item.block, result))
        self._items.pop(item.key, None)
        self._changed.notify_all()
