"""The client in the same process as a coordinator: no Ray, no actor."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.exceptions import ObjectLostError

from dopsd.config import TimeoutSection
from dopsd.coordinator.client import CoordinatorClient
from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.errors import WorkerError
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.run_folder.ledger import TrainedShare
from dopsd.run_folder.log import RunLog
from tests.helpers.tiny import make_config

STEPS, PER_STEP = 2, 3


class InProcess:
    """A plain coordinator; blocks are words, of which some are ``lost`` at first."""

    def __init__(self, coordinator: Any, lost: set[str]) -> None:
        self.coordinator, self.lost, self.calls = coordinator, lost, []
        self.brought: list[list[str]] = []

    def call(self, method: str, *values: Any) -> Any:
        self.calls.append(method)
        return getattr(self.coordinator, method)(*values)

    send = call

    def bring(self, refs: list[str]) -> None:
        self.brought.append(refs)

    def get(self, ref: str, limit: float) -> str:
        if ref in self.lost:
            raise ObjectLostError("00", None, "")
        return f"value of {ref}"

    def put(self, value: Any) -> Any:
        return value


@pytest.fixture
def late():
    """Until it is set, micro-batch 2 of step 0 is not there, in the test that asks for this."""
    return threading.Event()


@pytest.fixture
def coordinator(tmp_path, request):
    opened = []
    waited = request.getfixturevalue("late") if "late" in request.fixturenames else None

    def stream(start: int, stop: int):
        opened.append(start)
        for step in range(start, stop):
            for index in range(PER_STEP):
                if waited and (step, index) == (0, 2):
                    assert waited.wait(60)
                yield step, index, f"{step}.{index} of {len(opened)}"

    config = make_config(
        "base",
        source="fused",
        run={"folder": str(tmp_path)},
        learner={"steps": STEPS, "global_batch": 3, "restart_backoff_s": 0.0},
        checkpoint={"every_steps": 0, "every_minutes": 0},
    )
    roles, log = resolve_roles(config, 0.0), RunLog(str(tmp_path))
    coordinator = Coordinator(config, roles, stream, lambda step: PER_STEP, log)
    coordinator.start()
    yield coordinator
    coordinator.stop()


def clients_of(
    coordinator: Coordinator, lost: set[str], world: int = 2
) -> tuple[InProcess, list[CoordinatorClient]]:
    connection = InProcess(coordinator, lost)
    attempt = connection.call("attach", world)
    options = {"timeouts": TimeoutSection(), "checkpoints": "unused"}
    return connection, [
        CoordinatorClient(connection, attempt, rank, world, **options) for rank in range(world)
    ]


def test_a_lost_micro_batch_is_fetched_again_and_ranks_get_equally_many(coordinator):
    connection, (first, second) = clients_of(coordinator, lost={"0.2 of 1"})
    assert first.publish(Bundle(0, {}, {}, 0)) == CheckpointRequest()
    assert list(first.fetch(0)) == [("value of 0.0 of 1", True), ("value of 0.2 of 2", True)]
    assert list(second.fetch(0)) == [("value of 0.1 of 1", True), ("value of 0.0 of 1", False)]
    side_by_side = [["0.0 of 1", "0.2 of 1"], ["0.2 of 2"], ["0.1 of 1", "0.0 of 1"]]
    assert connection.brought == side_by_side, "what is ready is fetched at once"


def test_a_rank_trains_what_is_ready_while_the_rest_is_generated(coordinator, late):
    """Rank 0 has micro-batches 0 and 2 of 3."""
    _, (first, second) = clients_of(coordinator, lost=set())
    first.publish(Bundle(0, {}, {}, 0))
    assert list(second.fetch(0)) == [("value of 0.1 of 1", True), ("value of 0.0 of 1", False)]
    share = first.fetch(0)
    assert next(share) == ("value of 0.0 of 1", True)
    assert not late.is_set(), "and so 0.2 is not there yet"
    late.set()
    assert list(share) == [("value of 0.2 of 1", True)]


def test_rank_0_speaks_for_the_group(coordinator):
    connection, (first, second) = clients_of(coordinator, lost=set())
    for client in (second, first):
        client.publish(Bundle(0, {}, {}, 0))
        client.report(0, {"loss": 1.0, "encoder_seconds": 0.0, "learner_seconds": 0.0})
    assert connection.calls == ["attach", "publish", "report"]
    assert coordinator.status().latest["learner_peak_memory_mb"] > 0
    for rank, client in enumerate((first, second)):
        client.record(0, TrainedShare(rank, 2, {rank: ("a",)}, 0, 0, False))
    assert connection.calls[3:] == ["record", "record"]


def test_signs_of_life_are_rare(coordinator):
    connection, (client, _) = clients_of(coordinator, lost=set())
    for _ in range(100):
        client.alive()
    assert connection.calls == ["attach", "alive"]


def test_last_words_are_heard_of_the_current_attempt_alone(coordinator):
    _, (client, _) = clients_of(coordinator, lost=set())
    client.record_death(KeyError("x"))
    _, (successor, _) = clients_of(coordinator, lost=set())
    assert "learner 0: KeyError: 'x'" in coordinator.status().notices[0]
    with pytest.raises(WorkerError, match=r"stale attempt 1 \(current: 2\)"):
        client.publish(Bundle(0, {}, {}, 0))
    client.fail(WorkerError("nobody listens"))
    assert coordinator.error() is None
    successor.fail(WorkerError("no model"))
    assert str(coordinator.error()) == "no model"
