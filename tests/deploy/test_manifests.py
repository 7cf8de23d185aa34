"""The manifests under cluster/: schemas, pins, and room for every role of their own config."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from dopsd.cli.main import main
from dopsd.config import RunConfig, load_config, parse_config
from dopsd.ray_cluster.packing import Node, place
from dopsd.ray_cluster.placement import resolve_roles
from tests.deploy.crd import UniqueKeyLoader, documents, errors, load_schemas
from tests.helpers.paths import ROOT

CLUSTER = ROOT / "cluster"


def manifest(name: str) -> Any:
    """The Ray object of a file."""
    found = documents(CLUSTER / name)
    (document,) = (each for each in found if each["apiVersion"].startswith("ray.io/"))
    return document


def ray_cluster(name: str) -> Any:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[Any]:
    spec = ray_cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(name: str) -> list[Any]:
    return [c for group in groups(name) for c in group["template"]["spec"]["containers"]]


def job_config() -> RunConfig:
    """The config that the RayJob carries along."""
    (config,) = (d for d in documents(CLUSTER / "rayjob.yaml") if d["kind"] == "ConfigMap")
    return parse_config(config["data"]["run.yaml"], "run.yaml")


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


LAUNCHERS = ("launcher-aws.yaml", "launcher-gcp.yaml")


def launcher(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def launcher_nodes(name: str) -> list[Node]:
    types = launcher(name)["available_node_types"]
    return [
        Node(name, entry["resources"]["CPU"], entry["resources"].get("GPU", 0))
        for name, entry in types.items()
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def schemas() -> Any:
    folders = os.environ.get("KUBERAY_CRDS")
    if not folders:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    return load_schemas(Path(folders.split(os.pathsep)[0]))


# --- schemas -----------------------------------------------------------------------------------


def kuberay_manifests() -> list[str]:
    files = sorted(CLUSTER.rglob("*.yaml"))
    return [
        str(file.relative_to(CLUSTER))
        for file in files
        if "apiVersion: ray.io/" in file.read_text()
    ]


def test_every_kuberay_manifest_is_found() -> None:
    assert kuberay_manifests() == ["raycluster.yaml", "rayjob-library.yaml", "rayjob.yaml"]


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


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_file_passes_rays_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher(name), schema)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_fills_a_launcher_file_out(name: str) -> None:
    """As `ray up` does before it asks the cloud for anything."""
    filled = prepare_config(launcher(name))
    validate_config(filled)
    types = filled["available_node_types"]
    assert filled["max_workers"] == sum(each["max_workers"] for each in types.values())
    assert "Never applied" in (CLUSTER / name).read_text()


def test_on_google_a_machine_with_gpus_is_not_moved() -> None:
    types = launcher("launcher-gcp.yaml")["available_node_types"]
    for entry in types.values():
        assert "machineType" in entry["node_config"], "by which Ray knows it from a TPU"
        moved = {"onHostMaintenance": "TERMINATE"} in entry["node_config"].get("scheduling", [])
        assert moved == bool(entry["resources"].get("GPU"))


# --- what KubeRay's operator asks beyond its schemas -------------------------------------------


COMMAND = re.compile(r"^#     (dopsd job .+)$", re.MULTILINE)


@pytest.mark.parametrize("name", kuberay_manifests())
def test_it_is_what_its_command_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (CLUSTER / name).read_text()
    (command,) = COMMAND.findall(text)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == re.sub(r"\A(#.*\n)+", "", text)


def test_token_authentication_is_on_with_a_secret_that_the_example_holds() -> None:
    secrets = {s["metadata"]["name"]: s for s in documents(CLUSTER / "secret.example.yaml")}
    spec = ray_cluster("rayjob.yaml")
    assert spec["authOptions"]["mode"] == "token"
    assert set(secrets[spec["authOptions"]["secretName"]]["stringData"]) == {"auth_token"}
    for name in LAUNCHERS:
        assert "--env=RAY_AUTH_MODE=token" in launcher(name)["docker"]["run_options"]
        mounts = launcher(name)["file_mounts"]
        assert mounts == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_every_container_gets_the_credentials() -> None:
    secrets = {s["metadata"]["name"]: s for s in documents(CLUSTER / "secret.example.yaml")}
    for container in containers("rayjob.yaml"):
        (source,) = container["envFrom"]
        assert "AWS_ACCESS_KEY_ID" in secrets[source["secretRef"]["name"]]["stringData"]


def test_example_secrets_hold_no_secret() -> None:
    for secret in documents(CLUSTER / "secret.example.yaml"):
        values = {k: v for k, v in secret["stringData"].items() if k != "AWS_DEFAULT_REGION"}
        assert set(values.values()) == {"CHANGE-ME"}


# --- image and pins ----------------------------------------------------------------------------


def test_one_ray_everywhere() -> None:
    for name in kuberay_manifests():
        assert ray_cluster(name)["rayVersion"] == pins()["ray"]


def test_one_image_everywhere() -> None:
    images = {c["image"] for name in kuberay_manifests() for c in containers(name)}
    images |= {launcher(name)["docker"]["image"] for name in LAUNCHERS}
    _, fetch = documents(CLUSTER / "models.yaml")
    images.add(fetch["spec"]["template"]["spec"]["containers"][0]["image"])
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert images == {f"YOUR_REGISTRY/dopsd:{project[1]}"}


# --- placement ---------------------------------------------------------------------------------


def test_job_runs_from_s3() -> None:
    config = job_config()
    assert config.shards.startswith("s3://") and config.run.folder.startswith("s3://")
    assert config.data.source is None


@pytest.mark.parametrize("where", ["rayjob.yaml", "raycluster.yaml", *LAUNCHERS])
def test_every_role_finds_a_place_in_any_order(where: str) -> None:
    available = launcher_nodes(where) if where.startswith("launcher") else nodes(where)
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.workers=6"], "learner 3 of 4: needs 4 CPU and 1 GPU, left: head-0 0 CPU 0 GPU"),
        (["learner.gpus=8"], "learner 1 of 4: needs 4 CPU and 8 GPU"),
        (["encoder.cpus=27"], "encoder 1 of 1: needs 27 CPU and 0.1 GPU"),
        (["rollout.cpus=15"], "rollout 3 of 4: needs 15 CPU and 0.9 GPU"),
    ],
)
def test_a_config_that_does_not_fit_is_noticed(overrides: list[str], message: str) -> None:
    config = load_config(ROOT / "configs" / "z_image_turbo_lora.yaml", overrides)
    with pytest.raises(ValueError, match=re.escape(message)):
        place(resolve_roles(config, 8).all(), nodes("rayjob.yaml"))
