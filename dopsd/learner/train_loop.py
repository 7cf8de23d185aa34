"""What each Ray Train worker runs: a DeepSpeed learner fed by the coordinator."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import get_device

from dopsd.checkpoint.learner_state import LearnerState
from dopsd.checkpoint.slices import SliceReader
from dopsd.config import RunConfig
from dopsd.coordinator.client import ActorConnection, CoordinatorClient, retry
from dopsd.errors import DopsdError
from dopsd.files import storage
from dopsd.learner.collectives import collective_seconds, hold_on
from dopsd.learner.exporter import Exporter
from dopsd.learner.learner import Learner
from dopsd.learner.sources import DisaggregatedSource, FusedSource
from dopsd.learner.student import build_student
from dopsd.learner.zero.engine import ZeroEngine, engine_config, preset_stage
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES
from dopsd.ray_cluster.failures import full_disk
from dopsd.ray_cluster.process import set_up
from dopsd.run_folder.files import CHECKPOINTS
from dopsd.run_folder.timeline import Span

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 30.0
"""What a call to the coordinator may take beyond the coordinator's own deadline."""
_RETURN_SECONDS = 20.0
"""What a coordinator that died takes to come back, beside the wait before its restart."""


def train_worker(arguments: dict[str, Any]) -> None:
    """``arguments``: config (dict), preset (DeepSpeed), coordinator (name), namespace, metadata (of
    exported files)."""
    device = get_device()
    config = RunConfig.model_validate(arguments["config"])
    # Before anything else can: DeepSpeed looks for GPUs when it is imported.
    set_up(device.type, config.run.determinism)
    timeouts, learner = config.timeouts, config.learner
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    patience = _RETURN_SECONDS + learner.pause_before(learner.restarts)
    name, namespace = arguments["coordinator"], arguments["namespace"]
    actor = retry(lambda: ray.get_actor(name, namespace=namespace), patience)
    connection = ActorConnection(actor, max(timeouts.startup, timeouts.step) + _GRACE_SECONDS)
    client = CoordinatorClient(
        connection,
        _attempt(connection, rank, world, device),
        rank,
        world,
        timeouts=timeouts,
        checkpoints=storage.join(config.run.folder, CHECKPOINTS),
    )
    try:
        run_learner(config, arguments["preset"], arguments["metadata"], client, device)
    except Exception as error:
        # No restart mends what has a name.
        named = error if isinstance(error, DopsdError) else full_disk(error)
        if named is not None:
            client.fail(named)
        else:
            _log.exception("learner %d", rank)
            client.record_death(error)
        raise
    connection.close(_GRACE_SECONDS)


def _attempt(connection: ActorConnection, rank: int, world: int, device: torch.device) -> int:
    """A new group of learners is a new attempt; rank 0 asks for its number."""
    number = torch.zeros(1, dtype=torch.int64, device=device)
    if rank == 0:
        number += connection.call("attach", world)
    if world > 1:
        torch.distributed.broadcast(number, 0)
    return int(number)


def run_learner(
    config: RunConfig,
    preset: dict[str, Any],
    metadata: dict[str, str],
    client: CoordinatorClient,
    device: torch.device,
) -> None:
    """Load the student, resume where the run stands, train to the end, export."""
    began = time.time()
    begin, files = client.enter(ray.get_runtime_context().current_actor)

    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    fused = config.source == "fused"
    # ZeRO-3 cuts the base up on the CPU before any of it is on a GPU.
    where = "cpu" if preset_stage(preset) == 3 else device
    student = build_student(config, family, where, with_teacher=fused)
    accumulation = -(-config.learner.micro_batches // client.world) * config.terms
    engine = ZeroEngine(student, engine_config(config, preset, accumulation), config.learner)
    hold_on(collective_seconds(config.timeouts))

    exporter = Exporter(config, family, metadata, client, begin.bundle)
    begin.bundle = None  # or its weights would stay in the store to the end
    source: FusedSource | DisaggregatedSource
    if fused:
        source = FusedSource(config, client.fetch, engine, device, client.write)
    else:
        source = DisaggregatedSource(client.fetch, device, DTYPES[config.model.dtype])
    learner = Learner(config, engine, source, client, exporter.publish)

    if files:
        learner.restore(LearnerState.from_files(files))
        files.clear()
    elif begin.slices:
        learner.restore(SliceReader(sorted(begin.slices)))
    client.tell([Span(f"learner-{client.rank}", "start up", begin.step, began, time.time())])
    if learner.run(begin.step, config.learner.steps):
        exporter.export(learner.weights)
