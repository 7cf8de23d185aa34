"""What each Ray Train worker runs: a DeepSpeed learner fed by the coordinator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import get_device
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.export import lora_file
from dopsd.models import FAMILIES
from dopsd.models.base import DTYPES
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.process import peak_memory_mb, set_up
from dopsd.runtime.dump import weights_dumped, weights_path
from dopsd.runtime.history import kept_path, kept_versions, small_enough
from dopsd.runtime.learner import Learner
from dopsd.runtime.run_log import LORA_FILE, TEACHER_FILE
from dopsd.runtime.sources import DisaggregatedSource, FusedSource
from dopsd.runtime.student import build_student
from dopsd.runtime.timeline import Span
from dopsd.runtime.weights import Bundle
from dopsd.runtime.zero import ZeroEngine, engine_config, preset_stage

_GRACE = 30.0
"""Seconds that a call to the coordinator may take beyond the coordinator's own deadline."""


def train_worker(arguments: dict[str, Any]) -> None:
    """``arguments``: config (dict), preset (DeepSpeed), coordinator (name), namespace, lora
    (metadata of the exported file)."""
    began = time.time()
    config = RunConfig.model_validate(arguments["config"])
    coordinator = ray.get_actor(arguments["coordinator"], namespace=arguments["namespace"])
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    set_up(device.type)

    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    fused = config.source == "fused"
    # ZeRO-3 cuts the base up on the CPU before any of it is on a GPU.
    where = "cpu" if preset_stage(arguments["preset"]) == 3 else device
    student = build_student(config, family, where, with_teacher=fused)
    learner_config = config.learner
    micro_batches = learner_config.global_batch // learner_config.micro_batch
    accumulation = -(-micro_batches // world) * config.method.steps
    engine = ZeroEngine(student, engine_config(config, arguments["preset"], accumulation))

    def call(method: str, *values: Any) -> Any:
        limit = max(config.deadline.start, config.deadline.step) + _GRACE
        return ray.get(getattr(coordinator, method).remote(*values), timeout=limit)

    def fetch(step: int) -> Iterator[tuple[Any, bool]]:
        for box in call("fetch", step, rank, world):
            yield ray.get(box.ref, timeout=config.deadline.step), box.real

    def lora(adapter: str, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> bytes:
        metadata = {**arguments["lora"], "dopsd.adapter": adapter}
        return lora_file(state, config.lora.rank, config.lora.alpha, metadata, dtype)

    def publish(version: int, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
        if rank:
            return
        if fused:
            bundle = Bundle(version, {}, {}, 0)
        else:
            dtype = DTYPES[config.model.dtype]
            bundle = Bundle.create(version, student, teacher, dtype, ray.put)
        if weights_dumped(config, version):
            for adapter, state in ((STUDENT, student), (TEACHER, teacher)):
                call("write", weights_path(version, adapter), lora(adapter, state))
        call("publish", bundle)
        # After it, so that roll-outs of the next step go on meanwhile.
        if version in kept_versions(config) and small_enough(config, student):
            for adapter, state in ((STUDENT, student), (TEACHER, teacher)):
                payload = lora(adapter, state, DTYPES[config.model.dtype])
                call("write", kept_path(version, adapter), payload)

    def report(step: int, metrics: dict[str, Any]) -> None:
        if rank == 0:
            metrics["learner_peak_memory_mb"] = peak_memory_mb()
            call("report", step, metrics)

    told: list[Any] = []

    def tell(spans: list[Span]) -> None:
        told[:] = [coordinator.tell.remote(spans)]  # nobody waits for it

    def sum_over_ranks(value: float) -> float:
        if world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return float(total)

    if fused:
        source: Any = FusedSource(
            config, fetch, engine, device, lambda name, data: call("write", name, data)
        )
    else:
        source = DisaggregatedSource(config, fetch, device)
    learner = Learner(config, engine, source, publish, report, sum_over_ranks, tell, rank)
    tell([Span(f"learner-{rank}", "start up", 0, began, time.time())])
    learner.run(0, learner_config.steps)
    ray.wait(told, timeout=_GRACE)  # a process that ends takes its unsent calls along
    if rank == 0:
        call("write", LORA_FILE, lora(STUDENT, learner.student))
        call("write", TEACHER_FILE, lora(TEACHER, learner.ema.tensors))
