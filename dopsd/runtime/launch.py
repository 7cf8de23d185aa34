"""`dopsd train`: data, coordinator, Ray Train, exports, in the order they happen."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd import __version__, storage
from dopsd.config import RunConfig, dump_config
from dopsd.contexts import EncoderFactory
from dopsd.data.manifest import Manifest
from dopsd.data.stream import encoded_stream
from dopsd.errors import ConfigError, LateError, WorkerError
from dopsd.models import resolve_vlm
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.runtime.cluster import NAMESPACE, connect
from dopsd.runtime.coordinator import BlockStream, Coordinator
from dopsd.runtime.data import plan_of, prepared, with_absolute_paths
from dopsd.runtime.placement import Roles, resolve_roles, wait_for_resources
from dopsd.runtime.pool import own_message
from dopsd.runtime.preview import draw_preview
from dopsd.runtime.run_log import RunLog
from dopsd.runtime.train_worker import train_worker
from dopsd.runtime.zero import read_preset

Show = Callable[[str, dict[str, Any]], None]
"""Called with a phase (`prepare`, `start`, `train`, `preview`) and its status."""

LORA_FILE, TEACHER_FILE = "lora.safetensors", "teacher_lora.safetensors"
SUMMARY_FILE = "summary.json"
_OUTPUTS = ("metrics.jsonl", "debug", "preview", "ray_train")


@dataclass
class Summary:
    """What a run leaves behind; ``summary.json`` in the run folder holds the same."""

    folder: str
    lora: str
    sheet: str | None
    steps: int
    seconds: float
    seconds_to_first_step: float
    max_policy_lag: int
    last: dict[str, Any] = field(default_factory=dict)


class RunCoordinator(Coordinator):
    """The coordinator of a whole run, with its plan and stream: the class behind the actor."""

    def __init__(self, config: RunConfig, roles: Roles, manifest: Manifest) -> None:
        plan = plan_of(config, manifest)

        def open_stream(start: int, stop: int) -> BlockStream:
            # As far ahead as the policy lag can use, and one step more.
            ahead = plan.micro_batches_per_step * (config.max_policy_lag + 2)
            return encoded_stream(
                plan,
                start,
                stop,
                shards=config.shards,
                caption_keys=config.data.caption_keys,
                encoder_factory=EncoderFactory(config, roles.encoder.device),
                workers=roles.encoder.workers,
                num_cpus=roles.encoder.cpus,
                num_gpus=roles.encoder.gpus,
                ahead=max(4, ahead),
            )

        super().__init__(
            config,
            roles,
            open_stream,
            plan.step_size,
            RunLog(config.run.folder),
        )


def train(config: RunConfig, show: Show) -> Summary:
    """Run ``config`` to its end. Raises a DopsdError with one clear line when it cannot."""
    began = time.monotonic()
    preset = read_preset(config.learner.deepspeed)
    resolve_vlm(config.model.base, config.model.vlm)
    _claim_folder(config)
    config = with_absolute_paths(config)
    cluster = connect()
    roles = resolve_roles(config, cluster.get("GPU", 0.0))
    show("prepare", {"cluster": cluster})
    manifest = prepared(config, lambda status: show("prepare", status))
    wait_for_resources(roles, ray.cluster_resources, config.deadline.start)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = f"coordinator-{uuid.uuid4().hex[:8]}"
    actor: Any = ray.remote(RunCoordinator)
    coordinator = actor.options(
        name=name,
        num_cpus=0,
        max_concurrency=config.learner.workers + 8,
        scheduling_strategy=here,
    ).remote(config, roles, manifest)
    ray.get(coordinator.start.remote(), timeout=config.deadline.start)
    arguments = {
        "config": config.model_dump(mode="json"),
        "preset": preset,
        "coordinator": name,
        "namespace": NAMESPACE,
        "lora": lora_metadata(config, manifest),
    }
    try:
        first_step = _fit(config, roles, coordinator, arguments, show, began)
        status = ray.get(coordinator.status.remote(), timeout=60)
        outputs = ray.get(coordinator.outputs.remote(), timeout=config.deadline.step)
    finally:
        _stop(coordinator)
    folder = config.run.folder
    for adapter, file in ((STUDENT, LORA_FILE), (TEACHER, TEACHER_FILE)):
        storage.write_bytes(storage.join(folder, file), outputs[adapter])
    sheet = None
    if config.preview.samples:
        show("preview", {"samples": config.preview.samples})
        sheet = draw_preview(config, manifest, roles.learner, outputs[STUDENT], outputs[TEACHER])
    summary = Summary(
        folder=folder,
        lora=storage.join(folder, LORA_FILE),
        sheet=sheet,
        steps=status["step"],
        seconds=time.monotonic() - began,
        seconds_to_first_step=first_step,
        max_policy_lag=config.max_policy_lag,
        last=status["latest"],
    )
    text = json.dumps(asdict(summary), indent=1) + "\n"
    storage.write_bytes(storage.join(folder, SUMMARY_FILE), text.encode())
    return summary


def _fit(
    config: RunConfig,
    roles: Roles,
    coordinator: Any,
    arguments: dict[str, Any],
    show: Show,
    began: float,
) -> float:
    """Run the learners and show progress; returns seconds from the command to the first step."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if roles.learner.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=roles.learner.workers,
            use_gpu=bool(roles.learner.gpus),
            resources_per_worker={
                "CPU": roles.learner.cpus,
                **({"GPU": roles.learner.gpus} if roles.learner.gpus else {}),
            },
        ),
        run_config=TrainRunConfig(
            name="ray_train",
            storage_path=config.run.folder,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    problem: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    first_step = 0.0
    moved, last_step = time.monotonic(), 0
    while True:
        thread.join(timeout=0.5)
        status = ray.get(coordinator.status.remote(), timeout=60)
        show("train" if status["step"] else "start", status)
        if status["step"] != last_step:
            moved, last_step = time.monotonic(), status["step"]
        if status["step"] and not first_step:
            first_step = time.monotonic() - began
        error = ray.get(coordinator.error.remote(), timeout=60)
        if error is not None:
            raise error
        if not thread.is_alive():
            break
        limit = config.deadline.step if last_step else config.deadline.start
        # The coordinator's own deadlines speak first; this one catches learners that never ask.
        if time.monotonic() - moved > limit + 60:
            raise LateError(
                f"learner is late: no step for {limit + 60:g} s after step {last_step}; "
                + "; ".join(f"{role}: {doing}" for role, doing in status["roles"].items())
            )
    if problem:
        raise WorkerError(f"learner: {_learner_message(problem[0])}")
    return first_step


def _learner_message(error: BaseException) -> str:
    """The first failed learner's own message out of Ray Train's report."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        return f"rank {rank}: {own_message(failure)}"
    return own_message(error)


def _stop(coordinator: Any) -> None:
    try:
        ray.get(coordinator.stop.remote(), timeout=60)
    finally:
        ray.kill(coordinator)


def _claim_folder(config: RunConfig) -> None:
    """A run never mixes with another: an existing run is refused, or replaced when asked."""
    folder = config.run.folder
    resolved = storage.join(folder, "config.yaml")
    if storage.exists(resolved):
        if not config.run.overwrite:
            raise ConfigError(
                f"run.folder: {folder} holds a run already; allowed: another folder, or "
                "run.overwrite=true to replace it"
            )
        for name in (*_OUTPUTS, LORA_FILE, TEACHER_FILE, SUMMARY_FILE):
            storage.remove(storage.join(folder, name))
    storage.make_folder(folder)
    storage.write_bytes(resolved, dump_config(config).encode())


def lora_metadata(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    """What the exported file says of itself: base model, recipe, data fingerprint."""
    method, lora = config.method, config.lora
    return {
        "dopsd.version": __version__,
        "dopsd.base": config.model.base,
        "dopsd.family": config.model.family,
        "dopsd.context": config.context.name,
        "dopsd.recipe": (
            f"dopsd K={method.steps} weighting={method.weighting} ema={method.ema_decay} "
            f"lr={config.learner.lr} steps={config.learner.steps} "
            f"global_batch={config.learner.global_batch} max_policy_lag={config.max_policy_lag} "
            f"rank={lora.rank} alpha={lora.alpha} seed={config.run.seed}"
        ),
        "dopsd.data": manifest.fingerprint,
    }
