"""A library's worker: one process that loads the base once and then trains concept after concept,
each by the learner of `dopsd train` with ``source: fused``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import HashStore

from dopsd import shown
from dopsd.checkpoint.learner_state import LearnerState, SlicedState
from dopsd.config import RunConfig
from dopsd.coordinator.admission import rank_share
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.data.concepts import ConceptGroup
from dopsd.data.context_cache.files import CachedRows, ContextCache, read_cached
from dopsd.data.plan import Plan
from dopsd.data.read import RowGroups
from dopsd.data.run_data import plan_of_groups, read_spec
from dopsd.data.stream.block import encoded_block
from dopsd.errors import message_line
from dopsd.export import lora_file
from dopsd.intervals import mean
from dopsd.learner.learner import Learner
from dopsd.learner.sources import FusedSource
from dopsd.learner.student import build_student
from dopsd.learner.weights import ReplicatedWeights, Weights
from dopsd.learner.zero.engine import ZeroEngine, engine_config
from dopsd.library.report.sheet import Sheet, SheetSampler
from dopsd.library.stopping import stops
from dopsd.models import FAMILIES
from dopsd.models.checksum import sha256
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.ray_cluster.process import set_up
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.log import loss_steps
from dopsd.run_folder.timeline import Span

Losses = list[tuple[int, float]]


@dataclass(frozen=True)
class Job:
    """One concept to train; ``config`` is that of a run of it alone."""

    concept: str
    config: RunConfig
    groups: tuple[ConceptGroup, ...]
    weight: float
    """Of ``data.concept_weights``."""
    metadata: dict[str, str]
    """Of the files that it leaves."""
    first: int
    """Step at which it begins: 0, or where an earlier attempt left a state."""
    files: dict[str, bytes]
    """Of that state, if there is one."""
    losses: Losses
    draw: bool = True
    """Its sheet, where the library keeps one."""


@dataclass(frozen=True)
class Trained:
    """What a job gave."""

    lora: bytes
    teacher: bytes | None
    steps: int
    stopped: str
    """Why before its last step, if so."""
    losses: tuple[float | None, float | None]
    """Means of the first and of the last steps."""
    adapter_sha256: str
    seconds: float
    first_step_seconds: float
    """From the job's arrival to its first finished step."""
    sheet: Sheet | None = None
    no_sheet: str = ""
    """Why there is none, where drawing failed."""


@dataclass(frozen=True)
class SavedState:
    """A learner between two steps."""

    step: int
    losses: Losses
    files: dict[str, bytes]


@dataclass(frozen=True)
class News:
    """What a worker tells while it trains."""

    concept: str
    step: int
    state: SavedState | None
    waits: int = 0
    """Grows while it waits for others, which is no hanging."""


class LibraryWorker:
    """A plain class; ``pool.py`` wraps it as an actor whose ``train`` has a thread of its own, so
    that ``news`` is answered meanwhile. ``config`` is the library's."""

    fused = True
    """It rolls out and scores for itself."""

    def __init__(
        self, config: RunConfig, preset: dict[str, Any], cache: ContextCache, device: str
    ) -> None:
        self.config, self._preset, self._device = config, preset, torch.device(device)
        spec = replace(read_spec(config), images=False, reference_pixels=0)
        self._cache, self._rows = cache, CachedRows(cache)
        self._captions = RowGroups(config.shards, spec)
        self._engine: ZeroEngine | None = None
        self._sheets: SheetSampler | None = None
        self._no_sheets = ""
        self._begin: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._progress: dict[str, Progress] = {}
        """Of concepts in flight, and of the last that ended."""

    def load(self) -> None:
        """Load the base. The first call of a worker."""
        set_up(self._device.type, self.config.run.determinism)
        _one_rank(self._device)
        family = FAMILIES[self.config.model.family](
            self.config.model.base, self.config.model.revision
        )
        student = build_student(self.config, family, self._device, with_teacher=self.fused)
        accumulation = self.config.learner.micro_batches * self.config.terms
        settings = engine_config(self.config, self._preset, accumulation)
        self._engine = ZeroEngine(student, settings, self.config.learner)
        self._begin = self._engine.full_weights(STUDENT)
        if "sheet" in self.config.library.keep and self.config.preview.samples:
            if self.config.model.merge and not self.config.model.draw_merged:
                self._no_sheets = "model.merge is in the base, and model.draw_merged is false"
            else:
                self._sheets = SheetSampler(self.config, self._cache, student)

    def train(self, job: Job) -> Trained:
        """Train a concept to its end. Raises as ``Learner.run`` does, and DataError for a row that
        cannot be read; the process is of no use afterwards."""
        began = time.perf_counter()
        assert self._engine is not None, "load first"
        engine, config = self._engine, job.config
        engine.reset(self._begin)
        run = ConceptRun(config, job.losses, self._progress_of(job), began)
        fetch = BlocksAhead(partial(self._blocks, plan_of_job(job)), config.learner.steps)
        source = FusedSource(config, fetch, engine, self._device, _dump_nothing)
        learner = Learner(config, engine, source, run, run.publish)
        if job.files:
            learner.restore(LearnerState.from_files(job.files))
        whole = learner.run(job.first, config.learner.steps)
        return self._trained(job, run, learner, whole, began)

    def _progress_of(self, job: Job) -> Progress:
        """That of a job which begins; what was left of those that have ended is gone."""
        own = Progress(job.concept, job.first)
        with self._lock:
            going = {name: each for name, each in self._progress.items() if not each.over}
            self._progress = {**going, job.concept: own}
        return own

    def _trained(
        self, job: Job, run: ConceptRun, learner: Learner, whole: bool, began: float
    ) -> Trained:
        """What a learner that has ended gives, with the sheet of its concept; its weights are in
        the engine."""
        config, weights, steps = job.config, learner.weights, run.steps
        assert isinstance(weights, ReplicatedWeights), "adapters: lora, as the library checks"
        assert steps is not None
        student, keep = weights.full(STUDENT), config.library.keep
        trained = Trained(
            _lora(job, STUDENT, student),
            _lora(job, TEACHER, weights.full(TEACHER)) if "teacher" in keep else None,
            steps,
            "" if whole else f"no gain after {steps} of {config.learner.steps} steps",
            run.first_and_last_loss(),
            sha256(student),
            time.perf_counter() - began,
            run.first_step_seconds,
        )
        # The adapter is made: nothing that drawing does or fails at can reach it.
        sheet, why = self._drawn(job)
        self._progress[job.concept].over = True
        return replace(trained, seconds=time.perf_counter() - began, sheet=sheet, no_sheet=why)

    def _drawn(self, job: Job) -> tuple[Sheet | None, str]:
        """(the concept's sheet, why there is none although one is kept)."""
        if self._sheets is None:
            return None, self._no_sheets
        if not job.draw:
            return None, "a worker died of this concept, perhaps while it drew"
        try:
            return self._sheets.draw(job.groups, self._device), ""
        except Exception as error:  # models, autoencoders and pictures fail in many ways
            return None, shown.line(message_line(error), 300)

    def news(self, concept: str) -> News:
        """How far a concept is; its newest state that was not told yet."""
        progress = self._progress.get(concept)
        return News(concept, -1, None) if progress is None else progress.take()

    def _blocks(self, plan: Plan, step: int) -> list[tuple[Any, bool]]:
        """What a learner that is alone gets of a step: (block, is real)."""
        planned = plan.step(step).micro_batches
        share = rank_share(len(planned), plan.micro_batches_per_step, 0, 1)
        return [
            (
                encoded_block(read_cached(planned[index], self._captions, self._rows, plan.seed)),
                real,
            )
            for index, real in share
        ]


def plan_of_job(job: Job) -> Plan:
    """What a job trains, step by step."""
    return plan_of_groups(job.config, job.groups, {job.concept: job.weight})


class BlocksAhead:
    """Reads the blocks of the next step while one is trained, up to ``stop``; in one thread, so
    that ``read`` need not be safe for several."""

    def __init__(self, read: Callable[[int], list[tuple[Any, bool]]], stop: int) -> None:
        self._read, self._stop = read, stop
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[list[tuple[Any, bool]]]] | None = None

    def __call__(self, step: int) -> Iterator[tuple[Any, bool]]:
        blocks = self._taken(step)
        if step + 1 < self._stop:
            self._next = step + 1, self._thread.submit(self._read, step + 1)
        else:
            self._thread.shutdown(wait=False)
        yield from blocks

    def _taken(self, step: int) -> list[tuple[Any, bool]]:
        if self._next is not None and self._next[0] == step:
            return self._next[1].result()
        return self._thread.submit(self._read, step).result()


class Progress:
    """Of a concept, handed from the thread that trains it to the one that answers."""

    def __init__(self, concept: str, step: int) -> None:
        self._lock = threading.Lock()
        self._concept, self._step, self._waits = concept, step, 0
        self._state: SavedState | None = None
        self.over = False

    def stepped(self, step: int) -> None:
        with self._lock:
            self._step = step

    def waits(self) -> None:
        """It waits for others, who have deadlines of their own."""
        with self._lock:
            self._waits += 1

    def saved(self, state: SavedState) -> None:
        with self._lock:
            self._state = state

    def take(self) -> News:
        with self._lock:
            news = News(self._concept, self._step, self._state, self._waits)
            self._state = None
            return news


class ConceptRun:
    """What a coordinator is to a learner, for one concept in one process."""

    def __init__(self, config: RunConfig, losses: Losses, progress: Progress, began: float) -> None:
        self.config, self._losses, self._progress = config, list(losses), progress
        self._began, self._saved = began, time.monotonic()
        self.steps: int | None = None
        """Optimizer steps behind the weights, once there are any."""
        self.first_step_seconds = 0.0

    def publish(self, version: int, weights: Weights) -> CheckpointRequest:
        """Nobody else takes the weights; says whether to save them, or to end."""
        begins, self.steps = self.steps is None, version
        if begins:
            return CheckpointRequest()
        if stops(self.config.library.stop, self._losses, version):
            return CheckpointRequest(stop=True)
        section = self.config.checkpoint
        old = time.monotonic() - self._saved > 60 * section.every_minutes > 0
        due = section.every_steps and version % section.every_steps == 0
        return CheckpointRequest(save=bool(old or due) and version < self.config.learner.steps)

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.first_step_seconds = self.first_step_seconds or time.perf_counter() - self._began
        if "loss" in metrics:
            self._losses.append((step, metrics["loss"]))
        self._progress.stepped(step + 1)

    def record(self, step: int, share: TrainedShare) -> None:
        """The ledger of a library counts steps, whose samples follow from the plan."""

    def tell(self, spans: list[Span]) -> None:
        """A library has no timeline of a concept."""

    def save(
        self, state: LearnerState | SlicedState, gather: Callable[[Any], Sequence[Any]]
    ) -> None:
        assert isinstance(state, LearnerState), "adapters: lora, as the library checks"
        self._saved = time.monotonic()
        self._progress.saved(SavedState(state.step, list(self._losses), state.to_files()))

    def first_and_last_loss(self) -> tuple[float | None, float | None]:
        """Means over as many steps at either end as `dopsd train` takes."""
        count = loss_steps(self.steps or 0)
        values = [loss for _, loss in self._losses]
        return (mean(values[:count]), mean(values[-count:])) if values else (None, None)


def _one_rank(device: torch.device) -> None:
    """DeepSpeed wants a process group, if only of one; nothing listens for it."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _lora(job: Job, adapter: str, state: dict[str, Tensor]) -> bytes:
    lora = job.config.lora
    named = {**job.metadata, "dopsd.adapter": adapter}
    return lora_file(
        state, lora.rank, lora.alpha, named, torch.bfloat16, rank_stabilized=lora.rank_stabilized
    )


def _dump_nothing(name: str, payload: bytes) -> None:
    raise AssertionError("debug.dump_trajectories: 0, as the library checks")
