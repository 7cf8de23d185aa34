"""Resources of the roles, and the sum that is printed when they do not fit."""

import time

import pytest

from dopsd.config import load_config
from dopsd.errors import ConfigError, ResourceError
from dopsd.ray_cluster import placement
from dopsd.ray_cluster.labels import has_labels
from dopsd.ray_cluster.placement import (
    Node,
    learners_that_fit,
    refuse_too_large,
    refuse_unlabelled,
    resolve_roles,
    shortfall,
    wait_for_resources,
)


def roles_of(gpus, *overrides):
    return resolve_roles(load_config(None, ["data.source=x", *overrides]), gpus)


def test_auto_uses_gpus_only_when_the_cluster_has_them():
    assert {role.gpus for role in roles_of(0.0).all()} == {0.0}
    on_gpus = roles_of(8.0, "encoder.gpus=0.5", "rollout.workers=3")
    assert (on_gpus.encoder.gpus, on_gpus.rollout.gpus, on_gpus.rollout.workers) == (0.5, 1.0, 3)
    assert on_gpus.learner.device == "cuda"
    assert roles_of(8.0, "device=cpu").learner.device == "cpu"


def test_cuda_without_gpus_is_refused():
    with pytest.raises(ResourceError, match="device: cuda, but the cluster has no GPU"):
        roles_of(0.0, "device=cuda")


def test_pools_follow_source_and_sharing():
    assert roles_of(0.0, "source=fused").rollout is None
    shared = roles_of(0.0, "inference.shared=true")
    assert shared.rollout is not None and shared.teacher is None


def test_shortfall_prints_what_was_asked_and_what_is_there():
    roles = roles_of(0.0, "encoder.cpus=1", "rollout.cpus=2", "rollout.workers=3")
    message = shortfall(roles.all(), {"CPU": 4.0})
    assert message == (
        "asked 9 CPU and 0 GPU (encoder 1 x (1 CPU, 0 GPU) + rollout 3 x (2 CPU, 0 GPU) + "
        "teacher 1 x (1 CPU, 0 GPU) + learner 1 x (1 CPU, 0 GPU)); "
        "the cluster has 4 CPU and 0 GPU"
    )
    assert shortfall(roles.all(), {"CPU": 9.0}) is None


def test_waiting_for_a_cluster_that_scales_up_ends_at_the_deadline():
    roles = roles_of(0.0)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"not enough resources after 0.2 s: asked 4 CPU"):
        wait_for_resources(roles.all(), lambda: {"CPU": 1.0}, 0.2)
    assert time.monotonic() - began < 5
    growing = iter([{"CPU": 1.0}, {"CPU": 4.0}])
    wait_for_resources(roles.all(), lambda: next(growing), 10.0)


def test_a_worker_fits_one_node_or_none():
    roles = roles_of(0.0, "learner.cpus=3")
    small, large = Node({"CPU": 2.0}), Node({"CPU": 4.0, "GPU": 1.0})
    wait_for_resources(roles.all(), lambda: {"CPU": 10.0}, 0.1, lambda: [small, large])
    with pytest.raises(ResourceError, match="no node has the 3 CPU and 0 GPU of a learner worker"):
        wait_for_resources(roles.all(), lambda: {"CPU": 10.0}, 0.1, lambda: [small] * 5)
    on_gpus = roles_of(4.0, "learner.cpus=3")
    apart = [Node({"CPU": 2.0, "GPU": 4.0}), Node({"CPU": 8.0})]
    with pytest.raises(ResourceError, match="no node has the 3 CPU and 1 GPU of a learner worker"):
        wait_for_resources(on_gpus.all(), lambda: {"CPU": 10.0, "GPU": 4.0}, 0.1, lambda: apart)


MARKET = "ray.io/market-type"


def test_a_role_stays_on_nodes_with_its_labels():
    roles = roles_of(0.0, f"rollout.labels={{{MARKET}: on-demand}}", "rollout.workers=3")
    assert roles.rollout.options["label_selector"] == {MARKET: "on-demand"}
    assert "label_selector" not in roles.teacher.options
    spot, kept = Node({"CPU": 9.0}, {MARKET: "spot"}), Node({"CPU": 2.0}, {MARKET: "on-demand"})

    def wait(*nodes):
        wait_for_resources(roles.all(), lambda: {"CPU": 20.0}, 0.1, lambda: list(nodes))

    wait(spot, kept, kept)
    line = rf"no node has the labels of a rollout worker \({MARKET}: on-demand\)"
    with pytest.raises(ResourceError, match=line):
        wait(spot, spot)
    line = f"nodes with {MARKET}: on-demand have room for 2 of 3 rollout workers"
    with pytest.raises(ResourceError, match=line):
        wait(spot, kept)


def test_labels_that_nobody_brings_are_refused_at_once(monkeypatch):
    roles = roles_of(0.0, f"teacher.labels={{{MARKET}: spot}}").all()
    refuse_unlabelled(roles, [Node({})])
    monkeypatch.setattr(placement, "is_private", lambda: True)
    refuse_unlabelled(roles, [Node({}), Node({}, {MARKET: "spot"})])
    with pytest.raises(ResourceError, match=rf"^teacher\.labels: {MARKET}: spot, but this machine"):
        refuse_unlabelled(roles, [Node({})])


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [("a", "a"), ("!a", "bc-"), ("in(a, b)", "ab"), ("!in(a,b)", "c-")],
)
def test_labels_are_chosen_as_ray_chooses_them(choice, chosen):
    nodes = {name: {"kind": name} for name in "abc"} | {"-": {}}
    found = [name for name in nodes if has_labels(nodes[name], {"kind": choice})]
    assert found == list(chosen)


@pytest.mark.parametrize("labels", ["{a b: c}", "{a: -c}", "{a: 'in()'}", "{a: '!!b'}"])
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(ConfigError, match=r"^rollout\.labels"):
        roles_of(0.0, f"rollout.labels={labels}")


def test_a_role_that_one_machine_cannot_hold_is_named():
    roles = roles_of(0.0, "teacher.cpus=8")
    refuse_too_large(roles.all(), 8)
    with pytest.raises(ResourceError, match=r"^teacher.cpus: 8, allowed: at most 4, which this"):
        refuse_too_large(roles.all(), 4)


def test_elastic_learners_wait_for_the_fewest_of_them_only():
    elastic = ("learner.workers=4", "learner.global_batch=8", "learner.min_workers=2")
    roles = roles_of(0.0, *elastic)
    assert roles.learner.needed == 2
    wait_for_resources(roles.all(), lambda: {"CPU": 5.0}, 0.1)
    with pytest.raises(ResourceError, match=r"asked 5 CPU and 0 GPU .*learner 2 x"):
        wait_for_resources(roles.all(), lambda: {"CPU": 4.0}, 0.1)


@pytest.mark.parametrize(
    ("cpus", "learners"),
    [
        (2.9, 0),
        (4.0, 1),  # not one for each learner: Ray Data's is taken for the fewest
        (5.0, 2),
        (5.9, 2),
        (6.0, 2),  # 3 CPUs are left, of which Ray Data has one
        (7.0, 3),
        (20.0, 4),
    ],
)
def test_learners_take_what_the_other_roles_and_ray_data_leave(cpus, learners):
    elastic = ("learner.workers=4", "learner.global_batch=8", "learner.min_workers=2")
    assert learners_that_fit(roles_of(0.0, *elastic), {"CPU": cpus}) == learners


def test_gpus_are_shared_with_the_inference_workers():
    """8 GPUs: an encoder, 2 roll-out, a teacher; what the others lose, a learner gives."""
    words = ("learner.workers=4", "learner.global_batch=8", "learner.min_workers=1")
    roles = roles_of(8.0, *words, "rollout.workers=2")
    fit = [learners_that_fit(roles, {"CPU": 64.0, "GPU": float(n)}) for n in range(4, 10)]
    assert fit == [0, 1, 2, 3, 4, 4]
