"""Shared pools and learners that compute nothing but digests, and fail as the name of a concept
says."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray

from dopsd.config import RunConfig
from dopsd.errors import WorkerError
from dopsd.library.disaggregated.client import Lane
from dopsd.library.disaggregated.inference import Settings, Task
from dopsd.library.disaggregated.pools import Learnt
from dopsd.library.disaggregated.turns import SharedEngine, Shelf, Turns
from dopsd.library.workers.concept_run import Progress
from dopsd.library.workers.jobs import Job, News, SavedState, Trained
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle

MICRO_BATCHES, EVERY, SECONDS = 2, 4, 0.01


def digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def learnt(value: str, results: list[str]) -> str:
    return digest(value, *results)


def adapter(concept: str, steps: int) -> str:
    """What training a concept alone gives."""
    value = concept
    for step in range(steps):
        blocks = [f"{concept}/{step}/{index}" for index in range(MICRO_BATCHES)]
        paths = [digest("generate", step, value, block) for block in blocks]
        scores = [digest("score", step, f"ema {value}", *both) for both in zip(blocks, paths)]
        value = learnt(value, scores)
    return value


class FakeInference:
    """``config.run.folder`` lies beside the folder of process ids."""

    def __init__(self, config: RunConfig, device: str, adapters: tuple[str, ...]) -> None:
        self._adapters = adapters
        pids = Path(config.run.folder).parent / "inference"
        pids.mkdir(exist_ok=True)
        self._file = pids / str(os.getpid())
        self._file.touch()

    def arrive(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def serve(self, task: Task, payload: Any, block: str, *inputs: bytes) -> tuple[bytes, Any]:
        time.sleep(SECONDS)
        (own,) = self._adapters
        assert digest(payload) == task.checksums[own], "another concept's adapter"
        kind = block.partition(" ")[0]
        if kind == "broken" and task.method == "score" and task.version == 3:
            raise ValueError("a row that nobody can score")
        if kind == "killer" and task.method == "generate" and task.version == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        told = [value.decode() for value in inputs]
        result = digest(task.method, task.version, payload, block, *told)
        return result.encode(), {"seconds": SECONDS}


class FakePooledLearner:
    """Several concepts in turns on one value. ``folder``: where each process writes what it
    trains, under its id."""

    def __init__(self, folder: str, pools: Any) -> None:
        self._file, self._pools = Path(folder) / str(os.getpid()), pools
        self._turns, self._shared = Turns(), SharedEngine[str]()
        self._progress: dict[str, Progress] = {}
        self._value = ""

    def load(self) -> None:
        self._file.touch()

    def news(self, concept: str) -> News:
        own = self._progress.get(concept)
        return own.take() if own else News("", 0, None)

    def give_back(self, concept: str) -> None:
        if own := self._progress.get(concept):
            own.leaves = True

    def train(self, job: Job) -> Trained | SavedState:
        steps, timeouts = job.config.learner.steps, job.config.timeouts
        progress = self._progress[job.concept] = Progress(job.concept, job.first)
        sizes = [MICRO_BATCHES] * steps
        settings = Settings("x0")
        lane = Lane(self._pools, job.concept, job.first, sizes, settings, timeouts, progress.waits)
        self._turns.take(lane.number)
        self._shared.clear()
        self._value = job.files["student"].decode() if job.files else job.concept
        shelf = Shelf(lambda: self._value, self._set)
        self._shared.begin(shelf)
        for step in range(job.first, steps):
            self._publish(lane, job.concept, step)
            self._turns.give_back()
            results = [payload.decode() for payload in lane.fetch(step)]
            self._turns.take(lane.number)
            self._file.write_text(job.concept)
            self._shared.take_up(shelf)
            time.sleep(SECONDS)
            self._fail(job.concept, step)
            self._value = learnt(self._value, results)
            progress.stepped(step + 1)
            losses = [(number, 1.0) for number in range(step + 1)]
            state = SavedState(step + 1, losses, {"student": self._value.encode()})
            if progress.leaves and step + 1 < steps:
                self._end(shelf, lane)
                return state
            if (step + 1) % EVERY == 0:
                progress.saved(state)
        value = self._value
        self._end(shelf, lane)
        return Trained(value.encode(), None, steps, "", (1.0, 0.5), value, 0.1, 0.0)

    def _end(self, shelf: Shelf[str], lane: Lane) -> None:
        self._shared.forget(shelf)
        self._turns.give_back()
        lane.close()

    def _set(self, value: str) -> None:
        self._value = value

    def _publish(self, lane: Lane, concept: str, version: int) -> None:
        payloads = {STUDENT: self._value, TEACHER: f"ema {self._value}"}
        bundle = Bundle(
            version,
            {name: ray.put(payload) for name, payload in payloads.items()},
            {name: digest(payload) for name, payload in payloads.items()},
            1,
        )
        blocks = [f"{concept}/{version}/{index}" for index in range(MICRO_BATCHES)]
        name = threading.current_thread().name
        learnt = Learnt(name, self._turns.held_seconds, SECONDS, 0.0)
        lane.publish(bundle, blocks, learnt)

    def _fail(self, concept: str, step: int) -> None:
        kind = concept.partition(" ")[0]
        if kind == "nan" and step == 5:
            raise WorkerError(f"step {step}: loss or gradients are not finite, 6 steps in a row")
        if kind == "oom" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
