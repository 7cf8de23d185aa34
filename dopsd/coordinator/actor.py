"""The coordinator of a whole run, as a Ray actor."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.room import RoomNeeded
from dopsd.config import RunConfig
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.messages import PromptsToDraw
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.manifest import Manifest
from dopsd.data.run_data import plan_of, read_spec
from dopsd.data.stream.pipeline import EncodedStream, encoded_stream
from dopsd.ownership.lease import Lease
from dopsd.ray_cluster.placement import Role, Roles
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.trackers import open_trackers


class CoordinatorActor(Coordinator):
    """The coordinator of a whole run, with its plan and stream: the class behind the actor.

    ``roles`` have an encoder, or there is a ``context_cache``.
    """

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        manifest: Manifest,
        context_cache: ContextCache | None,
        restarts: int,
        lock: Lease,
        room: RoomNeeded,
        prompts: PromptsToDraw | None,
    ) -> None:
        plan = plan_of(config, manifest)
        role = roles.encoder or Role("reader", 0, 0.0, 0.0)

        def open_stream(start: int, stop: int) -> EncodedStream:
            # As far ahead as the policy lag can use, and one step more.
            ahead = plan.micro_batches_per_step * (config.max_policy_lag + 2)
            return encoded_stream(
                plan,
                start,
                stop,
                shards=config.shards,
                read_spec=read_spec(config),
                encoder_factory=TrainingEncoderFactory(config, role.device),
                context_cache=context_cache,
                workers=role.workers,
                num_cpus=role.cpus,
                num_gpus=role.gpus,
                options=role.label_options,
                ahead=max(4, ahead),
                start_s=config.timeouts.startup,
            )

        super().__init__(
            config,
            roles,
            open_stream,
            plan.step_size,
            RunLog(config.run.folder, open_trackers(config)),
            RunIdentity(manifest.fingerprint, plan.key),
            restarts,
            lock,
            room,
            prompts,
        )


def launch_coordinator(
    config: RunConfig,
    roles: Roles,
    manifest: Manifest,
    context_cache: ContextCache | None,
    name: str,
    restarts: int,
    lock: Lease,
    room: RoomNeeded,
    prompts: PromptsToDraw | None = None,
) -> Any:
    """The coordinator's actor, on this node: it writes into the run folder."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(CoordinatorActor)
    return actor.options(
        name=name,
        num_cpus=0,
        max_concurrency=config.learner.workers + 8,
        scheduling_strategy=here,
    ).remote(config, roles, manifest, context_cache, restarts, lock, room, prompts)
