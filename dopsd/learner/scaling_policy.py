"""When a group of learners is replaced by a smaller or a larger one.

Ray Train's own elastic policy counts what the nodes have, whoever else works there. This one
leaves the other roles their places, and has a checkpoint written before it ends learners that are
well. It builds on private parts of Ray Train, and only elastic runs load it.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from dopsd.ray_cluster.labels import has_labels
from dopsd.ray_cluster.placement import Node, Roles, learners_that_fit
from dopsd.ray_cluster.ray_private import (
    ElasticScalingPolicy,
    NoopDecision,
    ReschedulingState,
    ResizeDecision,
    ResourceRequestPriority,
    ScalingDecision,
    draining_nodes,
    free_resources_per_node,
)

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 10.0
"""What the coordinator may take for an answer before a resize waits for the next look."""
_PAUSE_SECONDS = 1.0
"""Between two looks while there is no room even for the fewest learners."""
_CLAIM_SECONDS, _CLAIM_EXPIRES = 20.0, 180.0
"""Between two claims of the inference roles' places, and when Ray forgets one."""


@dataclass(frozen=True)
class ClusterCapacity:
    """What the policy asks: the cluster for room, the coordinator for a checkpoint."""

    roles: Roles
    coordinator: str
    namespace: str
    save_seconds: float
    """How long a growth waits for the checkpoint before it goes without."""

    def nodes(self) -> dict[str, Node]:
        """The nodes that stay, by id: those that Ray will drain are gone already."""
        draining = draining_nodes()
        return {
            node["NodeID"]: Node(node["Resources"], node["Labels"])
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in draining
        }

    def total(self) -> dict[str, float]:
        """CPUs and GPUs of those nodes."""
        nodes = [node.resources for node in self.nodes().values()]
        return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}

    def fit(self, total: dict[str, float]) -> int:
        """Learners that a cluster of that size holds beside the other roles, where they may be."""
        learner, fit = self.roles.learner, learners_that_fit(self.roles, total)
        if learner.labels:
            fit = min(fit, sum(node.holds(learner) for node in self.nodes().values()))
        return fit

    def free(self) -> int:
        """Learners that could start at this moment, each on one node."""
        learner = self.roles.learner
        may = {i for i, node in self.nodes().items() if has_labels(node.labels, learner.labels)}
        asked = {k: n for k, n in (("CPU", learner.cpus), ("GPU", learner.gpus)) if n}
        if not asked:
            return learner.workers
        return sum(
            min(math.floor(free.get(kind, 0.0) / n + 1e-6) for kind, n in asked.items())
            for node, free in free_resources_per_node().items()
            if node in may
        )

    def ask(self, method: str) -> Any:
        """Call the coordinator. Raises RayError or ValueError when it is not there."""
        actor = ray.get_actor(self.coordinator, namespace=self.namespace)
        return ray.get(getattr(actor, method).remote(), timeout=_ANSWER_SECONDS)

    def others(self) -> list[dict[str, float]]:
        """What the inference workers take, each for itself. The encoders are Ray Data's claim."""
        roles = [role for role in (self.roles.rollout, self.roles.teacher) if role]
        return [
            {k: v for k, v in (("CPU", role.cpus), ("GPU", role.gpus)) if v}
            for role in roles
            for _ in range(role.workers)
        ]


class SharedClusterScalingPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, for a cluster that the learners share with other roles."""

    def __init__(self, scaling_config: Any, capacity: ClusterCapacity) -> None:
        super().__init__(scaling_config)
        self._capacity = capacity
        self._running = 0
        self._tried = 0
        """Learners of the last group that was to start."""
        self._refused: tuple[dict[str, float], int] | None = None
        """A cluster, and how many learners it could not place though the sum said so."""
        self._growth: tuple[ResizeDecision, int, float] | None = None
        """A resize that waits until as many steps are saved, and since when."""
        self._claimed = -math.inf

    # -- how many ----------------------------------------------------------------------------

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        total = self._capacity.total()
        fit = self._capacity.fit(total)
        if self._running:
            return fit if fit < self._running else min(fit, self._running + self._capacity.free())
        if self._refused is not None and self._refused[0] == total:
            fit = min(fit, max(self._refused[1] - 1, self.scaling_config.min_workers))
        return fit

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._running, self._growth = 0, None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._tried = decision.num_workers
        else:
            time.sleep(_PAUSE_SECONDS)  # Ray Train asks again at once
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        if self._growth is None:
            self._running = worker_group_state.num_workers
            decision = super().make_decision_for_running_worker_group(
                worker_group_state, worker_group_status
            )
            if isinstance(decision, ResizeDecision):
                self._begin(decision)
            return NoopDecision()
        self._maybe_send_resource_request()
        if not self._saved():
            return NoopDecision()
        decision, self._growth = self._growth[0], None
        self._tried = decision.num_workers
        return decision

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        super().after_controller_state_update(previous_state, current_state)
        again = isinstance(previous_state, ReschedulingState)
        if isinstance(current_state, ReschedulingState) and not again:
            self._refused = self._capacity.total(), self._tried

    # -- a checkpoint first ------------------------------------------------------------------

    def _begin(self, decision: ResizeDecision) -> None:
        try:
            step = self._capacity.ask("status").step
            self._capacity.ask("ask_checkpoint")
        except (RayError, ValueError):
            return  # the coordinator is on its way back: at the next look
        _log.info("learners: %d wanted, after a checkpoint", decision.num_workers)
        self._growth = decision, step, time.monotonic()

    def _saved(self) -> bool:
        assert self._growth is not None
        _, step, since = self._growth
        if time.monotonic() - since > self._capacity.save_seconds:
            return True
        try:
            saved = self._capacity.ask("status").saved
        except (RayError, ValueError):
            return False
        return saved is not None and saved >= step

    # -- places of others --------------------------------------------------------------------

    def _maybe_send_resource_request(self) -> None:
        """An autoscaler that heard of the learners alone would give them the others' places."""
        super()._maybe_send_resource_request()
        now = time.monotonic()
        if self._capacity.others() and now - self._claimed > _CLAIM_SECONDS:
            self._claimed = now
            self._autoscaling_coordinator.request_resources.remote(
                requester_id=self._claim,
                resources=self._capacity.others(),
                expire_after_s=_CLAIM_EXPIRES,
                priority=ResourceRequestPriority.HIGH,
            )

    @property
    def _claim(self) -> str:
        return f"{self._requester_id}-inference"

    def _cancel_resource_request(self) -> None:
        super()._cancel_resource_request()
        if self._coordinator_client is not None:
            self._autoscaling_coordinator.cancel_request.remote(self._claim)


class ElasticTrainer(TorchTrainer):
    """Ray Train's trainer under :class:`SharedClusterScalingPolicy`."""

    def __init__(self, train_loop: Any, *, capacity: ClusterCapacity, **options: Any) -> None:
        super().__init__(train_loop, **options)
        self._capacity = capacity

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["scaling_policy"] = SharedClusterScalingPolicy(self.scaling_config, self._capacity)
        # Ray Train's own answer to a node that will be taken away is to train on until it is gone,
        # and to ask no policy meanwhile; this one saves, and resumes without it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        return super()._initialize_and_run_controller(**options)  # type: ignore[misc]
