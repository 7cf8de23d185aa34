"""The pods of a cluster: what every container is allowed, given and asked for.

Each of them meets Kubernetes' `restricted` Pod Security Standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dopsd.kuberay import machines
from dopsd.kuberay.sizes import GroupSize, PodSize
from dopsd.kuberay.windows import Windows
from dopsd.ray_cluster.to_come import MOST

Manifest = dict[str, Any]

CREDENTIALS, TOKEN, ACCOUNT, MODELS = (
    "dopsd-credentials",
    "dopsd-ray-token",
    "dopsd",
    "dopsd-models",
)
"""Names of what is made once (cluster/once.yaml, cluster/README.md): Secrets, service account, and
volume of models."""
CONFIG_FOLDER, CONFIG_FILE, CACHE = "/etc/dopsd", "run.yaml", "/cache/huggingface"
HEALTH = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "20",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    "RAY_grpc_keepalive_timeout_ms": "90000",
}
"""A link that is away for a while is no lost host (docs/faults.md says the same)."""
PORTS = {"metrics": 8080}
HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    **PORTS,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}


@dataclass(frozen=True)
class Setting:
    """What all pods of a cluster share."""

    name: str
    image: str
    windows: Windows
    offline: bool
    """Models lie on the volume `dopsd-models`, and nobody asks the hub."""
    configured: bool
    """The run's config is mounted."""
    scaled: bool = False
    """Ray's autoscaler, a sidecar of the head, asks Kubernetes for workers."""

    @property
    def labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": "dopsd", "app.kubernetes.io/instance": self.name}


def pod_security() -> Manifest:
    """The image's user: nothing needs root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 100,
        "fsGroup": 100,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def head(setting: Setting, size: PodSize, most: tuple[int, int]) -> Manifest:
    """The group that takes no work: Ray's own services and what asks for 0 CPUs (the driver, the
    coordinator, Ray Train's controller).

    ``most``: CPUs and GPUs of all workers, which runs on the cluster may count on.
    """
    pod = _pod(setting, size, "ray-head", HEAD_PORTS)
    pod["priorityClassName"] = "dopsd-head"
    pod["automountServiceAccountToken"] = setting.scaled
    cpus, gpus = most
    pod["containers"][0]["env"].append({"name": MOST, "value": f"CPU={cpus},GPU={gpus}"})
    return {
        "rayStartParams": {"num-cpus": "0"},
        "template": {"metadata": _metadata(setting, stays=True), "spec": pod},
    }


def workers(setting: Setting, size: GroupSize) -> Manifest:
    """A group of workers: its pods are equally large, since Ray may place the roles in any order.
    KubeRay tells Ray of its labels; pods land where they are true."""
    group = size.group
    pod = _pod(setting, size.pod, "ray-worker", PORTS)
    pod["priorityClassName"] = "dopsd-worker"
    if tolerations := machines.tolerations(group.labels, size.pod.gpus):
        pod["tolerations"] = tolerations
    if affinity := machines.affinity(group.labels):
        pod["affinity"] = affinity
    fewest = size.fewest if setting.scaled or group.spot else size.pods
    return {
        "groupName": group.name,
        "replicas": fewest if setting.scaled else size.pods,
        "minReplicas": fewest,
        "maxReplicas": size.pods,
        **({"labels": dict(group.labels)} if group.labels else {}),
        "rayStartParams": {},
        "template": {"metadata": _metadata(setting, stays=not group.spot), "spec": pod},
    }


def submitter(setting: Setting) -> Manifest:
    """Submits the run and follows it. The operator's own template has no security context, and is
    refused where a namespace enforces one."""
    container = {
        "name": "submitter",
        "image": setting.image,
        "securityContext": container_security(),
        "resources": {
            "requests": {"cpu": "200m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
            "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
        },
    }
    return {
        "metadata": {"labels": setting.labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": pod_security(),
            "containers": [container],
        },
    }


def autoscaler(labels: bool) -> Manifest:
    """Of its sidecar, which a library has and others may switch on. Only its second version brings
    nodes by the ``labels`` that roles ask for."""
    return {
        **({"version": "v2"} if labels else {}),
        "securityContext": container_security(),
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"cpu": "500m", "memory": "512Mi"},
        },
    }


def _pod(setting: Setting, size: PodSize, name: str, ports: dict[str, int]) -> Manifest:
    amounts = {
        "cpu": str(size.cpus),
        "memory": f"{size.memory}Gi",
        "ephemeral-storage": f"{size.disk}Gi",
    }
    if size.gpus:
        amounts["nvidia.com/gpu"] = str(size.gpus)
    volumes = _volumes(setting, size)
    container = {
        "name": name,
        "image": setting.image,
        "securityContext": container_security(),
        # Absent where the service account brings an identity of the cloud.
        "envFrom": [{"secretRef": {"name": CREDENTIALS, "optional": True}}],
        "env": [{"name": key, "value": value} for key, value in _environment(setting).items()],
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        # Ray reads its CPUs and GPUs from the limits.
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "volumeMounts": [mount for mount, _ in volumes],
    }
    return {
        "terminationGracePeriodSeconds": setting.windows.grace,
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [volume for _, volume in volumes],
    }


def _environment(setting: Setting) -> dict[str, str]:
    windows = setting.windows
    return {
        "HF_HOME": CACHE,
        **({"HF_HUB_OFFLINE": "1"} if setting.offline else {}),
        "RAY_USAGE_STATS_ENABLED": "0",
        **HEALTH,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(windows.drain),
        # Ray kills the driver of a job that is stopped after 3 s otherwise.
        "RAY_JOB_STOP_WAIT_TIME_S": str(windows.stop),
    }


def _volumes(setting: Setting, size: PodSize) -> list[tuple[Manifest, Manifest]]:
    """(mount, volume) of each."""
    shm = {"medium": "Memory", "sizeLimit": f"{size.shm}Gi"}
    found = [
        _volume("shared-memory", "/dev/shm", emptyDir=shm),
        _volume("ray", "/tmp/ray", emptyDir={"sizeLimit": f"{size.scratch}Gi"}),
    ]
    if setting.offline:
        claim = {"claimName": MODELS, "readOnly": True}
        mount, volume = _volume("cache", "/cache", persistentVolumeClaim=claim)
        found.append((mount | {"readOnly": True}, volume))
    else:
        limit = {"sizeLimit": f"{size.cache}Gi"} if size.cache else {}
        found.append(_volume("cache", "/cache", emptyDir=limit))
    if setting.configured:
        mount, volume = _volume("run", CONFIG_FOLDER, configMap={"name": f"{setting.name}-run"})
        found.append((mount | {"readOnly": True}, volume))
    return found


def _volume(name: str, path: str, **source: Manifest) -> tuple[Manifest, Manifest]:
    return {"name": name, "mountPath": path}, {"name": name, **source}


def _metadata(setting: Setting, stays: bool) -> Manifest:
    metadata: Manifest = {"labels": setting.labels}
    if stays:  # a node that is tidied up costs minutes of every GPU
        metadata["annotations"] = {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
    return metadata
