"""`dopsd train`: data, coordinator, Ray Train, exports, in the order they happen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd import __version__, checkpoint, storage
from dopsd.config import RunConfig, dump_config
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.encoded import Encoded
from dopsd.data.manifest import Manifest
from dopsd.data.stream import encoded_stream
from dopsd.errors import (
    CheckpointError,
    DopsdError,
    StoppedError,
    StorageError,
    TakenOverError,
)
from dopsd.json_lines import part_names
from dopsd.models import FAMILIES
from dopsd.models.lora import STUDENT
from dopsd.models.trained import TrainedSet
from dopsd.report.page import REPORT_FILE, write_report
from dopsd.runtime.claim import Claim
from dopsd.runtime.cluster import NAMESPACE, connect
from dopsd.runtime.config_drift import Identity
from dopsd.runtime.coordinator import Coordinator
from dopsd.runtime.data import (
    check_context,
    plan_of,
    prepared,
    refuse_existing,
    refuse_missing_source,
    refuse_unwritable,
    wanted,
    with_absolute_paths,
)
from dopsd.runtime.encoded import find_encoded, has_encoded
from dopsd.runtime.learner_group import learner_trainer
from dopsd.runtime.ledger import LEDGER_FILE, SKIPPED_FILE
from dopsd.runtime.options import check_options
from dopsd.runtime.placement import Role, Roles, resolve_roles, wait_for_resources
from dopsd.runtime.preflight import before_training
from dopsd.runtime.preview import draw_preview
from dopsd.runtime.prior import check_prior, with_prior
from dopsd.runtime.progress import Show
from dopsd.runtime.reader import BlockStream
from dopsd.runtime.run_log import (
    LORA_FILE,
    METRICS_FILE,
    MODULES,
    SUMMARY_FILE,
    TEACHER_FILE,
    TIMELINE_FILE,
    TRANSFORMERS,
    RunLog,
)
from dopsd.runtime.saver import REQUEST_FILE, newest_checkpoint
from dopsd.runtime.supervise import ANSWER_SECONDS, Supervisor, ask
from dopsd.runtime.trackers import FOLDER as TENSORBOARD
from dopsd.runtime.trackers import check_trackers, open_trackers
from dopsd.runtime.zero import preset_stage, read_preset

_FINAL = (SUMMARY_FILE, REPORT_FILE, REQUEST_FILE, *TRANSFORMERS.values())
"""What a run that goes on writes anew: of a folder of shards no old one may stay among the new."""
_OUTPUTS = (
    *(METRICS_FILE, TIMELINE_FILE, LORA_FILE, TEACHER_FILE, LEDGER_FILE, SKIPPED_FILE),
    *MODULES.values(),
    *(checkpoint.FOLDER, "debug", "preview", TENSORBOARD, "wandb", *_FINAL),
)


@dataclass
class Summary:
    """What a run leaves behind; ``summary.json`` in the run folder holds the same."""

    folder: str
    lora: str | None
    """None of a run that trained all weights."""
    sheet: str | None
    """None when no preview was asked for, or when it failed (see ``problems``)."""
    page: str | None
    """The run page; None when it could not be written."""
    steps: int
    seconds: float
    seconds_to_first_step: float
    max_policy_lag: int
    first_loss: float
    last_loss: float
    """Means over the first and last steps (``run_log.loss_steps``): a single step's loss is mostly
    its samples."""
    transformer: str | None = None
    """Folder of the trained transformer, of a run that trained all weights."""
    modules: str | None = None
    """What was trained beside the LoRA."""
    adapted: dict[str, int] = field(default_factory=dict)
    """Modules that the LoRA adapts, by target, and tensors that were trained whole."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last step."""
    problems: list[str] = field(default_factory=list)
    """What went wrong after training: nothing of it touches the LoRA."""


class RunCoordinator(Coordinator):
    """The coordinator of a whole run, with its plan and stream: the class behind the actor.

    ``roles`` have an encoder, or there are ``encoded`` contexts.
    """

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        manifest: Manifest,
        encoded: Encoded | None,
        restarts: int,
        claim: Claim,
    ) -> None:
        plan = plan_of(config, manifest)
        role = roles.encoder or Role("reader", 0, 0.0, 0.0)

        def open_stream(start: int, stop: int) -> BlockStream:
            # As far ahead as the policy lag can use, and one step more.
            ahead = plan.micro_batches_per_step * (config.max_policy_lag + 2)
            return encoded_stream(
                plan,
                start,
                stop,
                shards=config.shards,
                wanted=wanted(config),
                encoder_factory=TrainingEncoderFactory(config, role.device),
                encoded=encoded,
                workers=role.workers,
                num_cpus=role.cpus,
                num_gpus=role.gpus,
                ahead=max(4, ahead),
                start_s=config.deadline.start,
            )

        super().__init__(
            config,
            roles,
            open_stream,
            plan.step_size,
            RunLog(config.run.folder, open_trackers(config)),
            Identity(manifest.fingerprint, plan.key),
            restarts,
            claim,
        )


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
    adapted = TrainedSet(config, family).adapted(family.skeleton())
    if not resume:
        refuse_existing(config, replace)
    show("prepare", {"message": "starting Ray"})
    cluster = connect()
    roles = resolve_roles(config, cluster.get("GPU", 0.0))
    manifest = prepared(config, lambda status: show("prepare", status), renew=not resume)
    # Contexts that were encoded before need no encoder, which is known when all data is there.
    sure = dataclasses.replace(roles, encoder=None) if has_encoded(config) else roles
    wait_for_resources(sure.all(), ray.cluster_resources, config.deadline.start)
    # What a run may not go on with is refused before the base draws for it.
    drift = (lambda: _resumable(config, None)) if resume else (lambda: "")
    manifest = with_prior(config, manifest, roles.learner, show, drift)
    encoded = find_encoded(config, manifest, show)
    if encoded:
        roles = dataclasses.replace(roles, encoder=None)
    wait_for_resources(roles.all(), ray.cluster_resources, config.deadline.start)
    identity = Identity(manifest.fingerprint, plan_of(config, manifest).key)
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
    with scratch_folder as scratch, _claimed(config, resume) as claim:
        supervisor = Supervisor(
            config,
            lambda restarts: _launch_coordinator(
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
    if status["ended"] and status["step"] < config.learner.steps:
        stopped = StoppedError(f"stopped by SIGTERM after step {status['step']}")
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
        steps=status["step"],
        seconds=time.monotonic() - began,
        seconds_to_first_step=supervisor.first_step,
        max_policy_lag=config.max_policy_lag,
        first_loss=status["losses"][0],
        last_loss=status["losses"][1],
        adapted=adapted,
        last=status["latest"],
        problems=problems,
    )
    _write_summary(summary)
    if config.preview.samples:
        show("preview", {"message": f"{config.preview.samples} rows"})
        try:
            summary.sheet = draw_preview(config, manifest, roles.learner)
        except (DopsdError, OSError) as error:
            summary.problems.append(str(error))
    summary.seconds = time.monotonic() - began
    _write_page(summary)
    return summary


def _write_page(summary: Summary) -> None:
    """The run page, which shows the summary, and the summary, which names the page."""
    summary.page = storage.join(summary.folder, REPORT_FILE)
    _write_summary(summary)
    try:
        write_report(summary.folder)
    except Exception as error:  # a page is not worth a finished run
        summary.page = None
        summary.problems.append(f"run page: {' '.join(str(error).split())}")
        _write_summary(summary)


def _write_summary(summary: Summary) -> None:
    text = json.dumps(asdict(summary), indent=1) + "\n"
    storage.write_bytes(storage.join(summary.folder, SUMMARY_FILE), text.encode())


def _resumable(config: RunConfig, identity: Identity | None) -> str:
    """What the run goes on from, in words. Raises CheckpointError when there is nothing."""
    root = storage.join(config.run.folder, checkpoint.FOLDER)
    found, refused = newest_checkpoint(config, identity)
    if found is None:
        raise CheckpointError("; ".join(refused) or f"{root}: no checkpoint; nothing to resume")
    words = f"going on from step {found.step}"
    return f"{words}; refused: {'; '.join(refused)}" if refused else words


def _with_way_on(config: RunConfig, error: DopsdError) -> DopsdError:
    """The same error, saying how to go on when a checkpoint is there."""
    folder, steps = config.run.folder, []
    if isinstance(error, TakenOverError):
        return error
    with contextlib.suppress(OSError, StorageError):  # which may be why the run ended
        steps = checkpoint.complete_steps(storage.join(folder, checkpoint.FOLDER))
    if not steps:
        return error
    way = f"dopsd train --resume {shlex.quote(folder)}"
    return type(error)(f"{error}; step {steps[-1]} is saved, go on with: {way}")


def _launch_coordinator(
    config: RunConfig,
    roles: Roles,
    manifest: Manifest,
    encoded: Encoded | None,
    name: str,
    restarts: int,
    claim: Claim,
) -> Any:
    """The coordinator's actor, on this node: it writes into the run folder."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(RunCoordinator)
    return actor.options(
        name=name,
        num_cpus=0,
        max_concurrency=config.learner.workers + 8,
        scheduling_strategy=here,
    ).remote(config, roles, manifest, encoded, restarts, claim)


def _stop(config: RunConfig, coordinator: Any) -> list[str]:
    """End the coordinator and its actors; what went wrong is told, never raised."""
    limit = config.deadline.step + 3 * ANSWER_SECONDS  # a checkpoint may still be on its way
    try:
        problems: list[str] = ask(coordinator, "stop", limit=limit)
    except DopsdError as error:
        problems = [str(error)]
    ray.kill(coordinator)
    return problems


@contextlib.contextmanager
def _claimed(config: RunConfig, resume: bool) -> Iterator[Claim]:
    """The run folder, claimed, with the resolved config. Of an older run its outputs are taken away
    (not its shards), or only what a run that goes on has to write anew."""
    folder = config.run.folder
    claim = Claim.take(folder)
    try:
        there = storage.names(folder)
        for name in _FINAL if resume else _OUTPUTS:
            for part in {name, *part_names(name, there)}:
                storage.remove(storage.join(folder, part))
        storage.write_bytes(storage.join(folder, "config.yaml"), dump_config(config).encode())
        yield claim
    finally:
        claim.give_back()


def _variant(config: RunConfig) -> str:
    return "".join(f"{name} " for name, on in config.lora.variant.items() if on)


def lora_metadata(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    """What the exported file says of itself: base model, recipe, data fingerprint."""
    method, lora = config.method, config.lora
    objective: str = method.objective
    if objective == "off_policy":
        objective += f" off_policy_states={method.off_policy_states}"
    teacher = f"teacher={method.teacher} ema={method.ema_decay} "
    if objective == "sft":
        teacher = ""  # it has none
    trained = f"rank={lora.rank} alpha={lora.alpha} {_variant(config)}".rstrip()
    if config.adapters == "full":
        trained = f"adapters=full teacher_sync_every={method.teacher_sync_every}"
    elif config.adapters == "lora+modules":
        trained += f" modules={'+'.join(lora.modules_to_train)}"
    return {
        "dopsd.version": __version__,
        "dopsd.base": config.model.base,
        "dopsd.family": config.model.family,
        "dopsd.context": config.context.name,
        "dopsd.recipe": (
            f"{objective} K={method.steps} weighting={method.weighting} {teacher}"
            f"lr={config.learner.lr} steps={config.learner.steps} "
            f"global_batch={config.learner.global_batch} max_policy_lag={config.max_policy_lag} "
            f"{trained} seed={config.run.seed}"
        ),
        "dopsd.data": manifest.fingerprint,
    }
