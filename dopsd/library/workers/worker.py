"""A library's worker: one process that loads the base once and then trains concept after concept,
each by the learner of `dopsd train` with ``source: fused``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import HashStore

from dopsd import shown
from dopsd.checkpoint.learner_state import LearnerState
from dopsd.config import RunConfig
from dopsd.coordinator.admission import rank_share
from dopsd.data.context_cache.files import CachedRows, ContextCache, read_cached
from dopsd.data.planning.plan import Plan
from dopsd.data.read import RowGroups
from dopsd.data.run_data import plan_of_groups, read_spec
from dopsd.data.stream.block import encoded_block
from dopsd.errors import message_line
from dopsd.export import lora_file
from dopsd.learner.learner import Learner
from dopsd.learner.sources import FusedSource
from dopsd.learner.student import build_student
from dopsd.learner.weights import ReplicatedWeights
from dopsd.learner.zero.engine import ZeroEngine, engine_config
from dopsd.library.report.sheet import Sheet, SheetSampler
from dopsd.library.workers.concept_run import ConceptRun, Progress
from dopsd.library.workers.jobs import Job, News, SavedState, Trained
from dopsd.models import FAMILIES
from dopsd.models.checksum import sha256
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.ray_cluster.process import set_up


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

    def train(self, job: Job) -> Trained | SavedState:
        """Train a concept to its end, or until :meth:`give_back` asks for it. Raises as
        ``Learner.run`` does, and DataError for a row that cannot be read; the process is of no use
        afterwards."""
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
        return self._result(job, run, learner, whole, began)

    def give_back(self, concept: str) -> None:
        """Let a concept, if it is trained here, be where it is after the step under way: its node
        will be taken away."""
        if (progress := self._progress.get(concept)) is not None:
            progress.leaves = True

    def _progress_of(self, job: Job) -> Progress:
        """That of a job which begins; what was left of those that have ended is gone."""
        own = Progress(job.concept, job.first)
        with self._lock:
            going = {name: each for name, each in self._progress.items() if not each.over}
            self._progress = {**going, job.concept: own}
        return own

    def _result(
        self, job: Job, run: ConceptRun, learner: Learner, whole: bool, began: float
    ) -> Trained | SavedState:
        """What a learner that has ended gives, with the sheet of its concept; its weights are in
        the engine."""
        if run.given_back is not None:
            self._progress[job.concept].over = True
            return run.given_back
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
