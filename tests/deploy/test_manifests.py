"""The manifests under cluster/: schemas, pins, and room for every role of their own config."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dopsd.config import RunConfig, load_config
from dopsd.ray_cluster.placement import resolve_roles
from tests.deploy.crd import UniqueKeyLoader, documents, errors, load_schemas
from tests.deploy.packing import Node, place
from tests.helpers.paths import ROOT

CLUSTER = ROOT / "cluster"
PROJECT = "/home/ray/dopsd/"  # where the image keeps the repository


def manifest(name: str) -> Any:
    (document,) = documents(CLUSTER / name)
    return document


def ray_cluster(name: str) -> Any:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[Any]:
    spec = ray_cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(name: str) -> list[Any]:
    return [c for group in groups(name) for c in group["template"]["spec"]["containers"]]


def entrypoint() -> list[str]:
    return shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])


def job_config() -> RunConfig:
    """The config that the RayJob's entrypoint resolves to."""
    python, script, config, *overrides = entrypoint()
    assert (python, script) == ("python", f"{PROJECT}jobs/train.py")
    return load_config(ROOT / config.removeprefix(PROJECT), overrides)


def nodes(name: str) -> list[Node]:
    """The Ray nodes of a manifest, with what KubeRay tells Ray of each."""
    found = []
    for group in groups(name):
        (container,) = group["template"]["spec"]["containers"]
        limits, params = container["resources"]["limits"], group["rayStartParams"]
        cpus = float(params.get("num-cpus", limits["cpu"]))
        gpus = float(params.get("num-gpus", limits.get("nvidia.com/gpu", 0)))
        group_name = group.get("groupName", "head")
        found += [Node(f"{group_name}-{i}", cpus, gpus) for i in range(group.get("replicas", 1))]
    return found


def launcher_nodes() -> list[Node]:
    types = yaml.safe_load((CLUSTER / "launcher-aws.yaml").read_text())["available_node_types"]
    return [
        Node(name, entry["resources"]["CPU"], entry["resources"].get("GPU", 0))
        for name, entry in types.items()
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def schemas() -> Any:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    return load_schemas(Path(folder))


# --- schemas -----------------------------------------------------------------------------------


def kuberay_manifests() -> list[str]:
    files = sorted(CLUSTER.rglob("*.yaml"))
    return [
        str(file.relative_to(CLUSTER))
        for file in files
        if "apiVersion: ray.io/" in file.read_text()
    ]


def test_every_kuberay_manifest_is_found() -> None:
    assert kuberay_manifests() == ["raycluster.yaml", "rayjob.yaml"]


@pytest.mark.parametrize("name", kuberay_manifests())
def test_manifest_passes_the_crd_schema(name: str, schemas: Any) -> None:
    assert errors(manifest(name), schemas) == []


def _set(path: str, value: Any) -> Any:
    def change(job: Any) -> None:
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for part in parents:
            job = job[part]
        job[last] = value

    return change


CONTAINER = "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0"
BROKEN = {
    "unknown field": (_set("spec.entryPoint", "x"), "'entryPoint' was unexpected"),
    "unknown nested field": (_set(f"{CONTAINER}.imagePolicy", "Always"), "'imagePolicy' was"),
    "wrong type": (_set("spec.backoffLimit", "none"), "spec.backoffLimit: 'none' is not of type"),
    "number for a string": (
        _set("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        "0 is not of type 'string'",
    ),
    "bad mode": (_set("spec.rayClusterSpec.authOptions.mode", "on"), "'on' is not one of"),
    "bad quantity": (_set(f"{CONTAINER}.resources.limits.memory", "16 GB"), "does not match"),
    "required field gone": (_set(f"{CONTAINER}", {"image": "x"}), "'name' is a required property"),
    "same name twice": (
        _set(f"{CONTAINER}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        "{'name': 'A'} is given twice",
    ),
    "bad object name": (_set("metadata.name", "Dopsd Train"), "does not match"),
    "unknown kind": (_set("kind", "RayJobs"), "no schema for ray.io/v1 RayJobs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_manifest_is_refused(case: str, schemas: Any) -> None:
    change, message = BROKEN[case]
    job = json.loads(json.dumps(manifest("rayjob.yaml")))  # a copy without YAML's shared parts
    change(job)
    found = errors(job, schemas)
    assert any(message in line for line in found), found


def test_key_given_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="'a' is given twice"):
        yaml.load("a: 1\nb: 2\na: 3", UniqueKeyLoader)


def test_launcher_file_passes_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((CLUSTER / "launcher-aws.yaml").read_text()), schema)


# --- what KubeRay's operator asks beyond its schemas -------------------------------------------


def test_job_and_cluster_are_one_cluster() -> None:
    assert ray_cluster("rayjob.yaml") == ray_cluster("raycluster.yaml")


def test_token_authentication_is_on_with_a_secret_that_the_example_holds() -> None:
    secrets = {s["metadata"]["name"]: s for s in documents(CLUSTER / "secret.example.yaml")}
    spec = ray_cluster("rayjob.yaml")
    assert spec["authOptions"]["mode"] == "token"
    assert set(secrets[spec["authOptions"]["secretName"]]["stringData"]) == {"auth_token"}
    launcher = yaml.safe_load((CLUSTER / "launcher-aws.yaml").read_text())
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert launcher["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_every_container_gets_the_credentials() -> None:
    secrets = {s["metadata"]["name"]: s for s in documents(CLUSTER / "secret.example.yaml")}
    for container in containers("rayjob.yaml"):
        (source,) = container["envFrom"]
        assert "AWS_ACCESS_KEY_ID" in secrets[source["secretRef"]["name"]]["stringData"]


def test_example_secrets_hold_no_secret() -> None:
    for secret in documents(CLUSTER / "secret.example.yaml"):
        values = {k: v for k, v in secret["stringData"].items() if k != "AWS_DEFAULT_REGION"}
        assert set(values.values()) == {"CHANGE-ME"}


def test_job_gives_its_gpus_back() -> None:
    spec = manifest("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True  # the operator refuses the TTL without it
    assert 0 < spec["ttlSecondsAfterFinished"] <= 600
    assert spec["activeDeadlineSeconds"] > 0
    assert len(manifest("rayjob.yaml")["metadata"]["name"]) <= 47  # KubeRay's MaxRayJobNameLength


def test_groups_are_fixed_in_size_and_share_memory() -> None:
    for group in groups("rayjob.yaml"):
        pod = group["template"]["spec"]
        if "groupName" in group:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        (shm,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        assert volumes[shm["name"]]["emptyDir"]["medium"] == "Memory"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert any(t["key"] == "nvidia.com/gpu" for t in pod["tolerations"])


def test_monitor_finds_the_ports() -> None:
    (monitor,) = documents(CLUSTER / "monitoring" / "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for container in containers("rayjob.yaml"):
        assert endpoint["port"] in [port["name"] for port in container["ports"]]


# --- image and pins ----------------------------------------------------------------------------


def dockerfile() -> str:
    return (CLUSTER / "Dockerfile").read_text()


def test_one_ray_everywhere() -> None:
    base = re.search(r"^FROM rayproject/ray:(\S+)-py311-gpu$", dockerfile(), re.MULTILINE)
    assert base is not None
    assert base[1] == pins()["ray"]
    for name in kuberay_manifests():
        assert ray_cluster(name)["rayVersion"] == pins()["ray"]


def test_the_tested_set_pins_every_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    tested = {canonicalize_name(name): version for name, version in pins().items()}
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            version = tested[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{line}: {version}"
            assert "+" not in version


def test_image_is_not_root_and_takes_the_tested_set() -> None:
    text = dockerfile()
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users[-1] == "1000"
    for group in groups("rayjob.yaml"):
        assert group["template"]["spec"]["securityContext"]["runAsUser"] == 1000
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs and all("-c constraints.txt" in line for line in installs)
    assert f"WORKDIR {PROJECT.rstrip('/')}" in text


def test_image_copies_what_exists_and_what_the_build_context_holds() -> None:
    context = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+)$", dockerfile(), re.MULTILINE):
        sources = [part for part in line.split() if not part.startswith("--")][:-1]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in context
    for path in entrypoint()[1:3]:
        assert (ROOT / path.removeprefix(PROJECT)).is_file()


def test_one_image_everywhere() -> None:
    images = {c["image"] for name in kuberay_manifests() for c in containers(name)}
    launcher = yaml.safe_load((CLUSTER / "launcher-aws.yaml").read_text())
    images.add(launcher["docker"]["image"])
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert images == {f"YOUR_REGISTRY/dopsd:{project[1]}"}
    assert images.pop() in dockerfile()


# --- placement ---------------------------------------------------------------------------------


def test_job_runs_from_s3() -> None:
    config = job_config()
    assert config.shards.startswith("s3://") and config.run.folder.startswith("s3://")
    assert config.data.source is None


@pytest.mark.parametrize("where", ["rayjob.yaml", "raycluster.yaml", "launcher-aws.yaml"])
def test_every_role_finds_a_place_in_any_order(where: str) -> None:
    available = launcher_nodes() if where.startswith("launcher") else nodes(where)
    roles = resolve_roles(job_config(), sum(node.gpus for node in available)).all()
    assert [role.name for role in roles] == ["encoder", "rollout", "learner"]
    for role_order in itertools.permutations(roles):
        for node_order in itertools.permutations(available):
            placed, left = place(role_order, node_order)
            assert {name: len(where) for name, where in placed.items()} == {
                role.name: role.workers for role in roles
            }
            assert not any(node.startswith("head") for used in placed.values() for node in used)
            # Ray Data's tasks take one CPU each: reading must go on beside the workers.
            assert sum(node.cpus >= 1 for node in left) >= 1


def test_learners_fit_into_one_pod_of_their_group() -> None:
    (learner,) = [node for node in nodes("rayjob.yaml") if node.name.startswith("learner")]
    roles = resolve_roles(job_config(), 8)
    assert set(place([roles.learner], [learner])[0]["learner"]) == {learner.name}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.workers=6"], "learner 3 of 4: needs 2 CPU and 1 GPU, left: head-0 0 CPU 0 GPU"),
        (["learner.gpus=8"], "learner 1 of 4: needs 2 CPU and 8 GPU"),
        (["encoder.cpus=17"], "encoder 1 of 1: needs 17 CPU and 0.1 GPU"),
        (["rollout.cpus=15"], "rollout 2 of 4: needs 15 CPU and 0.9 GPU"),
    ],
)
def test_a_config_that_does_not_fit_is_noticed(overrides: list[str], message: str) -> None:
    config = load_config(ROOT / "configs" / "z_image_turbo_lora.yaml", overrides)
    with pytest.raises(ValueError, match=re.escape(message)):
        place(resolve_roles(config, 8).all(), nodes("rayjob.yaml"))
