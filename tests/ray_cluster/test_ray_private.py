"""Ray's private parts are where `ray_private` says, and are what each use needs."""

from __future__ import annotations

import ast
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import ScalingConfig

import dopsd
from dopsd.ray_cluster import ray_private
from dopsd.ray_cluster.left_behind import none_left

NEEDS = {
    "BackpressurePolicy": ("can_add_input", "max_task_output_bytes_to_read"),
    "PhysicalOperator": ("num_active_tasks", "input_dependencies"),
    "InputDataBuffer": ("has_next", "has_completed", "_get_next_inner", "metrics"),
    "StreamingExecutor": ("shutdown",),
    "ElasticScalingPolicy": (
        "_count_possible_workers",
        "_maybe_send_resource_request",
        "_cancel_resource_request",
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
        "after_controller_state_update",
    ),
    "NoopDecision": (),
    "ResizeDecision": (),
    "ScalingDecision": (),
    "ReschedulingState": (),
    "ResourceRequestPriority": ("HIGH",),
    "_TorchBackend": ("on_start", "on_shutdown"),
    "_set_torch_distributed_env_vars": ("__call__",),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_subclassed_or_called_is_there(name: str) -> None:
    part = getattr(ray_private, name)
    assert [need for need in NEEDS[name] if not hasattr(part, need)] == []


def test_every_name_is_tested() -> None:
    constants = {"ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY"}
    assert NEEDS.keys() | constants == ray_private.MODULES.keys()
    assert isinstance(ray_private.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, str)
    with pytest.raises(AttributeError):
        _ = ray_private.Nothing


def test_attributes_that_the_scaling_policy_reads() -> None:
    policy = ray_private.ElasticScalingPolicy(ScalingConfig(num_workers=(1, 2)))
    assert {"_requester_id", "_coordinator_client"} <= vars(policy).keys()
    assert isinstance(type(policy)._autoscaling_coordinator, property)
    assert policy.scaling_config.min_workers == 1
    assert callable(TorchTrainer._initialize_and_run_controller)


@pytest.mark.usefixtures("ray_cluster")
def test_a_pipeline_is_executed_with_its_executor() -> None:
    bundles, executor = ray_private.execute(ray.data.range(6, override_num_blocks=2))
    assert isinstance(executor, ray_private.StreamingExecutor)
    assert sum(entry.metadata.num_rows for bundle in bundles for entry in bundle.blocks) == 6
    executor.shutdown(force=True)


@pytest.mark.usefixtures("ray_cluster")
def test_nodes_of_a_cluster() -> None:
    assert ray_private.draining_nodes() == {}
    (free,) = ray_private.free_resources_per_node().values()
    assert free["CPU"] <= 4.0


@pytest.mark.usefixtures("ray_cluster")
def test_no_process_reads_logs_for_a_driver_that_prints_none() -> None:
    node = ray._private.worker.global_worker.node
    kinds = {kind for kind, _ in node.live_processes()}
    assert "raylet" in kinds and "log_monitor" not in kinds
    assert type(node).start_log_monitor.__name__ == "start_log_monitor"  # again, for others


def test_what_ray_starts_is_spared_what_the_process_group_is_sent() -> None:
    services = ray._private.services
    started = []
    for block in (ray_private.own_signals(), nullcontext()):
        with block:
            info = services.start_ray_process(["sleep", "60"], "sleep", fate_share=True)
        started.append(info.process)
    own, usual = started
    try:
        assert os.getpgid(own.pid) == own.pid
        assert os.getpgid(usual.pid) == os.getpgrp()  # so the first is no habit of Ray's
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_nobody_is_warned_that_tokens_are_asked_for_but_that_they_are_not(caplog) -> None:
    ray_says = ray._private.authentication.authentication_token_setup
    ray_says._warn_token_auth_enabled()
    with ray_private.quiet_about_token():
        ray_says._warn_token_auth_enabled()
        ray_says._warn_token_auth_disabled()
    first, second = caplog.messages
    assert "is enabled" in first and "is disabled" in second


@ray.remote(num_cpus=0)
class Idle:
    """An actor that does nothing."""


@pytest.mark.usefixtures("ray_cluster")
def test_actors_of_a_class_end_with_the_block_and_older_ones_stay() -> None:
    older = Idle.remote()
    ray.get(older.__ray_ready__.remote())
    with pytest.raises(ValueError, match="the block's own"), none_left("Idle"):
        newer = Idle.remote()
        ray.get(newer.__ray_ready__.remote())
        assert len(ray_private.living_actors("Idle")) == 2
        here = ray.get_runtime_context().get_node_id()
        assert here in ray_private.nodes_of_job()
        assert ray_private.node_of_actor(newer._actor_id.binary()) == here
        raise ValueError("the block's own")
    for _ in range(100):
        if len(ray_private.living_actors("Idle")) == 1:
            break
        time.sleep(0.1)
    assert ray.get(older.__ray_ready__.remote())
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(newer.__ray_ready__.remote())


def private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "ray" and any(part in ("_private", "_internal", "_raylet") for part in parts)


def names_of(node: ast.AST) -> list[str]:
    """Modules that a statement imports, or the dotted name that an expression is."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    words: list[str] = []
    part: Any = node
    while isinstance(part, ast.Attribute):
        words.insert(0, part.attr)
        part = part.value
    return [".".join([part.id, *words])] if isinstance(part, ast.Name) else []


def test_no_other_file_uses_private_parts_of_ray() -> None:
    users = set()
    for path in Path(dopsd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if any(map(private, names_of(node))):
                users.add(path.name)
    assert users == {"ray_private.py"}
