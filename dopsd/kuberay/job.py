"""What `dopsd job` prints: a run, a library or a cluster, and what goes with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from dopsd import shown
from dopsd.config import RunConfig, dump_config
from dopsd.config.load import validated
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.kuberay import pods
from dopsd.kuberay.groups import Group, groups_of, pinned
from dopsd.kuberay.names import is_bucket, name_of
from dopsd.kuberay.network import network_policy
from dopsd.kuberay.pods import CONFIG_FILE, CONFIG_FOLDER, Manifest, Setting
from dopsd.kuberay.scheduler import Scheduler, queue_labels, scheduler_of, suspends
from dopsd.kuberay.sizes import library_roles, roles_of, sizes_of
from dopsd.kuberay.windows import Windows
from dopsd.models.lora.merge import MergedLora
from dopsd.plan import make_plan
from dopsd.ray_cluster.labels import told

Kind = Literal["rayjob", "rayjob-library", "raycluster"]
KINDS: tuple[Kind, ...] = ("rayjob", "rayjob-library", "raycluster")
_IMAGE = re.compile(r"[\w./:@-]{1,512}", re.ASCII)
_DAY = 86_400
_RETRIES = 3
"""New clusters, each of which goes on from S3."""
_SUBMISSIONS = 4
"""Of one cluster: a head that was lost comes back, and the run is submitted to it again."""
_SPOT_MINUTES = 3.0
"""Between two checkpoints at most, where a machine may go with 25 s of notice."""
_SPOT_RESTARTS = 100
"""Each machine that goes takes one of its workers' restarts."""


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    config: RunConfig
    image: str
    bucket: str
    """s3://BUCKET or s3://BUCKET/FOLDER, under which runs and shards lie."""
    kind: Kind = "rayjob"
    queue: str | None = None
    spot: bool = False
    gpus_of_a_pod: int = 4
    volume: bool = False
    """Models are read from the volume `dopsd-models`, which `dopsd fetch` filled."""
    scheduler: str | None = None
    """Whose the queue is: one of SCHEDULERS; without one Kueue's."""

    @property
    def library(self) -> bool:
        """Its workers are a library's, which come and go while it runs: from one of them on."""
        return self.kind == "rayjob-library"

    @property
    def carries_config(self) -> bool:
        return self.kind != "raycluster"

    @property
    def queueing(self) -> Scheduler | None:
        """Who decides when its pods start; Kubernetes' own scheduler has no queue. Raises
        ConfigError."""
        return scheduler_of(self.scheduler, self.queue)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of workers, by the labels that roles ask for; with roles as the run will have them. Who
        submits runs to a cluster that stays says himself what their roles ask for. Raises
        ConfigError."""
        roles = library_roles(self.config) if self.library else roles_of(self.config)
        named = tuple(map(_elastic, groups_of(roles, self.spot)))
        kept = pinned(named)
        if self.carries_config:
            return kept
        return tuple(replace(group, roles=own.roles) for group, own in zip(kept, named))

    @property
    def name(self) -> str:
        """Of everything; the run's, as Kubernetes takes names. Raises ConfigError for one that
        cannot be."""
        return name_of(self.config)


def _elastic(group: Group) -> Group:
    """The same; learners whose machines may be taken away start with one and go on with fewer."""
    if not group.spot:
        return group
    roles = (
        replace(role, min_workers=role.min_workers or 1) if role.name == "learner" else role
        for role in group.roles
    )
    return replace(group, roles=tuple(roles))


def documents(job: Job) -> list[Manifest]:
    """The objects, none of which shares a part with another. Raises ConfigError and ModelError in
    one line."""
    _check(job)
    config = in_cluster(job)
    planned = config
    if job.library:  # no encoder stays beside the workers
        planned = config.model_copy(deep=True)
        planned.data.context_cache = "require"
    plan = make_plan(planned)
    groups = job.groups
    labels = any(role.labels for group in groups for role in group.roles)
    sizes = sizes_of(config, plan, groups, job.gpus_of_a_pod, job.volume, job.library)
    windows = Windows.of(plan)
    setting = Setting(job.name, job.image, windows, job.volume, job.carries_config, job.library)
    cluster = {
        "rayVersion": version("ray"),  # the operator refuses token authentication without it
        "authOptions": {"mode": "token", "secretName": pods.TOKEN},
        **({"enableInTreeAutoscaling": True} if job.library else {}),
        "autoscalerOptions": pods.autoscaler(labels),
        "headGroupSpec": pods.head(setting, sizes.head, sizes.most),
        "workerGroupSpecs": [pods.workers(setting, size) for size in sizes.groups],
    }
    main = _cluster(job, setting, cluster)
    parts = [main, network_policy(setting), _disruption_budget(setting)]
    if job.carries_config:
        main = _ray_job(job, setting, cluster)
        parts = [_config_map(setting, config), main, *parts[1:]]
    copies: list[Manifest] = json.loads(json.dumps(parts))
    return copies


def in_cluster(job: Job) -> RunConfig:
    """The config as the run has it there: everything on S3, and gone on with whatever happens."""
    values: dict[str, Any] = job.config.model_dump(mode="json")
    run, data, root = values["run"], values["data"], job.bucket.rstrip("/")
    run |= {"folder": storage.join(root, "runs", job.name), "resume": "auto", "overwrite": False}
    if not (data["shards"] and storage.is_remote(data["shards"])):
        data["shards"] = storage.join(root, "shards", job.name)
    if data["source"] and not _is_everywhere(data["source"]):
        data["source"] = None  # the shards were prepared from it
    groups = job.groups
    taken = {role.name for group in groups if group.spot for role in group.roles}
    if taken:
        values["checkpoint"]["every_minutes"] = _SPOT_MINUTES
    # A library's workers come and go anyway.
    if taken - {"library", "learner"}:
        values["inference"]["max_restarts"] = _SPOT_RESTARTS
    if "learner" in taken:
        values["learner"]["min_workers"] = values["learner"]["min_workers"] or 1
    if len(groups) > 1:  # else every node has the labels that the config asks for
        for role in (role for group in groups for role in group.roles):
            values[role.name]["labels"] = dict(role.labels)
    return validated(values, "of the job")


def _is_everywhere(source: str) -> bool:
    return storage.is_remote(source) or source.startswith("shapes:")


def _check(job: Job) -> None:
    if job.library and suspends(job.queueing):
        raise ConfigError(
            f"--queue: {job.queue} with --kind {job.kind}, allowed: none (Kueue starts all pods or "
            "none, and a library begins with one of them)"
        )
    if job.library:
        _check_encoder(job)
    if job.library and job.config.source != "fused":
        raise ConfigError(
            f"source: {job.config.source} with --kind {job.kind}, allowed: fused (its pods are "
            "workers that each roll out and score for themselves)"
        )
    if not is_bucket(job.bucket):
        raise ConfigError(
            f"--bucket: {shown.value(job.bucket)}, allowed: s3://BUCKET or s3://BUCKET/FOLDER, "
            "without credentials"
        )
    if not _IMAGE.fullmatch(job.image) or "://" in job.image:
        raise ConfigError(f"--image: {shown.value(job.image)}, allowed: REGISTRY/NAME:TAG")
    if job.config.data.prior.prompts and not storage.is_remote(job.config.data.prior.prompts):
        raise ConfigError(
            f"data.prior.prompts: {job.config.data.prior.prompts}, allowed for a job: s3://"
        )
    for entry in job.config.model.merge:
        if not storage.is_remote(MergedLora.parse(entry).path):
            raise ConfigError(f"model.merge: {entry}, allowed for a job: s3://")
    if job.volume:
        for key in ("base", "vlm"):
            if storage.is_remote(getattr(job.config.model, key) or ""):
                raise ConfigError(
                    f"--volume: with model.{key} on S3, allowed: one of the two (the "
                    "volume is read-only, and its folder is where a node would keep its copy)"
                )
    prompts = job.config.preview.prompts
    if isinstance(prompts, str) and not storage.is_remote(prompts):
        raise ConfigError(f"preview.prompts: {prompts}, allowed for a job: a list, or s3://")
    init = job.config.lora.init
    if init and not storage.is_remote(init):
        raise ConfigError(f"lora.init: {init}, allowed for a job: s3://")


def _check_encoder(job: Job) -> None:
    """A library encodes on its workers' nodes, before they are there. Raises ConfigError."""
    (group,) = job.groups
    for role in roles_of(job.config):
        if role.name == "encoder" and not group.holds(role):
            raise ConfigError(
                f"encoder.labels: {told(role.labels)} with --kind {job.kind}, allowed: those of "
                f"the learners, whose nodes it takes: {group}"
            )


def _metadata(job: Job, setting: Setting) -> Manifest:
    labels = setting.labels | queue_labels(job.queueing, job.queue)
    return {"name": setting.name, "labels": labels}


def _cluster(job: Job, setting: Setting, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(job, setting),
        "spec": spec,
    }


def _ray_job(job: Job, setting: Setting, cluster: Manifest) -> Manifest:
    config = f"{CONFIG_FOLDER}/{CONFIG_FILE}"
    spec: Manifest = {
        "entrypoint": f"dopsd {'library train' if job.library else 'train'} {config}",
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": _SUBMISSIONS},
        "submitterPodTemplate": pods.submitter(setting),
        "backoffLimit": _RETRIES,
        "activeDeadlineSeconds": 7 * _DAY,
        **_ending(job),
        "rayClusterSpec": cluster,
    }
    if job.queueing is None:
        # One pod that is never scheduled must not hold the others' GPUs. In a queue it may wait.
        spec["preRunningDeadlineSeconds"] = 3600
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(job, setting),
        "spec": spec,
    }


def _ending(job: Job) -> Manifest:
    """GPUs go back at once; after a failure the head stays a day, with its logs.

    Kueue may suspend a job, and KubeRay lets it suspend only what it shuts down itself; where Ray
    scales the workers, KubeRay takes no rule that deletes them alone. Then the logs in the run
    folder are all that stays.
    """
    if suspends(job.queueing) or job.library:
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 60}

    def rule(policy: str, seconds: int, **condition: str) -> Manifest:
        return {"policy": policy, "condition": {**condition, "ttlSeconds": seconds}}

    return {
        "deletionStrategy": {
            "deletionRules": [
                rule("DeleteWorkers", 0, jobStatus="SUCCEEDED"),
                rule("DeleteCluster", 600, jobStatus="SUCCEEDED"),
                rule("DeleteWorkers", 60, jobStatus="FAILED"),
                rule("DeleteCluster", _DAY, jobStatus="FAILED"),
                # It never got as far as a job of Ray.
                rule("DeleteWorkers", 60, jobDeploymentStatus="Failed"),
                rule("DeleteCluster", _DAY, jobDeploymentStatus="Failed"),
            ]
        }
    }


def _config_map(setting: Setting, config: RunConfig) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{setting.name}-run", "labels": setting.labels},
        "data": {CONFIG_FILE: dump_config(config)},
    }


def _disruption_budget(setting: Setting) -> Manifest:
    """The head is never evicted: the run would end with it, and begin again from its newest
    checkpoint."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"{setting.name}-head", "labels": setting.labels},
        "spec": {
            "maxUnavailable": 0,
            "selector": {"matchLabels": {**setting.labels, "ray.io/node-type": "head"}},
        },
    }
