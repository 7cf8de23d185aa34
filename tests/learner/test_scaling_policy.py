"""When a group of learners is replaced, by what, and what it costs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution.controller.state import SchedulingState
from ray.train.v2.api.config import ScalingConfig

from dopsd.config import load_config
from dopsd.coordinator.failures import RestartBudget
from dopsd.coordinator.messages import RunStatus
from dopsd.errors import WorkerError
from dopsd.learner import scaling_policy as elastic
from dopsd.learner.scaling_policy import ClusterCapacity, SharedClusterScalingPolicy
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.ray_cluster.ray_private import NoopDecision, ReschedulingState, ResizeDecision


def config_of(*overrides):
    words = ["data.source=x", "learner.workers=3", "learner.min_workers=1", *overrides]
    return load_config(None, words)


def budget(restarts: int = 1) -> RestartBudget:
    learner = config_of(f"learner.restarts={restarts}").learner
    counted = RestartBudget(learner, 0)
    counted.world = 2
    return counted


def test_only_a_group_of_the_same_size_spends_a_restart():
    counted = budget()
    assert counted.begin(3, trained=False) == (0.0, "3 learners in place of 2")
    assert counted.begin(1, trained=True) == (0.0, "1 learners in place of 3")
    assert counted.restarts == 0
    assert counted.begin(1, trained=True) == (2.0, "learners failed")
    with pytest.raises(WorkerError, match=r"restart budget exhausted \(learner.restarts=1\)"):
        counted.begin(1, trained=True)


def test_groups_that_shrink_without_a_step_spend_restarts():
    counted = budget(restarts=0)
    with pytest.raises(WorkerError, match="failed again"):
        counted.begin(1, trained=False)


def test_a_lost_node_spends_no_restart():
    counted = budget(restarts=0)
    for _ in range(3):
        assert counted.begin(2, trained=True, node_lost=True)[0] == 0.0
    assert counted.begin(1, trained=False, node_lost=True)[0] == 0.0
    assert counted.restarts == 0
    with pytest.raises(WorkerError, match="failed again"):
        counted.begin(1, trained=True)


class Cluster(ClusterCapacity):
    """A made-up cluster and its coordinator."""

    def total(self):
        return {"CPU": CPUS["total"], "GPU": 0.0}

    def free(self):
        return int(CPUS["free"])

    def ask(self, method):
        if method == "ask_checkpoint":
            ASKED.append(method)
        return RunStatus(7, 9, saved=CPUS["saved"])


CPUS: dict = {}
ASKED: list[str] = []


@pytest.fixture
def policy(monkeypatch):
    """Of 1 to 3 learners; the other roles and Ray Data take 4 CPUs."""
    CPUS.update(total=6.0, free=0, saved=5)
    ASKED.clear()
    monkeypatch.setattr(elastic, "_PAUSE_SECONDS", 0.0)
    scaling = ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=0.0)
    made = SharedClusterScalingPolicy(
        scaling, Cluster(resolve_roles(config_of(), 0.0), "name", "space", 900.0)
    )
    monkeypatch.setattr(made, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(made, "_get_reserved_resources", dict)
    return made


def running(learners: int) -> SimpleNamespace:
    return SimpleNamespace(start_time=0.0, num_workers=learners)


def test_a_start_takes_what_the_other_roles_leave(policy):
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    CPUS["total"] = 3.0
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)


def test_a_start_that_found_no_place_is_tried_with_fewer_until_the_cluster_changes(policy):
    start = policy.make_decision_for_non_running_worker_group
    assert start().num_workers == 2
    state = ReschedulingState(training_failed_error=RuntimeError())
    policy.after_controller_state_update(SchedulingState(start()), state)
    policy.after_controller_state_update(state, state)
    assert start().num_workers == 1
    CPUS["total"] = 7.0
    assert start().num_workers == 3


def test_a_growth_waits_for_room_and_then_for_a_checkpoint(policy):
    decide = policy.make_decision_for_running_worker_group
    assert isinstance(decide(running(1), None), NoopDecision) and not ASKED, "nothing is free"
    CPUS["free"] = 1
    for _ in range(3):
        assert isinstance(decide(running(1), None), NoopDecision)
    assert ASKED == ["ask_checkpoint"], "asked once"
    CPUS["saved"] = 7  # the state that the coordinator had when it was asked
    decision = decide(running(1), None)
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2


def test_learners_that_die_while_a_growth_waits_end_the_wait(policy):
    CPUS["free"] = 1
    policy.make_decision_for_running_worker_group(running(1), None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert isinstance(policy.make_decision_for_running_worker_group(running(2), None), NoopDecision)
    assert ASKED == ["ask_checkpoint"]


def test_learners_make_room_for_inference_workers_that_lost_their_node(policy):
    CPUS.update(total=5.0, saved=8)
    decide = policy.make_decision_for_running_worker_group
    assert isinstance(decide(running(2), None), NoopDecision)
    assert decide(running(2), None).num_workers == 1
