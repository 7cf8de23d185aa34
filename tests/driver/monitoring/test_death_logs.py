"""The ends of the logs of processes that died are kept, and named where a run ends of it."""

from __future__ import annotations

import pytest

from dopsd.driver.monitoring import death_logs
from dopsd.driver.monitoring.death_logs import DeathLogs
from dopsd.errors import WorkerError
from dopsd.ray_cluster.dead_workers import DeadWorker


def dead(number: int, actor_class: str = "RolloutWorker") -> DeadWorker:
    why = "Worker unexpectedly exits\nwith a connection error code 2."
    return DeadWorker(f"{number:06d}ff", "node", "10.0.0.7", number, "01", actor_class, why)


@pytest.fixture
def workers(monkeypatch) -> list[DeadWorker]:
    found: list[DeadWorker] = []
    monkeypatch.setattr(death_logs, "dead_workers", lambda since: found)
    monkeypatch.setattr(death_logs, "log_tail", lambda worker: b"==> worker.err <==\nboom\n")
    return found


def test_the_log_is_kept_and_named(workers, tmp_path):
    told: list[str] = []
    logs = DeathLogs(str(tmp_path), told.append)
    logs.look()
    assert told == [] and not (tmp_path / "logs").exists()
    error = WorkerError("rollout-0 died")
    assert logs.named_in(error) is error
    workers.append(dead(7))
    path = tmp_path / "logs" / "rollout-7-000007.log"
    assert str(logs.named_in(error)) == f"rollout-0 died; the end of its log: {path}"
    assert told == [f"rollout: process 7 on 10.0.0.7 died; the end of its log: {path}"]
    assert path.read_text() == (
        "dopsd: rollout: process 7 on 10.0.0.7 died: Worker unexpectedly exits with a connection "
        "error code 2.\n\n==> worker.err <==\nboom\n"
    )
    logs.look()
    assert len(told) == 1, "once of each"


def test_a_log_that_went_with_its_node_is_not_named(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(death_logs, "log_tail", lambda worker: None)
    told: list[str] = []
    workers.append(dead(7))
    error = DeathLogs(str(tmp_path), told.append).named_in(WorkerError("gone"))
    assert str(error) == "gone"
    assert told == ["rollout: process 7 on 10.0.0.7 died, and its log with the node"]


def test_what_dies_again_and_again_fills_no_disk(workers, tmp_path):
    told: list[str] = []
    workers += [dead(number) for number in range(80)]
    DeathLogs(str(tmp_path), told.append).look()
    assert len(told) == len(list((tmp_path / "logs").iterdir())) == 50


@pytest.mark.parametrize(
    ("actor_class", "role"),
    [
        ("RolloutWorker", "rollout"),
        ("TeacherWorker", "teacher"),
        ("RayTrainWorker", "learner"),
        ("CoordinatorActor", "coordinator"),
        ("MapWorker(MapBatches(Encode))", "encoder"),
        ("", "task"),
    ],
)
def test_roles_by_the_class_of_the_actor(actor_class, role):
    assert dead(1, actor_class).role == role
