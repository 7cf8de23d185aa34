"""`dopsd train`: data, coordinator, Ray Train, exports, in the order they happen."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import tempfile
import time
import uuid
from typing import Any

import ray

from dopsd import storage
from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.folder import complete_steps
from dopsd.checkpoint.manager import newest_checkpoint
from dopsd.config import RunConfig
from dopsd.coordinator.actor import launch_coordinator
from dopsd.coordinator.client import ANSWER_SECONDS, ask
from dopsd.data.run_data import plan_of, prepared
from dopsd.driver.checks import (
    check_context,
    check_options,
    refuse_existing,
    refuse_missing_source,
    refuse_unwritable,
    with_absolute_paths,
)
from dopsd.driver.context_cache import find_encoded, has_encoded
from dopsd.driver.preflight import before_training
from dopsd.driver.preview import draw_preview
from dopsd.driver.prior import check_prior, with_prior
from dopsd.driver.progress import Show
from dopsd.driver.summary import Summary, write_page, write_summary
from dopsd.driver.supervisor import Supervisor
from dopsd.errors import CheckpointError, DopsdError, InterruptedRun, RunLockLost, StorageError
from dopsd.export import lora_metadata
from dopsd.learner.group import learner_trainer
from dopsd.learner.zero.engine import preset_stage, read_preset
from dopsd.models import FAMILIES
from dopsd.models.lora import STUDENT
from dopsd.models.trained import TrainableParameters
from dopsd.ray_cluster.connect import NAMESPACE, connect
from dopsd.ray_cluster.placement import resolve_roles, wait_for_resources
from dopsd.run_folder.files import (
    CHECKPOINTS,
    LORA_FILE,
    MODULES,
    TRANSFORMERS,
)
from dopsd.run_folder.lock import locked_run_folder
from dopsd.run_folder.trackers import check_trackers


def train(config: RunConfig, show: Show, *, resume: bool = False, replace: bool = False) -> Summary:
    """Run ``config`` to its end. Raises a DopsdError with one clear line when it cannot.

    ``resume``: go on from the newest good checkpoint in the run folder. ``replace``: even an
    unfinished run in it may be lost. Raises StoppedError when a SIGTERM ended the run.
    """
    began = time.monotonic()
    show("prepare", {"message": "checking the config"})
    preset = read_preset(config.learner.deepspeed)
    check_trackers(config.trackers)
    check_context(config, preset_stage(preset))
    check_options(config, preset)
    check_prior(config)
    config = with_absolute_paths(config)
    refuse_unwritable(config)
    refuse_missing_source(config)
    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    adapted = TrainableParameters(config, family).describe(family.skeleton())
    if not resume:
        refuse_existing(config, replace)
    show("prepare", {"message": "starting Ray"})
    cluster = connect()
    roles = resolve_roles(config, cluster.get("GPU", 0.0))
    manifest = prepared(config, lambda status: show("prepare", status), renew=not resume)
    # Contexts that were encoded before need no encoder, which is known when all data is there.
    sure = dataclasses.replace(roles, encoder=None) if has_encoded(config) else roles
    wait_for_resources(sure.all(), ray.cluster_resources, config.timeouts.startup)
    # What a run may not go on with is refused before the base draws for it.
    drift = (lambda: _resumable(config, None)) if resume else (lambda: "")
    manifest = with_prior(config, manifest, roles.learner, show, drift)
    encoded = find_encoded(config, manifest, show)
    if encoded:
        roles = dataclasses.replace(roles, encoder=None)
    wait_for_resources(roles.all(), ray.cluster_resources, config.timeouts.startup)
    identity = RunIdentity(manifest.fingerprint, plan_of(config, manifest).key)
    if resume:
        show("prepare", {"message": _resumable(config, identity)})
    else:
        before_training(config, manifest, roles.learner, show)

    name = f"coordinator-{uuid.uuid4().hex[:8]}"
    arguments = {
        "config": config.model_dump(mode="json"),
        "preset": preset,
        "coordinator": name,
        "namespace": NAMESPACE,
        "metadata": lora_metadata(config, manifest),
    }
    # Ray Train keeps notes of its own in a folder; nothing of the run depends on them.
    scratch_folder = tempfile.TemporaryDirectory(prefix="dopsd-ray-train-")
    with scratch_folder as scratch, locked_run_folder(config, resume) as claim:
        supervisor = Supervisor(
            config,
            lambda restarts: launch_coordinator(
                config, roles, manifest, encoded, name, restarts, claim
            ),
            lambda: learner_trainer(config, roles, arguments, scratch).fit(),
            show,
            began,
        )
        try:
            status = supervisor.run()
        except BaseException as error:
            _stop(config, supervisor.coordinator)
            if isinstance(error, DopsdError):
                raise _with_way_on(config, error) from None
            raise
        problems = supervisor.notices + _stop(config, supervisor.coordinator)
    if status.ended and status.step < config.learner.steps:
        stopped = InterruptedRun(f"stopped by SIGTERM after step {status.step}")
        raise _with_way_on(config, stopped)
    folder = config.run.folder
    summary = Summary(
        folder=folder,
        lora=None if config.adapters == "full" else storage.join(folder, LORA_FILE),
        transformer=storage.join(folder, TRANSFORMERS[STUDENT])
        if config.adapters == "full"
        else None,
        modules=storage.join(folder, MODULES[STUDENT])
        if config.adapters == "lora+modules"
        else None,
        sheet=None,
        page=None,
        steps=status.step,
        seconds=time.monotonic() - began,
        seconds_to_first_step=supervisor.first_step,
        max_policy_lag=config.max_policy_lag,
        first_loss=status.losses[0],
        last_loss=status.losses[1],
        adapted=adapted,
        last=status.latest,
        problems=problems,
    )
    write_summary(summary)
    if config.preview.samples:
        show("preview", {"message": f"{config.preview.samples} rows"})
        try:
            summary.sheet = draw_preview(config, manifest, roles.learner)
        except (DopsdError, OSError) as error:
            summary.problems.append(str(error))
    summary.seconds = time.monotonic() - began
    write_page(summary)
    return summary


def _resumable(config: RunConfig, identity: RunIdentity | None) -> str:
    """What the run goes on from, in words. Raises CheckpointError when there is nothing."""
    root = storage.join(config.run.folder, CHECKPOINTS)
    found, refused = newest_checkpoint(config, identity)
    if found is None:
        raise CheckpointError("; ".join(refused) or f"{root}: no checkpoint; nothing to resume")
    words = f"resuming from step {found.step}"
    return f"{words}; refused: {'; '.join(refused)}" if refused else words


def _with_way_on(config: RunConfig, error: DopsdError) -> DopsdError:
    """The same error, saying how to go on when a checkpoint is there."""
    folder, steps = config.run.folder, []
    if isinstance(error, RunLockLost):
        return error
    with contextlib.suppress(OSError, StorageError):  # which may be why the run ended
        steps = complete_steps(storage.join(folder, CHECKPOINTS))
    if not steps:
        return error
    way = f"dopsd train --resume {shlex.quote(folder)}"
    return type(error)(f"{error}; step {steps[-1]} is saved, resume with: {way}")


def _stop(config: RunConfig, coordinator: Any) -> list[str]:
    """End the coordinator and its actors; what went wrong is told, never raised."""
    limit = config.timeouts.step + 3 * ANSWER_SECONDS  # a checkpoint may still be on its way
    try:
        problems: list[str] = ask(coordinator, "stop", limit=limit)
    except DopsdError as error:
        problems = [str(error)]
    ray.kill(coordinator)
    return problems
