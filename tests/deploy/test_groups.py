"""`ROLE.labels` in `dopsd job`: a worker group for each set of them, on the machines they name."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from ray._private.label_utils import validate_node_label_syntax
from ray.util.accelerators import accelerators

from dopsd.cli.main import main
from dopsd.config import load_config, parse_config
from dopsd.kuberay import Job, documents
from dopsd.kuberay.machines import _CARD_NODES
from dopsd.kuberay.sizes import roles_of
from dopsd.ray_cluster.packing import Node, place
from dopsd.ray_cluster.placement import resolve_roles
from tests.deploy.crd import errors, load_schemas

MARKET, CARD = "ray.io/market-type", "ray.io/accelerator-type"
WORDS = ["job", "z_image_turbo_lora", "run.name=a", "--image", "i", "--bucket", "s3://b"]


def job_of(*overrides: str, recipe: str = "z_image_turbo_lora", **options: Any) -> Job:
    config = load_config(recipe, ["run.name=a", *overrides])
    return Job(config, "i", "s3://b", **options)


def groups_in(job: Job) -> dict[str, Any]:
    (main_object,) = (d for d in documents(job) if d["apiVersion"] == "ray.io/v1")
    spec = main_object["spec"].get("rayClusterSpec", main_object["spec"])
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def nodes_of(groups: dict[str, Any]) -> list[list[Node]]:
    found = []
    for name, group in groups.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        shape = float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0))
        labels = group.get("labels", {})
        found.append([Node(f"{name}-{n}", *shape, labels) for n in range(group["replicas"])])
    return found


def terms(group: Any) -> list[dict[str, tuple[str, set[str]]]]:
    affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
    found = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [
        {e["key"]: (e["operator"], set(e["values"])) for e in term["matchExpressions"]}
        for term in found
    ]


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
@pytest.mark.parametrize(
    "overrides",
    [
        [f"learner.labels={{{MARKET}: on-demand}}"],
        [f"learner.labels={{{CARD}: H100}}", f"rollout.labels={{{CARD}: L40S}}"],
        ["rollout.labels={pool: a}", "encoder.labels={pool: '!b'}", "learner.labels={pool: a}"],
        ["inference.shared=false", "teacher.labels={pool: 'in(c, a)'}", "rollout.labels={pool: a}"],
    ],
)
def test_every_role_finds_a_place_among_the_groups(kind: str, overrides: list[str]) -> None:
    job = job_of(*overrides, kind=kind)
    groups = groups_in(job)
    config = job.config
    if kind == "rayjob":
        (entry,) = (d for d in documents(job) if d["kind"] == "ConfigMap")
        config = parse_config(entry["data"]["run.yaml"], "run.yaml")
    roles = roles_of(config)
    for role_order in itertools.permutations(roles):
        for node_order in itertools.permutations(nodes_of(groups)):
            placed, _ = place(role_order, list(itertools.chain(*node_order)))
            assert {name: len(where) for name, where in placed.items()} == {
                role.name: role.workers for role in roles
            }
    for group in groups.values():
        validate_node_label_syntax(group["labels"])
        assert "labels" not in group["rayStartParams"], "KubeRay refuses both"


def test_each_role_of_a_job_keeps_to_its_group() -> None:
    job = job_of(f"learner.labels={{{MARKET}: on-demand}}")
    (entry,) = (d for d in documents(job) if d["kind"] == "ConfigMap")
    config = parse_config(entry["data"]["run.yaml"], "run.yaml")
    groups = groups_in(job)
    assert list(groups) == ["gpu", "learner"]
    for role in resolve_roles(config, 8).all():
        fitting = [n for n, g in groups.items() if g["labels"].items() >= dict(role.labels).items()]
        assert fitting == ["learner" if role.name == "learner" else "gpu"]


def test_one_group_has_the_labels_of_all_roles() -> None:
    labels = f"={{{CARD}: A100}}"
    job = job_of(*(f"{role}.labels{labels}" for role in ("encoder", "rollout", "learner")))
    ((name, group),) = groups_in(job).items()
    assert group["labels"] == {CARD: "A100"} and name == "encoder-rollout-learner"
    assert {"nvidia.com/gpu.product", "cloud.google.com/gke-accelerator"} <= {
        key for term in terms(group) for key in term
    }


def test_markets_become_machines() -> None:
    job = job_of(f"rollout.labels={{{MARKET}: '!on-demand', {CARD}: L4}}", "learner.labels={p: a}")
    groups = groups_in(job)
    spot = groups["rollout"]
    assert spot["labels"][MARKET] == "spot"
    assert all(len(term) == 2 for term in terms(spot)), "of a card, and one that may go"
    markets = [term.get("karpenter.sh/capacity-type") for term in terms(spot)]
    assert ("In", {"spot"}) in markets
    assert "annotations" not in spot["template"]["metadata"]
    taints = {each["key"] for each in spot["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= taints
    assert "affinity" not in groups["learner"]["template"]["spec"], "a key that no cloud knows"
    assert "annotations" in groups["learner"]["template"]["metadata"]


def test_what_may_not_be_taken_away_is_asked_for_too() -> None:
    groups = groups_in(job_of(f"learner.labels={{{MARKET}: '!spot'}}", spot=True))
    assert groups["learner"]["labels"][MARKET] == "on-demand"
    assert groups["gpu"]["labels"][MARKET] == "spot"
    (term,) = terms(groups["learner"])
    assert {operator for operator, _ in term.values()} == {"NotIn"}
    (zone,) = terms(groups_in(job_of("learner.labels={ray.io/availability-zone: z}"))["learner"])
    assert zone == {"topology.kubernetes.io/zone": ("In", {"z"})}


def test_only_those_on_spot_machines_are_elastic() -> None:
    def config(*overrides: str) -> Any:
        (entry,) = (d for d in documents(job_of(*overrides)) if d["kind"] == "ConfigMap")
        return parse_config(entry["data"]["run.yaml"], "run.yaml")

    learners = config(f"learner.labels={{{MARKET}: spot}}")
    assert (learners.learner.min_workers, learners.inference.max_restarts) == (1, 3)
    rollouts = config(f"rollout.labels={{{MARKET}: spot}}")
    assert (rollouts.learner.min_workers, rollouts.inference.max_restarts) == (None, 100)
    assert learners.checkpoint.every_minutes == rollouts.checkpoint.every_minutes == 3


def test_a_cluster_on_spot_machines_begins_with_one_learner() -> None:
    sizes = ["learner.workers=16", "learner.global_batch=16"]
    ((_, group),) = groups_in(job_of(*sizes, spot=True)).items()
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 5)
    ((_, fixed),) = groups_in(job_of(*sizes)).items()
    assert fixed["minReplicas"] == fixed["maxReplicas"] == 5


def test_an_encoder_on_its_own_takes_no_whole_node() -> None:
    groups = groups_in(job_of("learner.labels={p: a}", "rollout.labels={p: a}"))
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_a_library_encodes_where_its_workers_are() -> None:
    labels = f"learner.labels={{{CARD}: H100}}"
    job = job_of(labels, recipe="z_image_turbo_library", kind="rayjob-library")
    ((_, group),) = groups_in(job).items()
    assert group["labels"] == {CARD: "H100"}
    (ray_job,) = (d for d in documents(job) if d["kind"] == "RayJob")
    options = ray_job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert options["version"] == "v2", "the first brings nodes whatever labels are asked for"


def test_it_passes_the_crds() -> None:
    folders = os.environ.get("KUBERAY_CRDS")
    if not folders:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    labels = [f"learner.labels={{{CARD}: H100}}", f"rollout.labels={{{MARKET}: spot, p: a}}"]
    for kind, folder in itertools.product(("rayjob", "raycluster"), folders.split(os.pathsep)):
        objects = documents(job_of(*labels, kind=kind))
        (main_object,) = (d for d in objects if d["apiVersion"] == "ray.io/v1")
        assert errors(main_object, load_schemas(Path(folder))) == []


def test_cards_are_called_as_ray_calls_them() -> None:
    known = {value for name, value in vars(accelerators).items() if name.startswith("NVIDIA")}
    assert _CARD_NODES.keys() <= known


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            [f"learner.labels={{{CARD}: '!H100'}}"],
            f"learner.labels: {CARD}: !H100, allowed for a job: what a worker group has, and the "
            "groups are: gpu (no labels)",
        ),
        (
            ["learner.labels={p: a}", "rollout.labels={p: '!a', q: 'in(x, y)', ray.io/node-id: a}"],
            "rollout.labels: ray.io/node-id, which Ray gives a node when it starts; allowed for",
        ),
        (
            ["learner.labels={p: '!a'}", "rollout.labels={p: a}", "encoder.labels={p: a}"],
            "",
        ),
        ([f"learner.labels={{{CARD}: K6}}"], f"learner.labels: {CARD}: K6, allowed for a job: T4"),
        ([f"encoder.labels={{{MARKET}: free}}"], f"encoder.labels: {MARKET}: free, allowed for a"),
        (
            [
                *("source=fused", "max_policy_lag=0", "inference.shared=false"),
                *("encoder.labels={p: a}", "--kind", "rayjob-library"),
            ],
            "encoder.labels: p: a with --kind rayjob-library, allowed: those of the learners",
        ),
    ],
)
def test_what_no_group_fits_is_one_line(words, line, capsys) -> None:
    code = main([*WORDS, *words])
    said = capsys.readouterr().err
    assert (code, said.startswith(f"dopsd: {line}")) == ((1, True) if line else (0, False)), said
