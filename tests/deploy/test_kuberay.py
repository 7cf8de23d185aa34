"""`dopsd job`: what it prints passes KubeRay's schemas, Kubernetes' policies and Ray's own sums."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from dopsd.cli.main import main
from dopsd.config import load_config, parse_config
from dopsd.kuberay import Job, documents
from dopsd.kuberay.job import in_cluster
from dopsd.kuberay.pods import HEALTH
from dopsd.kuberay.sizes import GIB, library_roles, roles_of, sizes_of
from dopsd.kuberay.windows import Windows
from dopsd.library.catalogue.recipe import check_library
from dopsd.plan import make_plan
from dopsd.ray_cluster.packing import Node, place
from dopsd.ray_cluster.to_come import MOST, most_resources
from tests.deploy.crd import UniqueKeyLoader, errors, load_schemas
from tests.deploy.policy import container_violations, violations
from tests.helpers.paths import ROOT

IMAGE, BUCKET = "registry.example/dopsd:1", "s3://bucket"
CHOICES = ("queue", "spot", "volume")
VARIANTS = {
    "-".join([kind, *(name for name, chosen in zip(CHOICES, choice) if chosen)]): (kind, choice)
    for kind in ("rayjob", "raycluster")
    for choice in itertools.product((False, True), repeat=len(CHOICES))
}
VOLCANO = ("rayjob", "raycluster", "rayjob-library")
VARIANTS |= {
    "rayjob-library": ("rayjob-library", (False, False, False)),
    "rayjob-library-spot-volume": ("rayjob-library", (False, True, True)),
}


def job_of(variant: str = "rayjob", recipe: str = "z_image_turbo_lora", **options: Any) -> Job:
    kind, (queue, spot, volume) = VARIANTS[variant]
    recipe = "z_image_turbo_library" if kind == "rayjob-library" else recipe
    config = load_config(recipe, options.pop("overrides", ["run.name=my-concept"]))
    name = "gpus" if queue else None
    return Job(config, IMAGE, BUCKET, kind, name, spot, volume=volume, **options)


def printed(job: Job) -> dict[str, Any]:
    """Its objects, by kind."""
    return {document["kind"]: document for document in documents(job)}


def cluster_of(objects: dict[str, Any]) -> Any:
    if "RayCluster" in objects:
        return objects["RayCluster"]["spec"]
    return objects["RayJob"]["spec"]["rayClusterSpec"]


def templates(objects: dict[str, Any]) -> list[Any]:
    """Of every pod: head, workers, submitter."""
    cluster = cluster_of(objects)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    found = [group["template"] for group in groups]
    if "RayJob" in objects:
        found.append(objects["RayJob"]["spec"]["submitterPodTemplate"])
    return found


def ray_containers(objects: dict[str, Any]) -> list[Any]:
    return [template["spec"]["containers"][0] for template in templates(objects)[:2]]


def environment(container: Any) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.fixture(scope="module")
def schemas() -> list[Any]:
    folders = os.environ.get("KUBERAY_CRDS")
    if not folders:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    return [load_schemas(Path(folder)) for folder in folders.split(os.pathsep)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"managedBy": "nobody"}, "managedBy: the managedBy field value must be either "),
        ({"deletionStrategy": {}}, "deletionStrategy: deletionStrategy requires either BOTH"),
        (
            {"deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}, "deletionRules": []}},
            "deletionStrategy: legacy policies (onSuccess/onFailure) and deletionRules cannot",
        ),
    ],
)
def test_rules_of_the_crds_are_asked(change: Any, said: str, schemas: list[Any]) -> None:
    job = printed(job_of())["RayJob"]
    job["spec"] |= change
    for version in schemas:
        found = errors(job, version)
        assert any(line.startswith(f"$.spec.{said}") for line in found), found


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_passes_the_crds(variant: str, schemas: list[Any]) -> None:
    objects = printed(job_of(variant))
    main_object = objects.get("RayJob") or objects["RayCluster"]
    for each in schemas:
        assert errors(main_object, each) == []


@pytest.mark.parametrize("queue", [None, "gpus"])
@pytest.mark.parametrize("kind", VOLCANO)
def test_volcano_takes_all_pods_or_none(kind: str, queue: str | None, schemas: list[Any]) -> None:
    job = replace(job_of(kind), scheduler="volcano", queue=queue)
    objects, plain = printed(job), printed(job_of(kind))
    main_object = objects.get("RayJob") or objects["RayCluster"]
    for each in schemas:
        assert errors(main_object, each) == []
    labels = main_object["metadata"]["labels"]
    assert labels["ray.io/scheduler-name"] == "volcano"
    assert labels.get("volcano.sh/queue-name") == queue
    # It would be the head's too, whose own is higher.
    assert "ray.io/priority-class-name" not in labels
    assert "kueue.x-k8s.io/queue-name" not in labels
    # It waits for its turn without having been suspended, for as long as the queue is.
    spec = main_object["spec"]
    assert "preRunningDeadlineSeconds" not in spec
    original = (plain.get("RayJob") or plain["RayCluster"])["spec"]
    assert spec == {k: v for k, v in original.items() if k != "preRunningDeadlineSeconds"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_is_restricted(variant: str) -> None:
    objects = printed(job_of(variant))
    for template in templates(objects):
        pod = template["spec"]
        assert violations(pod) == []
        scales = variant.startswith("rayjob-library") and template is templates(objects)[0]
        assert pod["automountServiceAccountToken"] is scales
        for container in pod["containers"]:
            asked, most = (container["resources"][key] for key in ("requests", "limits"))
            assert {"cpu", "memory", "ephemeral-storage"} <= asked.keys() & most.keys()
    sidecar = cluster_of(objects)["autoscalerOptions"]["securityContext"]
    own = templates(objects)[0]["spec"]["securityContext"]
    assert container_violations(own | sidecar) == []


def test_the_policy_checker_refuses_what_is_not() -> None:
    pod = {"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {}}]}
    assert violations(pod) == [
        "volume v: ['hostPath']",
        "c: may be root",
        "c: may gain privileges",
        "c: keeps capabilities",
        "c: no seccomp profile",
    ]


@pytest.mark.parametrize("recipe", ["z_image_turbo_lora", "z_image_turbo_full", "shapes"])
def test_windows_are_in_order(recipe: str) -> None:
    job = job_of(recipe=recipe)
    objects = printed(job)
    plan = make_plan(in_cluster(job))
    for template in templates(objects)[:2]:
        values = environment(template["spec"]["containers"][0])
        drain = int(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        stop = int(values["RAY_JOB_STOP_WAIT_TIME_S"])
        assert plan.shipped.seconds < drain < template["spec"]["terminationGracePeriodSeconds"]
        assert stop >= 300 and drain <= stop
        assert drain == Windows.of(plan).drain <= 900


def test_health_variables_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    said = dict(re.findall(r"\b(RAY_(?:health|gcs|grpc)\w+)=(\d+)", page))
    assert said == HEALTH
    for container in ray_containers(printed(job_of())):
        assert environment(container).items() >= HEALTH.items()


@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize("recipe", ["z_image_turbo_lora", "z_image_turbo_full"])
def test_ray_puts_its_store_into_memory(recipe, gpus, monkeypatch) -> None:
    """By Ray's own two functions, with the numbers of the pods."""
    from ray._private import services, utils

    job = job_of(recipe=recipe)
    config = in_cluster(job)
    sizes = sizes_of(config, make_plan(config), job.groups, gpus, False)
    for size in (sizes.head, sizes.groups[0].pod):
        memory = size.memory * GIB
        monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda size=size: size.shm * GIB)
        monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda memory=memory: memory)
        store = utils.resolve_object_store_memory(memory)
        folder, *_ = services.determine_plasma_store_config(store, "/tmp")
        assert folder == "/dev/shm" and size.shm < size.memory / 2


@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize(
    "recipe", ["z_image_turbo_lora", "z_image_turbo_lora_fused", "flux2_klein_4b_edit_lora"]
)
def test_every_role_finds_a_place_in_any_order(recipe: str, gpus: int) -> None:
    job = job_of(recipe=recipe, gpus_of_a_pod=gpus)
    (group,) = cluster_of(printed(job))["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == gpus
    nodes = [Node(str(n), float(limits["cpu"]), gpus) for n in range(group["replicas"])]
    for order in itertools.permutations(roles_of(job.config)):
        _, left = place(order, nodes)
        assert max(node.cpus for node in left) >= 1, "Ray Data reads with whole CPUs"


def test_the_config_goes_along() -> None:
    overrides = ["run.name=My Concept", 'lora.targets=[to_q, "to_k"]', "data.source=my-images"]
    objects = printed(job_of(overrides=overrides))
    assert objects["RayJob"]["metadata"]["name"] == "my-concept"
    config = parse_config(objects["ConfigMap"]["data"]["run.yaml"], "run.yaml")
    assert config.run.folder == "s3://bucket/runs/my-concept" and config.run.resume == "auto"
    assert config.shards == "s3://bucket/shards/my-concept" and config.data.source is None
    assert config.lora.targets == ["to_q", "to_k"]
    assert objects["RayJob"]["spec"]["entrypoint"] == "dopsd train /etc/dopsd/run.yaml"
    pod = templates(objects)[0]["spec"]
    (volume,) = (v for v in pod["volumes"] if "configMap" in v)
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert {"name": volume["name"], "mountPath": "/etc/dopsd", "readOnly": True} in pod[
        "containers"
    ][0]["volumeMounts"]


def test_a_lost_head_and_a_lost_cluster_go_on_by_themselves() -> None:
    spec = printed(job_of())["RayJob"]["spec"]
    assert spec["backoffLimit"] >= 1 and spec["submitterConfig"]["backoffLimit"] >= 1
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


def test_gpus_go_back_at_once_and_logs_stay_a_day() -> None:
    rules = printed(job_of())["RayJob"]["spec"]["deletionStrategy"]["deletionRules"]
    found = {}
    for rule in rules:
        condition = dict(rule["condition"])
        seconds = condition.pop("ttlSeconds")
        assert len(condition) == 1, "KubeRay takes one of both"
        found[rule["policy"], *condition.values()] = seconds
    for ending in ("SUCCEEDED", "FAILED", "Failed"):
        assert found["DeleteWorkers", ending] <= 60
    assert found["DeleteCluster", "FAILED"] == found["DeleteCluster", "Failed"] == 86_400


def test_kueue_may_suspend_what_it_queues() -> None:
    job = printed(job_of("rayjob-queue"))["RayJob"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    # KubeRay's validation: a job that may be suspended shuts down itself, and has no rules then.
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in job["spec"]
    plain = printed(job_of())["RayJob"]["metadata"]["labels"]
    assert "kueue.x-k8s.io/queue-name" not in plain


@pytest.mark.parametrize("variant", ["rayjob", "rayjob-spot", "raycluster", "rayjob-library"])
def test_runs_are_told_what_the_worker_groups_may_grow_to(variant: str, monkeypatch) -> None:
    cluster = cluster_of(printed(job_of(variant)))
    values = environment(cluster["headGroupSpec"]["template"]["spec"]["containers"][0])
    monkeypatch.setenv(MOST, values[MOST])
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert most_resources() == {
        "CPU": group["maxReplicas"] * float(limits["cpu"]),
        "GPU": group["maxReplicas"] * float(limits["nvidia.com/gpu"]),
    }


def test_spot_machines_are_asked_for_and_left_in_time() -> None:
    objects = printed(job_of("rayjob-spot"))
    head, workers, _ = templates(objects)
    assert "affinity" not in head["spec"], "the head stays where it is"
    assert "annotations" in head["metadata"] and "annotations" not in workers["metadata"]
    affinity = workers["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {"karpenter.sh/capacity-type", "cloud.google.com/gke-spot"} <= {
        term["matchExpressions"][0]["key"] for term in terms
    }
    config = parse_config(objects["ConfigMap"]["data"]["run.yaml"], "run.yaml")
    assert config.learner.min_workers == 1 and config.checkpoint.every_minutes == 3
    (group,) = cluster_of(objects)["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] == group["maxReplicas"]


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_library_shrinks_to_one_pod_and_grows_to_all_its_workers(gpus: int) -> None:
    objects = printed(job_of("rayjob-library-spot-volume", gpus_of_a_pod=gpus))
    cluster, spec = cluster_of(objects), objects["RayJob"]["spec"]
    config = parse_config(objects["ConfigMap"]["data"]["run.yaml"], "run.yaml")
    assert spec["entrypoint"] == "dopsd library train /etc/dopsd/run.yaml"
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (1, 1)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    nodes = [Node(str(n), float(limits["cpu"]), gpus) for n in range(group["maxReplicas"])]
    (role,) = library_roles(config)
    assert (role.workers, role.needed) == (config.library.workers, 1) == (64, 1)
    place([role], nodes)
    with pytest.raises(ValueError, match="of 64: needs 4 CPU and 1 GPU"):
        place([role], nodes[1:])
    # KubeRay refuses rules that delete workers alone beside its autoscaler.
    assert spec["shutdownAfterJobFinishes"] is True and "deletionStrategy" not in spec
    check_library(config)
    assert config.checkpoint.every_minutes == 3 and config.shards == "s3://bucket/shards/my-concept"
    assert group["template"]["spec"]["affinity"], "spot machines"
    ports = [
        port["port"]
        for rule in objects["NetworkPolicy"]["spec"]["egress"]
        for port in rule.get("ports", [])
    ]
    assert 6443 in ports, "the autoscaler asks Kubernetes for pods"
    assert "enableInTreeAutoscaling" not in cluster_of(printed(job_of("rayjob-spot")))


def test_a_library_needs_memory_for_the_workers_of_a_pod() -> None:
    def memory(gpus: int) -> int:
        job = job_of("rayjob-library")
        config = in_cluster(job)
        sizes = sizes_of(config, make_plan(config), job.groups, gpus, True, library=True)
        return sizes.groups[0].pod.memory

    assert memory(1) <= memory(4) <= 4 * memory(1)


@pytest.mark.parametrize("variant", ["rayjob", "raycluster"])
def test_identity_without_keys(variant: str) -> None:
    objects = printed(job_of(variant))
    once = list(yaml.safe_load_all((ROOT / "cluster" / "once.yaml").read_text()))
    names = {(document["kind"], document["metadata"]["name"]) for document in once}
    for template in templates(objects)[:2]:
        pod = template["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        assert ("PriorityClass", pod["priorityClassName"]) in names
        (source,) = pod["containers"][0]["envFrom"]
        assert source["secretRef"]["optional"] is True
    assert "AWS_" not in str(objects)


def test_network_and_disruption_select_the_pods() -> None:
    objects = printed(job_of())
    labels = [template["metadata"]["labels"] for template in templates(objects)]
    policy = objects["NetworkPolicy"]["spec"]
    for each in labels:
        assert policy["podSelector"]["matchLabels"].items() <= each.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule.get("from") for rule in policy["ingress"]), "nobody else comes in"
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 0
    selected = dict(budget["selector"]["matchLabels"])
    assert selected.pop("ray.io/node-type") == "head"  # KubeRay's own label
    assert selected.items() <= labels[0].items()


def test_models_from_a_volume_ask_no_hub() -> None:
    objects = printed(job_of("rayjob-volume"))
    for template in templates(objects)[:2]:
        pod = template["spec"]
        assert environment(pod["containers"][0])["HF_HUB_OFFLINE"] == "1"
        (claim,) = (v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVol" in str(v))
        assert claim == {"claimName": "dopsd-models", "readOnly": True}
    for container in ray_containers(printed(job_of())):
        assert "HF_HUB_OFFLINE" not in environment(container)


def test_on_cpus() -> None:
    job = job_of(recipe="shapes", overrides=["run.name=demo", "device=cpu"])
    (group,) = cluster_of(printed(job))["workerGroupSpecs"]
    assert group["groupName"] == "cpu" and "nvidia" not in str(group)


def test_the_command_prints_what_reads_back(capsys) -> None:
    words = ["job", "z_image_turbo_lora", "run.name=my-concept", "--image", IMAGE]
    assert main([*words, "--bucket", BUCKET]) == 0
    text = capsys.readouterr().out
    assert list(yaml.load_all(text, UniqueKeyLoader)) == documents(job_of())
    assert "  run.yaml: |\n    run:\n      name: my-concept\n" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--image: missing"),
        (["--image", "a b", "--bucket", BUCKET], "--image: 'a b', allowed: REGISTRY/NAME:TAG"),
        (["--image", "i"], "--bucket: missing"),
        (["--image", "i", "--bucket", "runs"], "--bucket: 'runs', allowed: s3://BUCKET"),
        (["--image", "i", "--bucket", "s3://a/../c"], "--bucket: 's3://a/../c', allowed: s3://"),
        (["--image", "i", "--bucket", "s3://b\nx: y"], "--bucket: "),
        (["--image", "i", "--bucket", "s3://KEY:HIDE@b/x"], "--bucket: "),
        (["--image", "i", "--bucket", "s3://"], "--bucket: 's3://', allowed: s3://BUCKET"),
        (["--image", "i", "--bucket", BUCKET, "--kind", "pod"], "--kind: 'pod', allowed: rayjob"),
        (
            ["--image", "i", "--bucket", BUCKET, "run.name=7"],
            "run.name: '7', allowed for a job: letters",
        ),
        (
            ["--image", "i", "--bucket", BUCKET, "learner.gpus=8"],
            "--gpus-per-pod: 4, and 64 pods of ",
        ),
        (
            ["--image", "i", "--bucket", BUCKET, "--kind", "rayjob-library"],
            "source: disaggregated with --kind rayjob-library, allowed: fused",
        ),
        (
            ["--image", "i", "--bucket", BUCKET, "--scheduler", "yarn"],
            "--scheduler: 'yarn', allowed: kueue, volcano",
        ),
        (["--image", "i", "--bucket", BUCKET, "--scheduler", "kueue"], "--queue: missing, with"),
        (["--image", "i", "--bucket", BUCKET, "--queue", "My Queue"], "--queue: 'My Queue', allo"),
        (
            ["--image", "i", "--bucket", BUCKET, "--kind", "rayjob-library", "--queue", "q"],
            "--queue: q with --kind rayjob-library, allowed: none",
        ),
    ],
)
def test_what_no_job_can_be_is_one_line(words, line, capsys) -> None:
    assert main(["job", "z_image_turbo_lora", *words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dopsd: {line}")
