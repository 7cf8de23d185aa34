"""What each Ray Train worker runs: a DeepSpeed learner fed by the coordinator."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from ray import train
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError
from ray.train.torch import get_device

from dopsd import storage
from dopsd.checkpoint.learner_slices import SlicedState, read_state, write_state
from dopsd.checkpoint.learner_state import LearnerState
from dopsd.config import RunConfig
from dopsd.coordinator.client import find_coordinator
from dopsd.coordinator.messages import CheckpointRequest, ObjectRefBox
from dopsd.errors import DopsdError
from dopsd.learner.exporter import Exporter
from dopsd.learner.learner import Learner
from dopsd.learner.sources import DisaggregatedSource, FusedSource
from dopsd.learner.student import build_student
from dopsd.learner.weights import Weights
from dopsd.learner.zero.engine import ZeroEngine, engine_config, preset_stage
from dopsd.models import FAMILIES
from dopsd.ray_cluster.failures import error_message, unwrap_error
from dopsd.ray_cluster.process import peak_memory_mb, set_up
from dopsd.run_folder.files import CHECKPOINTS
from dopsd.run_folder.timeline import Span

_log = logging.getLogger(__name__)

_GRACE = 30.0
"""Seconds that a call to the coordinator may take beyond the coordinator's own deadline."""

_HEARTBEAT = 10.0
"""Seconds between two signs of life of a learner that writes its part of a large checkpoint."""

_RETURN = 20.0
"""Seconds that a coordinator that died takes to come back, beside the wait before its restart."""


def train_worker(arguments: dict[str, Any]) -> None:
    """``arguments``: config (dict), preset (DeepSpeed), coordinator (name), namespace, metadata (of
    exported files)."""
    config = RunConfig.model_validate(arguments["config"])
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    learner = config.learner
    patience = _RETURN + learner.pause_before(learner.restarts)
    coordinator = find_coordinator(arguments["coordinator"], arguments["namespace"], patience)
    limit = max(config.timeouts.startup, config.timeouts.step) + _GRACE

    # A new group of learners is a new attempt; rank 0 asks for its number.
    number = torch.zeros(1, dtype=torch.int64, device=device)
    if rank == 0:
        number += ray.get(coordinator.attach.remote(world), timeout=limit)
    if world > 1:
        torch.distributed.broadcast(number, 0)
    attempt = int(number)

    def call(method: str, *values: Any) -> Any:
        answer = getattr(coordinator, method).remote(attempt, *values)
        while True:
            try:
                return ray.get(answer, timeout=limit)
            except GetTimeoutError:
                # While it is there it has deadlines of its own, and replaces who is late.
                ray.get(coordinator.error.remote(), timeout=limit)

    try:
        _train(arguments, config, coordinator, call, rank, world, device)
    except DopsdError as error:
        # No restart mends what has a name; of a learner whose attempt is over nobody listens.
        # What a call to the coordinator raised comes in Ray's wrapping, which is no argument.
        with contextlib.suppress(RayError, DopsdError):
            call("fail", unwrap_error(error, f"learner {rank}"))
        raise
    except Exception as error:
        _log.exception("learner %d", rank)
        with contextlib.suppress(RayError, DopsdError):
            call("died", rank, error_message(error))
        raise


def _train(
    arguments: dict[str, Any],
    config: RunConfig,
    coordinator: Any,
    call: Callable[..., Any],
    rank: int,
    world: int,
    device: torch.device,
) -> None:
    began = time.time()
    set_up(device.type)
    entry = call("enter", rank, ray.get_runtime_context().current_actor)
    limit = config.timeouts.startup
    saved = {name: ray.get(box.ref, timeout=limit) for name, box in entry.files.items()}

    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    fused = config.source == "fused"
    # ZeRO-3 cuts the base up on the CPU before any of it is on a GPU.
    where = "cpu" if preset_stage(arguments["preset"]) == 3 else device
    student = build_student(config, family, where, with_teacher=fused)
    learner_config = config.learner
    micro_batches = learner_config.micro_batches
    accumulation = -(-micro_batches // world) * config.method.steps
    engine = ZeroEngine(
        student, engine_config(config, arguments["preset"], accumulation), learner_config
    )

    def fetch(step: int) -> Iterator[tuple[Any, bool]]:
        for place, box in enumerate(call("fetch", step, rank, world)):
            while True:
                try:
                    value = ray.get(box.ref, timeout=config.timeouts.step)
                    break
                except ObjectLostError:
                    call("lost", step, box.index, box.losses)
                    box = call("fetch", step, rank, world)[place]
            yield value, box.real

    exporter = Exporter(
        config,
        family,
        arguments["metadata"],
        rank,
        ray.put,
        lambda name, data: call("write", name, data),
        entry.bundle,
    )
    entry.bundle = None  # or its weights would stay in the store to the end

    def publish(version: int, weights: Weights) -> CheckpointRequest:
        exporter.before_publish(version, weights)
        bundle = exporter.bundle(version, weights)
        wish: CheckpointRequest = CheckpointRequest() if rank else call("publish", bundle)
        exporter.after_publish(version, weights)  # roll-outs of the next step go on meanwhile
        return wish

    heard = [0.0]

    def alive() -> None:
        if time.monotonic() - heard[0] > _HEARTBEAT:
            call("alive")
            heard[0] = time.monotonic()

    def save(state: LearnerState | SlicedState) -> None:
        if isinstance(state, SlicedState):
            root = storage.join(config.run.folder, CHECKPOINTS)
            handed = write_state(state, root, rank, world, engine.gather, alive)
            if rank == 0:
                call("save", state.step, {}, handed)
        elif rank == 0:
            files = {
                name: ObjectRefBox(ray.put(data), True) for name, data in state.to_files().items()
            }
            call("save", state.step, files)

    def report(step: int, metrics: dict[str, Any]) -> None:
        if rank == 0:
            metrics["learner_peak_memory_mb"] = peak_memory_mb()
            call("report", step, metrics)

    told: list[Any] = []

    def tell(spans: list[Span]) -> None:
        told[:] = [coordinator.tell.remote(spans)]  # nobody waits for it

    def sum_over_ranks(values: list[float]) -> list[float]:
        if world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    if fused:
        source: Any = FusedSource(
            config, fetch, engine, device, lambda name, data: call("write", name, data)
        )
    else:
        source = DisaggregatedSource(config, fetch, device)
    learner = Learner(
        config,
        engine,
        source,
        publish,
        report,
        sum_over_ranks,
        tell,
        rank,
        save,
        lambda step, trained: call("trained", step, trained),
    )
    if saved:
        learner.restore(LearnerState.from_files(saved))
        saved.clear()
    elif entry.slices:
        learner.restore(read_state(entry.slices))
    tell([Span(f"learner-{rank}", "start up", entry.step, began, time.time())])
    done = learner.run(entry.step, learner_config.steps)
    ray.wait(told, timeout=_GRACE)  # a process that ends takes its unsent calls along
    if done:
        exporter.export(learner.weights)
